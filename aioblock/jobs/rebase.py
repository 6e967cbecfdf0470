"""Rebase: give an overlay another backing file, so that the disk reads as before.

What the overlay leaves open is compared in the old chain and in the new one, and where they differ the overlay takes
what it reads as now, by copy-on-read, which keeps the guest's own writes out meanwhile. A backing file that is too
short reads as zeroes behind its end, and those are stored as zeroes; before its end all is stored as data, as QEMU 7.2
does. What both chains have from the same files, and what both know to be zeroes, is not read.

    what differs, stored in the overlay => the overlay is flushed => its header names the new backing file
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, NamedTuple

from aioblock.base.buffers import aligned_buffer
from aioblock.base.errors import BlockError
from aioblock.base.flags import REQ_COPY_ON_READ, REQ_ZEROES_AS_DATA, ZERO
from aioblock.core.node import BlockNode
from aioblock.graph.backend import BlockBackend
from aioblock.jobs.errors import PositionedError
from aioblock.jobs.plan import SECTOR

__all__ = ["rebase"]

BUFFER: Final = 1 << 20
"""How much of each chain one worker reads at a time."""

_UNKNOWN: Final = 0
_ZERO: Final = 1
_SHARED: Final = 2
"""It comes from files that both chains have."""
_OWN: Final = 4
"""The overlay itself says what is there."""


class _Stretch(NamedTuple):
    """A range of the disk, and what is known of it in the old and in the new chain."""

    offset: int
    nbytes: int
    old: int
    new: int

    @property
    def agrees(self) -> bool:
        """Whether the disk reads the same with both chains, without looking at it."""
        return bool(self.old & _OWN or self.old & self.new & (_ZERO | _SHARED))


async def rebase(
    disk: BlockBackend,
    new: BlockBackend | None,
    filename: str | None,
    format: str | None = None,
    *,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Let the top layer of `disk` have `filename`, of that format, as its backing file; None: none.

    `new`: that file, open, which says what the disk would read as then. The name is stored as it is, so a relative one
    counts from the directory of the image. The chain that `disk` was opened with stays open.

    `workers`: how many pieces are compared at a time, each with two buffers of 1 MiB. `progress(done, total)` is told
    bytes. Cancelled or failed: the disk reads as before, with the old backing file, and holds more by itself.
    Raises: PositionedError, whose `source` is 0 for the old chain and 1 for the new one; as `change_backing_file`.
    """
    if (new is None) != (filename is None):
        raise ValueError("the new backing file goes with its name")
    length = disk.length
    comparing = _Comparing(disk, new, length, progress)
    async with aclosing(_stretches(disk, new)) as stretches:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(comparing.work(stretches))
        except BaseExceptionGroup as errors:
            raise _first_failure(errors) from None
    await disk.flush()
    await disk.change_backing_file(filename, format)


