"""What is in a whole range of a chain, in batches of NumPy arrays.

Each layer keeps a cursor: the batch it answered last, and how much of it is used up. It is asked again only when that
is used up, so the cost grows with the sum of the layers' runs, not with runs times layers. Layers are asked at the same
time as soon as one of them suspends. A layer is asked for nothing before the first byte that those above leave open,
and an error there counts only if it is about such a byte.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aioblock.base.errors import BlockError, NotSupported
from aioblock.base.flags import ALLOCATED, DATA, EOF, RAW, RECURSE, ZERO
from aioblock.blockio.fold import ChainExtents, Fold
from aioblock.blockio.recursion import look_into_files
from aioblock.blockio.request import aligned, check_range, refresh_length
from aioblock.blockio.status import WINDOW, ask_driver, block_status, decided, layers
from aioblock.core.eager import Finished, settle, start
from aioblock.core.extents import ExtentBatch
from aioblock.core.io import BlockIO, Status
from aioblock.core.node import BlockNode
from aioblock.core.statistics import Statistics

__all__ = ["ChainExtents", "chain_extents", "layer_extents"]

RUNS_A_BATCH = 4096
"""How many runs are asked one by one before a batch is handed on, of drivers that answer for one run at a time."""


async def layer_extents(node: BlockNode, offset: int, nbytes: int, want_zero: bool = True) -> ExtentBatch:
    """The runs of one layer from `offset` on: at least one, at most up to the end of the range or of the layer.

    The flags are those of `block_status`, EOF left out. Past the end of the layer: an empty batch.
    Raises: OSError.
    """
    check_range(node, offset, nbytes)
    ticket = node.requests.begin()
    try:
        nbytes = min(nbytes, await refresh_length(node) - offset)
        if nbytes <= 0:
            return ExtentBatch.of_runs(offset, [])
        if node.has_extents and (batch := await _ask_driver(node, offset, nbytes, want_zero)) is not None:
            return batch
        return await _one_by_one(node, offset, nbytes, want_zero)
    finally:
        node.requests.end(ticket)


async def _ask_driver(node: BlockNode, offset: int, nbytes: int, want_zero: bool) -> ExtentBatch | None:
    """The driver's own batch, with what the files below say of it; None where it has none."""
    begin, stop = aligned(node, offset, nbytes)
    try:
        batch = await node.driver.extents(begin, stop - begin, want_zero)
    except NotSupported:
        return None
    batch = _cut(batch, offset, offset + nbytes)
    if not len(batch.lengths):
        raise AssertionError(f"driver '{node.driver.name}' answered for no bytes at {offset}")
    if (batch.flags & RAW).any():
        return await _one_by_one(node, offset, batch.nbytes, want_zero)
    if want_zero and (batch.flags & RECURSE).any():
        batch = await look_into_files(batch, layer_extents)
    _decide(node, batch, want_zero)
    return batch


async def _one_by_one(node: BlockNode, offset: int, nbytes: int, want_zero: bool) -> ExtentBatch:
    """A batch out of single answers. A layer that lies in its child as it is answers with the child's batch."""
    answer = await ask_driver(node, offset, nbytes, want_zero)
    if answer.flags & RAW and answer.file is not None:
        batch = await layer_extents(answer.file.node, answer.map, answer.pnum, want_zero)
        if len(batch.lengths):
            return _moved(batch, offset, answer.file)
    run = await decided(node, offset, answer, want_zero)
    runs = [run._replace(flags=run.flags & ~EOF)]
    at, end = offset + run.pnum, offset + nbytes
    while at < end and len(runs) < RUNS_A_BATCH:
        try:
            run = await block_status(node, at, end - at, want_zero)
        except OSError:
            break  # it comes again when that run is asked for: perhaps it never is
        if not run.pnum:
            break
        runs.append(run._replace(flags=run.flags & ~EOF))
        at += run.pnum
    return ExtentBatch.of_runs(offset, runs)


