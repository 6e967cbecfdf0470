"""Filters: drivers that pass on what their one child holds, and do something on the way."""