class _Comparing:
    """One rebase under way. Its workers take pieces of at most `BUFFER` bytes from the same stretches."""

    def __init__(
        self,
        disk: BlockBackend,
        new: BlockBackend | None,
        length: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.disk, self.new, self.length, self.progress = disk, new, length, progress
        self.unit = max(disk.node.driver.cluster_size or 0, SECTOR)
        self.backed = disk.node.below.length if disk.node.below is not None else 0
        self.rest: _Stretch | None = None
        """What is left of the stretch that pieces are cut from."""
        self.next_piece = asyncio.Lock()
        self.stored: asyncio.Future[None] | None = None
        """Done when what the piece taken last needs is stored: in order, so that the overlay is not fragmented."""
        self.done = 0

    async def work(self, stretches: AsyncGenerator[_Stretch, None]) -> None:
        """Take pieces until there are none. Raises: PositionedError."""
        old, new = aligned_buffer(BUFFER), aligned_buffer(BUFFER)
        while True:
            async with self.next_piece:
                piece = await self._next(stretches)
                before, stored = self.stored, asyncio.get_running_loop().create_future()
                self.stored = stored
            try:
                if piece is None:
                    return
                if not piece.agrees:
                    await self._compare(piece, old[: piece.nbytes], new[: piece.nbytes], before)
                elif before is not None:
                    await asyncio.wait((before,))
            finally:
                if not stored.done():
                    stored.set_result(None)
            self.done += piece.nbytes
            if self.progress is not None:
                self.progress(self.done, self.length)

    async def _next(self, stretches: AsyncGenerator[_Stretch, None]) -> _Stretch | None:
        whole = self.rest if self.rest is not None else await anext(stretches, None)
        self.rest = None
        if whole is None:
            return None
        nbytes = BUFFER - whole.offset % BUFFER
        if nbytes >= whole.nbytes or whole.agrees:
            return whole
        self.rest = whole._replace(offset=whole.offset + nbytes, nbytes=whole.nbytes - nbytes)
        return whole._replace(nbytes=nbytes)

    async def _compare(
        self, piece: _Stretch, old: memoryview, new: memoryview, before: "asyncio.Future[None] | None"
    ) -> None:
        """Store in the overlay the clusters of a piece that would read otherwise, when those `before` are stored."""
        import numpy as np

        offset, nbytes = piece.offset, piece.nbytes
        await self._read(self.disk, 0, offset, old, piece.old)
        await self._read(self.new, 1, offset, new, piece.new)
        differ = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
        if before is not None:
            await asyncio.wait((before,))  # cancelled: it is another worker's, and goes on
        # Copy-on-read takes whole clusters: ask for each one once.
        clusters = np.unique((differ + offset) // self.unit).tolist()
        for begin, end in _runs(clusters):
            first, stop = max(begin * self.unit, offset), min(end * self.unit, offset + nbytes)
            flags = REQ_COPY_ON_READ | (REQ_ZEROES_AS_DATA if first < self.backed else 0)
            await self._read(self.disk, 0, first, old[first - offset : stop - offset], _UNKNOWN, flags)

    async def _read(
        self, disk: BlockBackend | None, number: int, offset: int, view: memoryview, known: int, flags: int = 0
    ) -> None:
        nbytes = 0 if known & _ZERO or disk is None else min(len(view), max(disk.length - offset, 0))
        if nbytes and disk is not None:
            try:
                await disk.readinto(offset, view[:nbytes], flags)
            except (OSError, BlockError) as error:
                raise PositionedError("write" if flags else "read", offset, error, source=number) from error
        view[nbytes:] = bytes(len(view) - nbytes)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Runs of numbers that follow each other: the first, and the one behind the last."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _first_failure(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    failures = [error for error in errors.exceptions if isinstance(error, PositionedError)]
    return min(failures, key=lambda error: error.offset) if failures else errors.exceptions[0]


# -- what is known of both chains ------------------------------------------------------------------------------------


async def _stretches(disk: BlockBackend, new: BlockBackend | None) -> AsyncGenerator[_Stretch, None]:
    """What both chains say, cut where either changes, up to the end of the disk. Raises: PositionedError."""
    shared = _shared(disk.node, new.node) if new is not None else (None, None)
    length = disk.length
    async with aclosing(_known(disk, 0, shared[0])) as old_runs, aclosing(_known(new, 1, shared[1])) as new_runs:
        sources = (old_runs, new_runs)
        runs = [await _next(source, length) for source in sources]
        at = 0
        while at < length:
            stop = min(length, *(end for end, _ in runs))
            if stop > at:
                yield _Stretch(at, stop - at, runs[0][1], runs[1][1])
                at = stop
            for number, (end, _) in enumerate(runs):
                if end <= at:
                    runs[number] = await _next(sources[number], length)


async def _next(runs: AsyncGenerator[tuple[int, int], None], length: int) -> tuple[int, int]:
    """The next run. Behind the end of its backing file the disk reads as zeroes."""
    run = await anext(runs, None)
    return run if run is not None else (length, _ZERO)


async def _known(
    disk: BlockBackend | None, number: int, shared: BlockNode | None
) -> AsyncGenerator[tuple[int, int], None]:
    """Runs of one chain: where each ends, and what is known of it. `shared`: the first layer that both chains have.

    Raises: PositionedError.
    """
    if disk is None:
        return
    always = 0
    if shared is disk.node:
        always, shared = _SHARED, None
    end = 0
    try:
        async with aclosing(disk.extent_batches(base=shared)) as batches:
            async for batch in batches:
                columns = (batch.lengths, batch.flags, batch.depth)
                for nbytes, flags, depth in zip(*(column.tolist() for column in columns), strict=True):
                    end += nbytes
                    if depth == 1 and not number:
                        known = _OWN
                    elif flags & ZERO:
                        known = _ZERO
                    else:
                        known = _SHARED if shared is not None and not depth else _UNKNOWN
                    yield end, known | always
    except (OSError, BlockError) as error:
        raise PositionedError("status", end, error, source=number) from error


def _shared(top: BlockNode, new: BlockNode) -> tuple[BlockNode | None, BlockNode | None]:
    """The first layer below `top`, and the one in the chain of `new`, from which on both are of the same files."""
    found: tuple[BlockNode | None, BlockNode | None] = (None, None)
    for old_layer, new_layer in zip(reversed(_layers(top.below)), reversed(_layers(new)), strict=False):
        if _file(old_layer) is None or _file(old_layer) != _file(new_layer):
            break
        found = (old_layer, new_layer)
    return found


def _layers(node: BlockNode | None) -> list[BlockNode]:
    found = []
    while node is not None:
        found.append(node)
        node = node.below
    return found


def _file(layer: BlockNode) -> tuple[object, ...] | None:
    """What tells a layer from others: its format, and the file that it lies in. None: nobody knows."""
    file = layer.unfiltered.file
    identity = file.node.driver.identity if file is not None else None
    if layer.unfiltered is not layer or identity is None or layer.options.keys() - {"driver", "file", "backing"}:
        return None
    return layer.driver.name, identity
