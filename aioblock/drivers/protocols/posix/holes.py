"""Where a file has data and where holes, by SEEK_DATA and SEEK_HOLE."""

import errno
import os
import threading
from collections.abc import Callable
from typing import Final

from aioblock.base.flags import DATA, ZERO

__all__ = ["DataRun", "next_run", "runs"]

_lseek: Callable[[int, int, int], int] = os.lseek
_SEEK_DATA: Final[int] = getattr(os, "SEEK_DATA", -1)
_SEEK_HOLE: Final[int] = getattr(os, "SEEK_HOLE", -1)


class DataRun:
    """The run of data that was found last. Only data is remembered: another process may fill a hole at any time.

    A question may be under way in a thread while another thread makes a hole. So whoever has made one says so
    (`forget`), and an answer counts only if nobody did since its question began (`generation`).
    """

    __slots__ = ("_lock", "generation", "span")

    def __init__(self) -> None:
        self.span = (0, 0)
        """Where it begins and ends."""
        self.generation = 0
        self._lock = threading.Lock()  # for who changes both

    def __repr__(self) -> str:
        return f"DataRun({self.span[0]}..{self.span[1]})"

    def remember(self, start: int, end: int, generation: int) -> None:
        """The range was data when the question of that generation was asked."""
        with self._lock:
            if generation == self.generation:
                self.span = (start, end)

    def forget(self) -> None:
        """Somewhere data may have become a hole."""
        with self._lock:
            self.generation += 1
            self.span = (0, 0)


def next_run(fd: int, offset: int, end: int) -> tuple[int, int]:
    """What the run at `offset` is, DATA or ZERO, and where it ends; a hole at most at `end`.

    Raises: OSError (EINVAL and the like: the filesystem cannot tell).
    """
    try:
        data = _lseek(fd, offset, _SEEK_DATA)
        if data > offset:
            return ZERO, min(data, end)
        hole = _lseek(fd, offset, _SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data from here on, or the file ends before
            return ZERO, end
        raise
    return (DATA, hole) if hole > offset else (DATA, end)  # the latter: a hole came into being between the two calls


def runs(fd: int, offset: int, end: int, limit: int) -> list[tuple[int, int]]:
    """Up to `limit` runs from `offset` on, as from `next_run`, none of them past `end`."""
    found: list[tuple[int, int]] = []
    while offset < end and len(found) < limit:
        flags, stop = next_run(fd, offset, end)
        stop = min(stop, end)
        found.append((flags, stop - offset))
        offset = stop
    return found
