"""Buffers: finding zeroes in them, fast."""

import mmap
from typing import Final

__all__ = ["ZEROES", "aligned_buffer", "as_view", "is_zero"]

ZEROES: Final = bytes(1 << 16)
"""Compared with and written from: large enough that the loop over it does not count, small enough for a cache."""


def as_view(data: bytes | bytearray | memoryview) -> memoryview:
    """`data` as a flat view of bytes, without a copy. Raises: TypeError where it is not contiguous."""
    view = data if type(data) is memoryview else memoryview(data)
    return view if view.format == "B" and view.ndim == 1 and view.c_contiguous else view.cast("B")


def is_zero(view: memoryview) -> bool:
    """Whether all bytes are zero. `startswith` compares as memcmp does, without a copy; `==` of views is slow."""
    nbytes = len(view)
    if nbytes <= 1 << 16:
        return ZEROES.startswith(view)
    if view[0] or view[nbytes - 1]:
        return False
    return all(ZEROES.startswith(view[at : at + (1 << 16)]) for at in range(0, nbytes, 1 << 16))


def aligned_buffer(nbytes: int) -> memoryview:
    """New memory that begins at a page, zeroed. For long transfers: the kernel copies to it 4 times as fast.

    Measured: preadv of 1 MiB from the page cache takes 0.16 ms to a page, 0.66 ms to a bytearray, which begins 16 bytes
    behind a multiple of 32 (AMD EPYC, Linux 6.18). It costs a system call: worth it for what is used again, or is long.
    """
    return memoryview(mmap.mmap(-1, nbytes)) if nbytes else memoryview(b"")
