"""Threads for system calls that may block: bounded pools, one pair for each device that files lie on.

A device that hangs holds up the threads of its own pool only. Flush and close have a pool of their own beside that of
reads and writes, so that they find a thread however many reads are stuck. Pools exist while somebody uses them: the
threads end with the last file of a device.
"""

import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, ParamSpec, TypeVar

__all__ = ["OPENING", "DevicePools", "in_thread"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

IO_THREADS: Final = 16  # for one device: more fight for the interpreter's lock without keeping a disk busier
SYNC_THREADS: Final = 4
OPENING: Final = -1  # the key of the pools for files that are being opened: their device is not known yet

_lock = threading.Lock()  # event loops of several threads may share the pools
_pools: dict[int, "DevicePools"] = {}


def _forget_parent() -> None:
    """In the child of a fork: it has none of the threads, and what it opens gets pools of its own."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


class DevicePools:
    """The threads of one device. `acquire` and `release` count the users."""

    __slots__ = ("io", "key", "sync", "users")

    def __init__(self, key: int) -> None:
        self.key = key
        self.users = 0
        self.io = ThreadPoolExecutor(IO_THREADS, f"aioblock-io-{key}")
        """For reads, writes, and what changes the allocation of a file."""
        self.sync = ThreadPoolExecutor(SYNC_THREADS, f"aioblock-sync-{key}")
        """For flush, locks and close."""

    def __repr__(self) -> str:
        return f"DevicePools({self.key}, users={self.users})"

    @classmethod
    def acquire(cls, key: int) -> "DevicePools":
        """The pools of a device (`st_dev`), made where nobody uses them yet."""
        with _lock:
            pools = _pools.get(key)
            if pools is None:
                pools = _pools[key] = cls(key)
            pools.users += 1
            return pools

    def release(self) -> None:
        """One user less; the last one ends the threads, without waiting for them."""
        with _lock:
            self.users -= 1
            if self.users:
                return
            if _pools.get(self.key) is self:  # not that of the child of a fork
                del _pools[self.key]
        self.io.shutdown(wait=False)
        self.sync.shutdown(wait=False)


@cache
def in_thread(function: Callable[_P, _T]) -> Callable[..., Awaitable[_T]]:
    """`function` as a coroutine function that runs it in the threads of the keyword argument `executor`.

    It is remembered for good: give functions of modules, not methods of objects.
    """
    from aiofiles.os import wrap  # here, because who reads only what is cached needs no threads

    return wrap(function)
