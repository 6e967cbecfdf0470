"""Layer 1: the NBD protocol without I/O, for client and server: bytes in, events and bytes out."""
