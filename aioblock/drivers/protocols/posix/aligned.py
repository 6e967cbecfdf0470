"""O_DIRECT: memory that it takes, and the alignment that a file asks for."""

import errno
import mmap
import os
import struct
import threading
from typing import Final

__all__ = ["AlignedMemory", "direct_alignment"]

_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000
# struct statx: u32 stx_mask at 0; u32 stx_dio_mem_align, u32 stx_dio_offset_align at 0x98.
_STATX_BYTES: Final = 256
_DIO_ALIGN_AT: Final = 0x98

_PROBED: Final = (512, 1024, 2048, 4096)


class AlignedMemory:
    """Page-aligned memory by powers of two, kept for the next one that asks. Any thread may call it."""

    __slots__ = ("_free", "_kept", "_lock", "keep")

    def __init__(self, keep: int = 16 << 20) -> None:
        """`keep`: how many free bytes are kept at most."""
        self.keep = keep
        self._kept = 0
        self._free: dict[int, list[mmap.mmap]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"AlignedMemory(kept={self._kept})"

    def take(self, nbytes: int) -> memoryview:
        """A view of `nbytes`, which begins at a page. What is in it is not said. Never given back: it is just freed."""
        size = max(mmap.PAGESIZE, 1 << (nbytes - 1).bit_length())
        with self._lock:
            free = self._free.get(size)
            block = free.pop() if free else None
            if block is not None:
                self._kept -= size
        if block is None:
            block = mmap.mmap(-1, size)
        return memoryview(block)[:nbytes]

    def give(self, view: memoryview) -> None:
        """Take back what `take` gave; nobody may use it any more."""
        block = view.obj
        view.release()
        assert isinstance(block, mmap.mmap)
        with self._lock:
            if self._kept + len(block) <= self.keep:
                self._kept += len(block)
                self._free.setdefault(len(block), []).append(block)


def direct_alignment(fd: int, block_size: int) -> int:
    """The alignment of offsets and lengths for a file that is open with O_DIRECT, in bytes; 1 where it asks for none.

    The kernel is asked where it can tell (Linux 6.1); else reads of rising length show it; where the file is empty, and
    nothing shows, it is `block_size` (that of the filesystem).
    """
    return _statx_alignment(fd) or _probed_alignment(fd, block_size)


def _statx_alignment(fd: int) -> int:
    import ctypes  # here, because hardly any open needs it

    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    if statx is None:
        return 0
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, answer) != 0:
        return 0
    (mask,) = struct.unpack_from("=I", answer, 0)
    memory, offset = struct.unpack_from("=II", answer, _DIO_ALIGN_AT)
    if not mask & _STATX_DIOALIGN or not offset or memory > mmap.PAGESIZE:
        return 0
    return int(offset)


def _probed_alignment(fd: int, block_size: int) -> int:
    if os.fstat(fd).st_size == 0:
        return max(_PROBED[0], min(block_size, _PROBED[-1]))
    with mmap.mmap(-1, _PROBED[-1]) as memory, memoryview(memory) as view:
        for alignment in (1, *_PROBED):
            with view[:alignment] as part:
                try:
                    os.preadv(fd, (part,), 0)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                else:
                    return alignment
    return _PROBED[-1]
