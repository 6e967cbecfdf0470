"""Threads that compress and decompress: no more at a time than there are processors.

More of them would only fight for the interpreter's lock, which each takes again for every cluster.
"""

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

__all__ = ["CompressionThreads"]

T = TypeVar("T")


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CompressionThreads:
    """Those of one image, taken from the event loop's own."""

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_processors())

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call `function`, which lets the GIL go. Cancelled: it ends in its thread, and its result is dropped."""
        async with self._free:
            return await asyncio.get_running_loop().run_in_executor(None, function, *args)
