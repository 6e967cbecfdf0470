"""Layer 5: what serves a disk to others."""
