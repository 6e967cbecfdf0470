"""Image formats: drivers that give the bytes of a disk out of the bytes of a file."""
