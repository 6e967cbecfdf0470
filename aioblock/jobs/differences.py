"""Differences: every range in which two disks do not hold the same bytes, in the order of their offsets."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import NamedTuple

from aioblock.base.buffers import aligned_buffer
from aioblock.base.flags import ZERO
from aioblock.core.eager import Finished, outcome, settle, start
from aioblock.graph.backend import BlockBackend
from aioblock.jobs.compare import AHEAD, BUFFER, read_both, stretches
from aioblock.jobs.plan import SECTOR

__all__ = ["DifferentRange", "differences"]


class DifferentRange(NamedTuple):
    """A range in which every block of 512 bytes differs. In bytes; the last block of a disk may be shorter."""

    offset: int
    length: int


_Found = list[DifferentRange]


async def differences(
    first: BlockBackend, second: BlockBackend, *, progress: Callable[[int, int], None] | None = None
) -> AsyncGenerator[DifferentRange, None]:
    """Where two disks differ, neighbours joined. Behind its end a disk counts as zeroes.

    What both know to be zeroes is not read. `progress(done, total)` is told bytes. Closed early, or cancelled: nothing
    is left running.
    Raises: PositionedError, whose `source` says which of the two (0 or 1).
    """
    disks = (first, second)
    total = max(first.length, second.length)
    under_way: deque[tuple[int, Finished[_Found] | asyncio.Task[_Found]]] = deque()
    free: list[memoryview] = []
    """Buffers that nobody uses now."""
    last: DifferentRange | None = None

    async def oldest() -> _Found:
        """What the piece that was begun first holds; the range that may go on is kept back."""
        nonlocal last
        end, question = under_way[0]
        found = await outcome(question)
        under_way.popleft()
        if progress is not None:
            progress(end, total)
        complete = []
        for run in found:
            if last is not None and last.offset + last.length == run.offset:
                last = last._replace(length=last.length + run.length)
                continue
            if last is not None:
                complete.append(last)
            last = run
        return complete

    try:
        async with aclosing(stretches(disks)) as parts:
            async for stretch in parts:
                if stretch.flags[0] & stretch.flags[1] & ZERO:
                    continue
                for offset in range(stretch.offset, stretch.offset + stretch.nbytes, BUFFER):
                    end = min(offset + BUFFER, stretch.offset + stretch.nbytes)
                    under_way.append((end, start(_differing(disks, offset, end - offset, stretch.flags, free))))
                    if len(under_way) >= AHEAD:
                        for run in await oldest():
                            yield run
        while under_way:
            for run in await oldest():
                yield run
        if last is not None:
            yield last
        if progress is not None:
            progress(total, total)
    finally:
        await settle([question for _, question in under_way if not isinstance(question, Finished)])


async def _differing(
    disks: tuple[BlockBackend, BlockBackend],
    offset: int,
    nbytes: int,
    flags: tuple[int, int],
    free: list[memoryview],
) -> _Found:
    """The differing ranges of one piece; blocks are counted from its beginning. Buffers come from `free`."""
    import numpy as np

    buffers = [free.pop() if free else aligned_buffer(BUFFER) for said in flags if not said & ZERO]
    views = [buffer[:nbytes] for buffer in buffers]
    await read_both(disks, offset, flags, views)
    contents = [np.frombuffer(view, np.uint8) for view in views]
    bytes_differ = contents[0] != (contents[1] if len(contents) == 2 else 0)
    whole = nbytes // SECTOR * SECTOR
    blocks = bytes_differ[:whole].reshape(-1, SECTOR).any(axis=1)
    if whole < nbytes:
        blocks = np.append(blocks, bytes_differ[whole:].any())
    edges = np.flatnonzero(np.diff(blocks, prepend=False, append=False)).tolist()
    free += buffers
    return [
        DifferentRange(offset + begin * SECTOR, min(end * SECTOR, nbytes) - begin * SECTOR)
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]
