"""Layer 5: long work on whole disks: convert, compare."""
