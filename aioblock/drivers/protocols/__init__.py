"""Protocols: drivers that hold bytes themselves, in a file, in memory or elsewhere."""
