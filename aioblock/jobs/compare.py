"""Compare: whether two disks hold the same bytes. What both know to be zeroes is not read."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NamedTuple

from aioblock.base.buffers import aligned_buffer, is_zero
from aioblock.base.errors import BlockError
from aioblock.base.flags import EOF, ZERO
from aioblock.core.eager import Finished, outcome, settle, start
from aioblock.graph.backend import BlockBackend
from aioblock.jobs.errors import PositionedError
from aioblock.jobs.plan import SECTOR

__all__ = ["AHEAD", "BUFFER", "Difference", "compare", "read_both", "stretches"]

BUFFER = 2 << 20
"""How much of each disk is read at a time."""

AHEAD = 4
"""How many such reads of a pair are under way at a time."""


class Difference(NamedTuple):
    """The first place where two disks differ. `kind`: "content", or if strict also "length" or "status"."""

    kind: str
    offset: int
    """In bytes; of "content", that of the block of 512 bytes, counted from where both began to be read."""


class Stretch(NamedTuple):
    """A range in which each of the two says one thing. Flags as in `base.flags`."""

    offset: int
    nbytes: int
    flags: tuple[int, int]


async def compare(
    first: BlockBackend,
    second: BlockBackend,
    *,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Difference | None:
    """Where two disks differ first; None: nowhere. What one has behind the end of the other must be zeroes.

    `strict`: they must also be of the same length (in blocks of 512 bytes), and allocated alike.
    `progress(done, total)` is told bytes. Cancelled: nothing is left running.
    Raises: PositionedError, whose `source` says which of the two (0 or 1).
    """
    disks = (first, second)
    if strict and -(-first.length // SECTOR) != -(-second.length // SECTOR):
        return Difference("length", min(first.length, second.length))
    total = max(first.length, second.length)
    under_way: deque[tuple[int, Finished[int | None] | asyncio.Task[int | None]]] = deque()

    free: list[memoryview] = []
    """Buffers that nobody uses now."""

    async def oldest() -> int | None:
        end, question = under_way[0]
        found = await outcome(question)
        under_way.popleft()
        if progress is not None:
            progress(end, total)
        return found

    try:
        async with aclosing(stretches(disks)) as parts:
            async for stretch in parts:
                if strict and (stretch.flags[0] ^ stretch.flags[1]) & ~EOF:
                    while under_way:
                        if (found := await oldest()) is not None:
                            return Difference("content", found)
                    return Difference("status", stretch.offset)
                for offset in range(stretch.offset, stretch.offset + stretch.nbytes, BUFFER):
                    end = min(offset + BUFFER, stretch.offset + stretch.nbytes)
                    under_way.append((end, start(_differs(disks, offset, end - offset, stretch.flags, free))))
                    if len(under_way) >= AHEAD and (found := await oldest()) is not None:
                        return Difference("content", found)
        while under_way:
            if (found := await oldest()) is not None:
                return Difference("content", found)
    finally:
        await settle([question for _, question in under_way if not isinstance(question, Finished)])
    return None


async def stretches(disks: tuple[BlockBackend, BlockBackend]) -> AsyncGenerator[Stretch, None]:
    """What both say, cut where either changes; up to the end of the longer one. Zero stretches of both are skipped.

    Raises: PositionedError.
    """
    async with aclosing(_runs(disks[0], 0)) as first, aclosing(_runs(disks[1], 1)) as second:
        sources = (first, second)
        runs = [await anext(source, None) for source in sources]
        at, end = 0, max(disk.length for disk in disks)
        while at < end:
            stop = min(run[0] for run in runs if run is not None)
            # Behind its end a disk counts as zeroes.
            flags = (runs[0][1] if runs[0] else ZERO, runs[1][1] if runs[1] else ZERO)
            yield Stretch(at, stop - at, flags)
            at = stop
            for number, run in enumerate(runs):
                if run is not None and run[0] == at:
                    runs[number] = await anext(sources[number], None)


async def _runs(disk: BlockBackend, number: int) -> AsyncGenerator[tuple[int, int], None]:
    """(end, flags) of the runs of a disk."""
    end = 0
    try:
        async with aclosing(disk.extent_batches()) as batches:
            async for batch in batches:
                for length, flags in zip(batch.lengths.tolist(), batch.flags.tolist(), strict=True):
                    end += length
                    yield end, flags
    except (OSError, BlockError) as error:
        raise PositionedError("status", end, error, source=number) from error


async def _differs(
    disks: tuple[BlockBackend, BlockBackend],
    offset: int,
    nbytes: int,
    flags: tuple[int, int],
    free: list[memoryview],
) -> int | None:
    """The offset of the first block of a range that differs; None: none does. Buffers come from `free`."""
    if flags[0] & flags[1] & ZERO:
        return None
    buffers = [free.pop() if free else aligned_buffer(BUFFER) for said in flags if not said & ZERO]
    views = [buffer[:nbytes] for buffer in buffers]
    await read_both(disks, offset, flags, views)
    block = _first_difference(views)
    free += buffers  # only now: a read that was cancelled may still be writing into its own
    return None if block is None else offset + block


async def read_both(
    disks: tuple[BlockBackend, BlockBackend], offset: int, flags: tuple[int, int], views: list[memoryview]
) -> None:
    """Read the range of those disks that `flags` do not say are zeroes there, each into a view of its length.

    Cancelled or failed: no read is left running. Raises: PositionedError.
    """
    unread = iter(views)
    reads = [
        start(_read(disk, number, offset, next(unread)))
        for number, (disk, said) in enumerate(zip(disks, flags, strict=True))
        if not said & ZERO
    ]
    try:
        for read in reads:
            if isinstance(read, Finished):
                read.result()
            else:
                await read
    finally:
        await settle([read for read in reads if not isinstance(read, Finished)])


def _first_difference(views: list[memoryview]) -> int | None:
    """Where the first block lies that differs between two views, or holds something else than zeroes in one."""
    import numpy as np

    if len(views) == 1:
        if is_zero(views[0]):
            return None
        different = np.frombuffer(views[0], np.uint8) != 0
    else:
        whole = len(views[0]) // 8 * 8
        first, second = (np.frombuffer(view[:whole], np.uint64) for view in views)
        if np.array_equal(first, second) and bytes(views[0][whole:]) == bytes(views[1][whole:]):
            return None
        different = np.frombuffer(views[0], np.uint8) != np.frombuffer(views[1], np.uint8)
    return int(different.argmax()) // SECTOR * SECTOR


async def _read(disk: BlockBackend, number: int, offset: int, view: memoryview) -> None:
    try:
        await disk.readinto(offset, view)
    except (OSError, BlockError) as error:
        raise PositionedError("read", offset, error, source=number) from error