def _moved(batch: ExtentBatch, offset: int, file: BlockIO) -> ExtentBatch:
    """The batch of a child as that of the parent, where the child's bytes begin at `offset`."""
    if not file.node.is_protocol:
        return replace(batch, offset=offset)
    index = np.where(batch.file_index < 0, len(batch.files), batch.file_index).astype(np.int8)
    return replace(batch, offset=offset, file_index=index, files=(*batch.files, file))  # its bytes lie in itself


def _cut(batch: ExtentBatch, offset: int, end: int) -> ExtentBatch:
    """The part of a batch between `offset` and `end`; the arrays are new where anything is cut."""
    stops = batch.offset + np.cumsum(batch.lengths)
    starts = stops - batch.lengths
    first = int(np.searchsorted(stops, offset, "right"))
    last = int(np.searchsorted(starts, end, "left"))
    lengths = batch.lengths[first:last].copy()
    where = batch.map[first:last].copy()
    if len(lengths):
        skipped = offset - int(starts[first])
        lengths[0] -= skipped
        where[0] += skipped
        lengths[-1] -= max(int(stops[last - 1]) - end, 0)
    return ExtentBatch(
        offset, lengths, batch.flags[first:last].copy(), where, batch.file_index[first:last].copy(), batch.files
    )


def _decide(node: BlockNode, batch: ExtentBatch, want_zero: bool) -> None:
    """Step 6 of `block_status` over a batch, in place: ALLOCATED, and zeroes where nothing lies below."""
    flags = batch.flags
    flags &= np.uint8(0xFF & ~(RECURSE | EOF))
    decided = (flags & (DATA | ZERO)) != 0
    flags |= decided * np.uint8(ALLOCATED)
    if not node.driver.supports_backing:
        return
    if node.backing is None:
        flags |= ~decided * np.uint8(ZERO)
    elif want_zero:
        starts = batch.offset + np.cumsum(batch.lengths) - batch.lengths
        flags |= (~decided & (starts >= node.backing.node.length)) * np.uint8(ZERO)


class _Cursor:
    """Where one layer is in a walk: the batch it answered last."""

    __slots__ = ("asked", "depth", "end", "flags", "index", "map", "node", "owners", "starts")

    starts: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]
    map: npt.NDArray[np.int64]
    index: npt.NDArray[np.int8]
    owners: tuple[BlockNode, ...]

    def __init__(self, node: BlockNode, depth: int) -> None:
        self.node = node
        self.depth = depth
        self.end = -1
        self.asked = (-1, -1)
        """Offset and end of the question asked last."""

    def covers(self, offset: int) -> bool:
        """Whether the batch answered last says what is at `offset`."""
        return offset < self.end and bool(self.starts[0] <= offset)

    def ends_before(self, offset: int) -> bool:
        """Whether the layer is known by its length to have nothing there."""
        return self.node.length <= offset and not self.node.variable_length

    async def ask(self, offset: int, end: int, want_zero: bool) -> None:
        """Take the layer's batch at `offset`. Failed or cancelled: the old one stays."""
        self.asked = offset, end
        self._take(await layer_extents(self.node, offset, end - offset, want_zero), end)

    def ended(self, offset: int, end: int) -> None:
        """Behind the end of the layer all reads as zeroes, as if it decided that."""
        self._take(ExtentBatch.of_runs(offset, []), end)

    def _take(self, batch: ExtentBatch, end: int) -> None:
        if not len(batch.lengths):
            batch = ExtentBatch.of_runs(batch.offset, [Status(ZERO | ALLOCATED, end - batch.offset)])
        self.starts = batch.offset + np.cumsum(batch.lengths) - batch.lengths
        self.end = batch.offset + batch.nbytes
        self.flags, self.map, self.index = batch.flags, batch.map, batch.file_index
        self.owners = tuple(file.node for file in batch.files)
        if self.node.is_protocol and not self.owners:
            self.owners = (self.node,)
            self.index = np.zeros(len(self.flags), np.int8)

    def within(self, offset: int, end: int) -> tuple[int, int]:
        """Which entries of the batch lie in the range, as a slice."""
        first = int(np.searchsorted(self.starts, offset, "right")) - 1
        return max(first, 0), int(np.searchsorted(self.starts, end, "left"))


_Question = Finished[None] | asyncio.Task[None]

