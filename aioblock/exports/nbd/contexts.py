"""Metadata contexts: what a client may ask about runs of an export.

    context                     flags of a run
    base:allocation             1 HOLE: no storage is used   2 ZERO: reads as zeroes
    qemu:allocation-depth       which layer of the chain decides, 1 = the top, 0 = none
    qemu:dirty-bitmap:NAME      1: marked in the bitmap

An answer covers the range from its begin on, not always to its end: it has at most so many runs, and takes no more than
a bounded time. NumPy comes in only where more than one run is asked for.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from contextlib import aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Final

from aioblock.base.flags import DATA, ZERO
from aioblock.core.dirty_bitmap import DirtyBitmap
from aioblock.graph.backend import BlockBackend
from aioblock.nbd.constants import STATE_DIRTY, STATE_HOLE, STATE_ZERO

if TYPE_CHECKING:
    from aioblock.blockio.extents import ChainExtents

__all__ = ["MAX_RUNS", "AllocationContext", "BitmapContext", "Context", "DepthContext", "TailContext"]

MAX_RUNS: Final = 1 << 17
"""How many runs an answer may have: 1 MiB of them, as the specification bounds it."""
_EXTENTS: Final = "aioblock.blockio.extents"
_STEP: Final = 4096
"""After how many runs of a bitmap others get a turn."""


class Runs:
    """Runs that follow each other, neighbours that say the same merged."""

    __slots__ = ("_limit", "flags", "lengths")

    def __init__(self, limit: int) -> None:
        self.lengths: list[int] = []
        self.flags: list[int] = []
        self._limit = limit

    def add(self, nbytes: int, flags: int) -> bool:
        """Add a run; False where it had no room: nothing may follow."""
        if self.flags and self.flags[-1] == flags:
            self.lengths[-1] += nbytes
            return True
        if len(self.flags) >= self._limit:
            return False
        self.lengths.append(nbytes)
        self.flags.append(flags)
        return True


class Context(ABC):
    """One kind of question. Offsets are those of the disk, in bytes."""

    @abstractmethod
    async def runs(self, offset: int, nbytes: int, limit: int) -> Runs:
        """At least one run from `offset` on, at most `limit`, together at most `nbytes`. Raises: OSError."""


class AllocationContext(Context):
    """base:allocation."""

    def __init__(self, disk: BlockBackend) -> None:
        self._disk = disk

    async def runs(self, offset: int, nbytes: int, limit: int) -> Runs:
        """See `Context.runs`."""
        if limit > 1:
            return await _chain_runs(self._disk, offset, nbytes, limit, depth=False)
        found = Runs(1)
        status = await self._disk.block_status_above(None, offset, nbytes)
        found.add(min(status.pnum, nbytes), _state(status.flags))
        return found


class DepthContext(Context):
    """qemu:allocation-depth."""

    def __init__(self, disk: BlockBackend) -> None:
        self._disk = disk

    async def runs(self, offset: int, nbytes: int, limit: int) -> Runs:
        """See `Context.runs`."""
        if limit > 1:
            return await _chain_runs(self._disk, offset, nbytes, limit, depth=True)
        found = Runs(1)
        status = await self._disk.block_status_above(None, offset, nbytes, want_zero=False)
        found.add(min(status.pnum, nbytes), status.depth)
        return found


def _state(flags: int) -> int:
    return (0 if flags & DATA else STATE_HOLE) | (STATE_ZERO if flags & ZERO else 0)


async def _chain_runs(disk: BlockBackend, offset: int, nbytes: int, limit: int, *, depth: bool) -> Runs:
    found = Runs(limit)
    if _EXTENTS not in sys.modules:  # it brings numpy, which takes 100 ms to load
        await asyncio.to_thread(import_module, _EXTENTS)
    async with aclosing(disk.extent_batches(offset, nbytes, want_zero=not depth)) as batches:
        async for batch in batches:
            for length, flags in zip(batch.lengths.tolist(), _flags_of(batch, depth), strict=True):
                if not found.add(length, flags):
                    return found
            await asyncio.sleep(0)  # a whole batch may come from memory
    return found


def _flags_of(batch: "ChainExtents", depth: bool) -> list[int]:
    if depth:
        depths: list[int] = batch.depth.tolist()
        return depths
    return [_STATE_OF[flags] for flags in batch.flags.tolist()]


_STATE_OF: Final = [_state(flags) for flags in range(256)]


class TailContext(Context):
    """What another one says, and of what lies behind the end of the disk: `flags`; None: what it says before that."""

    def __init__(self, inner: Context, disk: BlockBackend, flags: int | None) -> None:
        self._inner = inner
        self._disk = disk
        self._flags = flags

    async def runs(self, offset: int, nbytes: int, limit: int) -> Runs:
        """See `Context.runs`."""
        inside = max(min(nbytes, self._disk.length - offset), 0)
        found = await self._inner.runs(offset, inside, limit) if inside else Runs(limit)
        if inside < nbytes and sum(found.lengths) == inside:
            before = found.flags[-1] if found.flags else _BEHIND
            found.add(nbytes - inside, before if self._flags is None else self._flags)
        return found


_BEHIND: Final = STATE_HOLE | STATE_ZERO


class BitmapContext(Context):
    """qemu:dirty-bitmap:NAME."""

    def __init__(self, bitmap: DirtyBitmap) -> None:
        self._bitmap = bitmap

    async def runs(self, offset: int, nbytes: int, limit: int) -> Runs:
        """See `Context.runs`."""
        found = Runs(limit)
        at, end = offset, offset + nbytes
        for number, (start, length) in enumerate(self._bitmap.ranges(offset), 1):
            if start >= end:
                break
            stop = min(start + length, end)
            if stop <= at:
                continue
            if start > at and not found.add(start - at, 0):
                return found
            start = max(start, at)
            if not found.add(stop - start, STATE_DIRTY):
                return found
            at = stop
            if not number % _STEP:
                await asyncio.sleep(0)
        if at < end:
            found.add(end - at, 0)
        return found
