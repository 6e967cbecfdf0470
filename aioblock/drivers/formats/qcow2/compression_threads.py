"""Threads that compress and decompress: no more of them than there are processors.

More would only fight for the interpreter's lock, which each takes again for every cluster. What waits for a thread is
taken by the one that is done first, without the event loop being asked.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["CompressionThreads"]

T = TypeVar("T")


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CompressionThreads:
    """Those of one image; there are none before they are needed."""

    __slots__ = ("_pool",)

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call `function`, which lets the GIL go. Cancelled: it ends in its thread, and its result is dropped."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_processors(), "aioblock-compression")
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def close(self) -> None:
        """The threads end with what they are doing. Nothing waits for them any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None