_KNOWN: Finished[None] = Finished()
"""No question was needed: what the layer answered last says enough."""

_ENDED: Finished[None] = Finished()
"""No question was needed: the layer ends before."""


class _ChainWalk:
    """The cursors of all layers of one walk, and the fold of what they say."""

    def __init__(self, chain: Iterator[BlockNode], want_zero: bool, window: int, statistics: Statistics) -> None:
        self.cursors = [_Cursor(node, depth) for depth, node in enumerate(chain, 1)]
        self.want_zero, self.window, self.stats = want_zero, window, statistics

    async def step(self, offset: int, end: int) -> ChainExtents:
        """The next batch, from `offset` on."""
        asked: list[tuple[_Cursor, _Question]] = []
        following = iter(self.cursors)
        found = Fold(offset, end)
        try:
            while found.undecided and (asked or self._ask(following, asked, found)):
                cursor, question = asked[0]
                if not isinstance(question, Finished) and not question.done():
                    while len(asked) < self.window and self._ask(following, asked, found):
                        pass
                    await asyncio.wait((question,))
                del asked[0]
                try:
                    question.result()
                except (OSError, BlockError) as error:
                    if not await self._ask_for_less(cursor, found, error):
                        continue
                if question is _ENDED:
                    self.stats.probes_short_circuited += len(self.cursors) - cursor.depth + 1
                found.add(cursor)
        finally:
            self.stats.probes_cancelled += sum(question not in (_KNOWN, _ENDED) for _, question in asked)
            await settle([question for _, question in asked if not isinstance(question, Finished)])
        return found.result()

    def _ask(self, following: Iterator[_Cursor], asked: list[tuple[_Cursor, _Question]], found: "Fold") -> bool:
        """Ask the next layer about what is still open, unless its last answer says it. False: no layer can matter."""
        if asked and asked[-1][1] is _ENDED:
            return False
        cursor = next(following, None)
        if cursor is None:
            return False
        offset, end = found.span()
        if end == found.end:
            end = found.limit  # a short batch of a layer above must not make this one answer for each of its runs
        question: _Question = _KNOWN
        if not cursor.covers(offset):
            if cursor.depth > 1 and cursor.ends_before(offset):
                cursor.ended(offset, end)
                question = _ENDED
            else:
                self.stats.probes += 1
                question = start(cursor.ask(offset, end, self.want_zero))
                self.stats.probes_immediate += isinstance(question, Finished)
        asked.append((cursor, question))
        return True

    async def _ask_for_less(self, cursor: _Cursor, found: "Fold", error: Exception) -> bool:
        """The layer failed over a range in parts of which a layer above may decide: ask for the first open run alone.

        That fails too: what lies before it is answered still, and then it is raised. False: nothing is open any more.
        """
        offset, end = found.first_run()
        if cursor.asked != (offset, end):
            self.stats.probes += 1
            try:
                await cursor.ask(offset, end, self.want_zero)
            except (OSError, BlockError) as again:
                error = again
            else:
                return True
        if offset == found.offset:
            raise error
        found.cut(offset)
        return False


async def chain_extents(
    top: BlockNode,
    offset: int = 0,
    nbytes: int | None = None,
    *,
    base: BlockNode | None = None,
    include_base: bool = False,
    want_zero: bool = True,
    window: int = WINDOW,
    statistics: Statistics | None = None,
) -> AsyncGenerator[ChainExtents, None]:
    """Batches that together cover the range (None: up to the end) of the chain from `top` down to `base`.

    Memory is bounded by one batch a layer. EOF is set on the run that reaches the end of the top.
    Raises: OSError of a layer whose answer is needed.
    """
    check_range(top, offset, nbytes or 0)
    length = await refresh_length(top)
    end = length if nbytes is None else min(offset + nbytes, length)
    walk = _ChainWalk(layers(top, base, include_base), want_zero, max(window, 1), statistics or Statistics())
    while offset < end:
        batch = await walk.step(offset, end)
        if offset + batch.nbytes == length:
            batch.flags[-1] |= EOF
        yield batch
        offset += batch.nbytes
        await asyncio.sleep(0)  # a long walk over cached tables lets others have a turn
