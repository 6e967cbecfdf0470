"""Layer 1: LUKS1: the header, its key slots, and the sector ciphers, for whatever keeps its sectors encrypted."""
