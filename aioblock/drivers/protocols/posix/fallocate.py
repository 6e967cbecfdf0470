"""Zeroes, holes and space by fallocate(2), and what a filesystem refuses of it. A thread calls these."""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from functools import cache
from typing import Final

from aioblock.base.errors import NotSupported, OptionError, with_context
from aioblock.core.images import Prealloc
from aioblock.drivers.protocols.posix.transfer import write_fully, write_zeroes

__all__ = ["PUNCH_HOLE", "Allocation", "fallocate", "set_length"]

ALLOCATE: Final = 0
_KEEP_SIZE: Final = 0x01
PUNCH_HOLE: Final = 0x02 | _KEEP_SIZE
ZERO_RANGE: Final = 0x10

_FIRST_BLOCK: Final = 4096


@cache
def _libc_fallocate() -> Callable[[int, int, int, int], int] | None:
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def call(fd: int, mode: int, offset: int, nbytes: int) -> int:
        return ctypes.get_errno() if function(fd, mode, offset, nbytes) else 0

    return call


def fallocate(fd: int, mode: int, offset: int, nbytes: int) -> None:
    """fallocate(2). Raises: OSError."""
    call = _libc_fallocate()
    code = errno.EOPNOTSUPP if call is None else errno.EINTR
    while call is not None and code == errno.EINTR:
        code = call(fd, mode, offset, nbytes)
    if code:
        raise OSError(code, os.strerror(code))


class Allocation:
    """Changes what a file has allocated, and remembers the modes of fallocate that its filesystem refuses."""

    __slots__ = ("_refused",)

    def __init__(self) -> None:
        self._refused: set[int] = set()

    def __repr__(self) -> str:
        return f"Allocation(refused={sorted(self._refused)})"

    @property
    def can_punch(self) -> bool:
        """Whether holes have not been refused yet."""
        return PUNCH_HOLE not in self._refused

    @property
    def can_zero(self) -> bool:
        """Whether there may be a way to zeroes."""
        return self.can_punch or ZERO_RANGE not in self._refused

    def zero(self, fd: int, offset: int, nbytes: int, may_unmap: bool) -> None:
        """Make the range read as zeroes; a file that ends before the range's end grows up to there.

        The range becomes a hole with `may_unmap`, else it stays or becomes allocated.
        Raises: NotSupported, then zeroes have to be written; OSError.
        """
        if may_unmap and self._try(fd, PUNCH_HOLE, offset, nbytes):
            # Growing by ftruncate could cut off what another thread writes behind this range at the same time.
            end = offset + nbytes
            if end <= os.fstat(fd).st_size or self._try(fd, ALLOCATE, end - 1, 1):
                return
        if self._try(fd, ZERO_RANGE, offset, nbytes):
            return
        if self._try(fd, PUNCH_HOLE, offset, nbytes) and self._try(fd, ALLOCATE, offset, nbytes):
            return
        raise NotSupported

    def punch(self, fd: int, offset: int, nbytes: int) -> None:
        """Give the storage of a range back. Raises: NotSupported; OSError."""
        if not self._try(fd, PUNCH_HOLE, offset, nbytes):
            raise NotSupported

    def _try(self, fd: int, mode: int, offset: int, nbytes: int) -> bool:
        if mode in self._refused:
            return False
        try:
            fallocate(fd, mode, offset, nbytes)
        except OSError as error:
            if error.errno == errno.EINVAL:  # some filesystems say so for a range that does not suit them
                return False
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self._refused.add(mode)
            return False
        return True


def set_length(fd: int, length: int, prealloc: Prealloc) -> None:
    """Set the length of a regular file. What is new reads as zeroes, and is allocated as `prealloc` says.

    A failed one leaves the length as it was. Raises: OptionError, NotSupported, OSError.
    """
    old = os.fstat(fd).st_size
    if prealloc is Prealloc.METADATA:
        raise NotSupported("Unsupported preallocation mode: metadata")
    if length <= old and prealloc is not Prealloc.OFF:
        if length == old:
            return
        raise OptionError("Preallocation can only be used for growing files", option="preallocation")
    try:
        if prealloc is Prealloc.FALLOC:
            _allocate(fd, old, length - old)
        elif prealloc is Prealloc.FULL:
            _write(fd, old, length - old)
        else:
            if old == 0 < length:  # a file with an allocated block tells the alignment of O_DIRECT
                _first_block(fd, length)
            os.ftruncate(fd, length)
    except BaseException:
        if prealloc is not Prealloc.OFF or old == 0:
            os.ftruncate(fd, old)
        raise


def _allocate(fd: int, offset: int, nbytes: int) -> None:
    try:
        os.posix_fallocate(fd, offset, nbytes)
    except OSError as error:
        raise with_context(error, "Could not preallocate new data: ") from None


def _write(fd: int, offset: int, nbytes: int) -> None:
    # O_DIRECT refuses lengths and memory that are not aligned: such a file is opened once more without it.
    buffered = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC) if is_direct(fd) else fd
    try:
        write_zeroes(buffered, offset, nbytes)
        os.fsync(buffered)
    except OSError as error:
        raise with_context(error, "Could not write zeros for preallocation: ") from None
    finally:
        if buffered != fd:
            os.close(buffered)


def _first_block(fd: int, length: int) -> None:
    with mmap.mmap(-1, _FIRST_BLOCK) as block, memoryview(block) as view:
        with view[: _FIRST_BLOCK if length >= _FIRST_BLOCK or is_direct(fd) else length] as zeroes:
            write_fully(fd, 0, zeroes)


def is_direct(fd: int) -> bool:
    """Whether a descriptor is open with O_DIRECT."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))
