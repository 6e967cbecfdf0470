"""Whole reads and writes by system calls that may do less than they were asked. For threads: these block.

Each returns when everything is done, or raises. What the kernel reports as EINTR is asked again (Python does that where
a signal's handler does not raise); a write of 0 bytes is EIO; a read of 0 bytes is the end of the file.
"""

import errno
import os
from collections.abc import Callable
from typing import Final

from aioblock.base.errors import NotSupported
from aioblock.drivers.protocols.posix.aligned import AlignedMemory

__all__ = ["SLICE", "copy_range", "read_fully", "write_direct", "write_fully", "write_zeroes"]

SLICE: Final = 1 << 20  # what one call transfers: about 0.1 ms of copying, and a bound for private memory

COPIED: Final = 16 << 20  # what one call copies at most: a thread shall not be away for seconds

_preadv: Callable[..., int] = os.preadv
_pwritev: Callable[..., int] = os.pwritev


def _copy_file_range(source: int, target: int, count: int, offset_src: int, offset_dst: int) -> int:
    if not hasattr(os, "copy_file_range"):
        raise NotSupported("This system does not copy between files")
    return os.copy_file_range(source, target, count, offset_src, offset_dst)


def read_fully(fd: int, offset: int, nbytes: int, memory: AlignedMemory, alignment: int = 1) -> memoryview:
    """The `nbytes` at `offset`, zeroes where the file ends before, in memory of `memory`, to be given back to it.

    `alignment`: what O_DIRECT asks for. The kernel copies faster to pages (see `base.buffers.aligned_buffer`).
    """
    view = memory.take(nbytes)
    done = _read_into(fd, offset, view, alignment)
    if done < nbytes:
        view[done:] = bytes(nbytes - done)  # this memory has been used before
    return view


def _read_into(fd: int, offset: int, view: memoryview, alignment: int) -> int:
    done = 0
    while done < len(view):
        try:
            count = _preadv(fd, (view[done:],), offset + done)
        except InterruptedError:
            continue
        done += count
        if count == 0 or done % alignment:  # O_DIRECT: a part of a block is the last one of the file
            break
    return done


def write_fully(fd: int, offset: int, data: memoryview) -> None:
    """Write all of `data` at `offset`, in slices.

    Whole aligned 2 MiB at a time would make the page cache look for pieces of memory of that size: 0.2 s for 512 MiB in
    slices of 1 MiB, 0.3 to 1.2 s in those of 2 (ext4, Linux 6.18).
    """
    done, nbytes = 0, len(data)
    while done < nbytes:
        part = data if nbytes <= SLICE and not done else data[done : done + SLICE]
        try:
            count = _pwritev(fd, (part,), offset + done)
        except InterruptedError:
            continue
        if count == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += count


def write_direct(fd: int, offset: int, data: memoryview, memory: AlignedMemory) -> None:
    """As `write_fully` for a file opened with O_DIRECT, through memory of `memory`."""
    for start in range(0, len(data), SLICE):
        part = data[start : start + SLICE]
        view = memory.take(len(part))
        view[:] = part
        write_fully(fd, offset + start, view)
        memory.give(view)


def copy_range(source: int, source_offset: int, target: int, offset: int, nbytes: int) -> None:
    """Have the kernel copy between two files; it makes them share the blocks where the filesystem can.

    Raises: NotSupported where it cannot, or where the source ends before; OSError.
    """
    while nbytes:
        try:
            count = _copy_file_range(source, target, min(nbytes, COPIED), source_offset, offset)
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ETXTBSY, errno.EBADF):
                raise NotSupported(f"The kernel does not copy between these files: {error.strerror}") from error
            raise
        if count == 0:
            raise NotSupported("The file to be copied ends before")
        source_offset, offset, nbytes = source_offset + count, offset + count, nbytes - count


def write_zeroes(fd: int, offset: int, nbytes: int) -> None:
    """Write `nbytes` zeroes at `offset`, in slices."""
    zeroes = memoryview(bytes(min(nbytes, SLICE)))
    for start in range(0, nbytes, SLICE):
        write_fully(fd, offset + start, zeroes[: nbytes - start])
