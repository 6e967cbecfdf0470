"""Layer 0: pure Python without asyncio and without I/O. Everything else may import it."""
