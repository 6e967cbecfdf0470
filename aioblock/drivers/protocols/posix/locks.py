"""Locks of image files between processes, as QEMU's programs take them.

Who uses an image holds one byte for each thing it does, and one for each thing it does not let others do; a byte's
number is that of the permission (`base.flags`):

    100 + bit    this user does it          100 consistent read, 101 write, 102 write unchanged, 103 resize
    200 + bit    nobody else may do it      200 consistent read, 201 write, 202 write unchanged, 203 resize

All are shared locks (F_RDLCK), so that taking one never fails; a conflict is seen by asking whether an exclusive lock
on the opposite byte would be refused. They are locks of the open file description (F_OFD_SETLK): two opens in one
process conflict too, and closing another descriptor of the file does not drop them.

A thread calls these; nothing here waits for a lock.
"""

import errno
import fcntl
import os
import struct
import threading
from typing import Final

from aioblock.base.errors import with_context
from aioblock.base.flags import PERM_ALL

__all__ = ["ImageLocks"]

_NAMES: Final = ("consistent read", "write", "write unchanged", "resize")
_HELD: Final = 100
_UNSHARED: Final = 200

_GETLK: Final[int | None] = getattr(fcntl, "F_OFD_GETLK", None)
_SETLK: Final[int | None] = getattr(fcntl, "F_OFD_SETLK", None)
# struct flock: short l_type, short l_whence, off_t l_start, off_t l_len, pid_t l_pid; padded to off_t.
_FLOCK: Final = "hhqqi0q"
# What a filesystem or kernel says that cannot do it.
_UNABLE: Final = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class ImageLocks:
    """The lock bytes that one descriptor holds on its file."""

    __slots__ = ("_fd", "_filename", "_mutex", "_owned")

    def __init__(self, fd: int, filename: str) -> None:
        self._fd = fd
        self._filename = filename
        self._owned: set[int] = set()
        self._mutex = threading.Lock()  # a change goes on in its thread when its awaiter was cancelled

    def __repr__(self) -> str:
        return f"ImageLocks({self._filename!r}, {sorted(self._owned)})"

    @staticmethod
    def supported(fd: int) -> bool:
        """Whether the file can be locked so. Raises: OSError, where that cannot be found out."""
        if _GETLK is None:
            return False
        try:
            _would_conflict(fd, _HELD)
        except OSError as error:
            if error.errno in _UNABLE:
                return False
            raise
        return True

    def change(self, perm: int, shared: int) -> None:
        """Hold `perm`, and let others do only `shared`, instead of what was set before. All, or nothing and an error.

        Raises: OSError EAGAIN where another user does what is not shared, or does not share what is done here.
        """
        with self._mutex:
            wanted = {_HELD + bit for bit in _bits(perm)} | {_UNSHARED + bit for bit in _bits(PERM_ALL & ~shared)}
            added = wanted - self._owned
            try:
                # Locked first and then looked: of two that do so at once, at least one sees the other.
                self._lock(added)
                self._look(perm, shared)
            except BaseException:
                self._unlock(added)
                raise
            self._unlock(self._owned - wanted)

    def copy_to(self, fd: int) -> "ImageLocks":
        """The same locks on another descriptor of the same file. No conflict can arise while these here are held."""
        locks = ImageLocks(fd, self._filename)
        with self._mutex:
            locks._lock(self._owned)
        return locks

    def _lock(self, numbers: set[int]) -> None:
        for number in sorted(numbers):
            try:
                _set_lock(self._fd, fcntl.F_RDLCK, number)
            except OSError as error:
                raise with_context(error, f"Failed to lock byte {number}: ") from None
            self._owned.add(number)

    def _unlock(self, numbers: set[int]) -> None:
        for number in sorted(numbers & self._owned):
            _set_lock(self._fd, fcntl.F_UNLCK, number)
            self._owned.discard(number)

    def _look(self, perm: int, shared: int) -> None:
        for bit in _bits(perm):
            if _would_conflict(self._fd, _UNSHARED + bit):
                raise self._conflict(f'Failed to get "{_NAMES[bit]}" lock')
        for bit in _bits(PERM_ALL & ~shared):
            if _would_conflict(self._fd, _HELD + bit):
                raise self._conflict(f'Failed to get shared "{_NAMES[bit]}" lock')

    def _conflict(self, message: str) -> OSError:
        return OSError(errno.EAGAIN, f"{message}\nIs another process using the image [{self._filename}]?")


def _bits(flags: int) -> list[int]:
    return [bit for bit in range(len(_NAMES)) if flags >> bit & 1]


def _set_lock(fd: int, kind: int, number: int) -> None:
    assert _SETLK is not None
    fcntl.fcntl(fd, _SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, number, 1, 0))


def _would_conflict(fd: int, number: int) -> bool:
    assert _GETLK is not None
    answer = fcntl.fcntl(fd, _GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
