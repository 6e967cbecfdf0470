"""Convert: copy the content of disks into another one, leaving out what needs no copy.

A fixed number of copiers share one plan (`jobs.plan`), so memory is bounded by their buffers. Each takes the next
piece, reads it while others read theirs, and writes it; writes begin in the order of the plan unless the caller frees
them of that. Zeroes in what was read are not written as data.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from aioblock.base.buffers import aligned_buffer
from aioblock.base.errors import BlockError, NotSupported
from aioblock.base.flags import REQ_COMPRESSED, REQ_MAY_UNMAP, REQ_NO_FALLBACK
from aioblock.core.eager import Finished, settle, start
from aioblock.core.node import BlockNode
from aioblock.graph.backend import BlockBackend
from aioblock.jobs.errors import PositionedError
from aioblock.jobs.plan import COPY, SECTOR, SKIP, Piece, Plan
from aioblock.jobs.sparse import parts

__all__ = ["convert"]

BUFFER = 2 << 20
"""How much one copier reads at a time: long enough for the storage, short enough to have many of them."""
COMPRESSED_TOGETHER = 1 << 20
"""The same where it is compressed, for which one processor then needs some milliseconds. Whole clusters."""


async def convert(
    sources: Sequence[BlockBackend],
    target: BlockBackend,
    *,
    compressed: bool = False,
    sparse: int = 4096,
    keep_backing: bool = False,
    base: BlockNode | None = None,
    skip: int = 0,
    nbytes: int | None = None,
    target_is_zero: bool = False,
    in_order: bool = True,
    offload: bool = False,
    workers: int = 8,
    bytes_per_second: int = 0,
    progress: Callable[[int, int], None] | None = None,
    salvage: Callable[[int, OSError], None] | None = None,
) -> None:
    """Copy `sources` to the beginning of `target`, which is at least as long as all of them together.

    They lie one behind the other, each from a multiple of 512 bytes on; what is left up to there becomes zeroes. What
    the target holds behind them stays.

    `compressed`: store clusters compressed. `sparse`: this many zero bytes in a row are not written as data; 0: all is
    written. `keep_backing`: what the layers of the only source above `base` (None: its top layer) leave open is left to
    the target's backing file, or to what the target holds. `skip`, `nbytes`: only this part of the only source, as far
    as there is one.
    `target_is_zero`: the target is known to read as zeroes. `in_order`: writes begin in the order of their offsets.
    `offload`: data is copied by the storage where it can (files of one filesystem, which may come to share blocks;
    plain clusters of qcow2), and then nobody looks for zeroes in it; what cannot be, is read and written.
    `workers`: how many pieces are under way at a time, each with a buffer of 2 MiB. `bytes_per_second`: no faster than
    this; 0: as fast as it goes. `progress(done, total)` is told bytes that are copied. `salvage(offset, error)`: what
    cannot be read becomes zeroes, and is told here.

    Everything written is flushed at the end. Cancelled or failed: the target holds a part; nothing is left running.
    Raises: PositionedError; OSError of the final flush; NotSupported where the target cannot store compressed data.
    """
    if (keep_backing or skip or nbytes is not None) and len(sources) != 1:
        raise ValueError("only one source can leave something to the backing file, or be copied in part")
    unit = 1
    end = 0 if nbytes is not None or skip else min(-(-_length(sources) // SECTOR) * SECTOR, target.length)
    if compressed and offload:
        raise ValueError("the storage does not compress")
    if offload:
        unit = target.node.driver.cluster_size or 1  # it copies no parts of new clusters
    if compressed:
        unit = target.node.driver.cluster_size or 0
        if not unit:
            raise NotSupported("Compression not supported for this file format")
        end = min(-(-_length(sources) // unit) * unit, target.length)
    wanted_zero = not target_is_zero and not keep_backing and sparse
    if wanted_zero and nbytes is None and not skip:
        target_is_zero = await _made_zero(target, max(_length(sources), end))
    plan = Plan(
        sources,
        longest=max((COMPRESSED_TOGETHER if compressed else BUFFER) // unit, 1) * unit,
        granularity=unit,
        keep_backing=keep_backing,
        base=base,
        skip=skip,
        longest_part=nbytes,
        end=end,
        clear_until=_backed(target, keep_backing) if target_is_zero and (sparse or keep_backing) else None,
        copy_zeroes=not sparse,
        salvage=salvage is not None,
    )
    copying = _Copying(
        plan,
        target,
        compressed=compressed,
        sparse=sparse,
        in_order=in_order,
        offload=offload,
        target_is_zero=target_is_zero and not keep_backing,
        rate=bytes_per_second,
        progress=progress,
        salvage=salvage,
    )
    await copying.run(workers)
    await target.flush()


def _length(sources: Sequence[BlockBackend]) -> int:
    return Plan(sources, longest=BUFFER).nbytes


def _backed(target: BlockBackend, keep_backing: bool) -> int:
    """Where the backing file of the target ends: behind it, what is not written reads as zeroes."""
    below = target.node.below if keep_backing else None
    return below.length if below is not None else 0


async def _made_zero(target: BlockBackend, nbytes: int) -> bool:
    """Whether so much of the target reads as zeroes now, where that is possible without writing them."""
    try:
        await target.pwrite_zeroes(0, nbytes, REQ_MAY_UNMAP | REQ_NO_FALLBACK)
    except NotSupported:
        return False
    return True


@dataclass(slots=True)
class _Copying:
    """One conversion under way."""

    plan: Plan
    target: BlockBackend
    compressed: bool
    sparse: int
    in_order: bool
    offload: bool
    target_is_zero: bool
    rate: int
    progress: Callable[[int, int], None] | None
    salvage: Callable[[int, OSError], None] | None
    total: int = 0
    """How many bytes will be copied; only known where progress is told."""
    done: int = 0
    read: int = 0
    began: float = 0.0
    next_piece: asyncio.Lock = field(default_factory=asyncio.Lock)
    grain: int = 0
    """The unit in which zeroes are looked for: a power of two, at most `sparse` unless the target needs it."""
    least: int = 0
    """How many zero bytes in a row are not written as data."""
    turn: "asyncio.Future[None] | None" = None
    """Done when the writes of the last piece that was handed out have begun."""

    def __post_init__(self) -> None:
        if self.compressed:  # a cluster is data or it is not, the last one too, which may be short
            self.grain, self.least = self.plan.granularity, 1
        else:
            alignment = self.target.node.limits.request_alignment
            self.grain = max(1 << (self.sparse.bit_length() - 1) if self.sparse else 0, alignment, SECTOR)
            self.least = self.sparse

    async def run(self, workers: int) -> None:
        self.began = asyncio.get_running_loop().time()
        if self.progress is not None:
            async with aclosing(self.plan.pieces()) as pieces:
                self.total = sum([piece.nbytes async for piece in pieces if piece.fate == COPY])
        async with aclosing(self.plan.pieces()) as pieces:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(workers):
                        group.create_task(self._work(pieces))
            except BaseExceptionGroup as errors:
                raise _first_failure(errors) from None

    async def _work(self, pieces: AsyncGenerator[Piece, None]) -> None:
        loop = asyncio.get_running_loop()
        buffer = aligned_buffer(self.plan.longest)
        while True:
            async with self.next_piece:
                piece = await anext(pieces, None)
                while piece is not None and piece.fate == SKIP:
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                before, mine = self.turn, loop.create_future()
                self.turn = mine
            if not self.in_order:
                before = None
            if piece.fate == COPY:
                if not self.offload or not await self._copy_inside(piece, before, mine):
                    view = buffer[: piece.nbytes]
                    await self._read(piece.offset, view)
                    await self._account(piece)
                    if before is not None:
                        await before
                    await self._write(piece, view, mine)
                self.done += piece.nbytes
                if self.progress is not None:
                    self.progress(self.done, self.total)
            else:
                if before is not None:
                    await before
                await self._clear(piece.offset, piece.nbytes, mine)

    async def _account(self, piece: Piece) -> None:
        """The piece is about to be written; wait as long as the rate asks for."""
        self.read += piece.nbytes
        if self.rate:
            await self._slow_down()

    async def _copy_inside(
        self, piece: Piece, before: "asyncio.Future[None] | None", begun: "asyncio.Future[None]"
    ) -> bool:
        """Have the storage copy a piece. False: it cannot, perhaps it has copied a part."""
        found = self._source_of(piece)
        if found is None:
            return False
        begin, source = found
        await self._account(piece)
        if before is not None:
            await before
        request = start(source.copy_range(piece.offset - begin, piece.nbytes, self.target, piece.offset))
        if not isinstance(request, Finished):
            _has_begun(begun)
        try:
            await self._settled(request)
        except NotSupported:
            self.read -= piece.nbytes
            return False
        except (OSError, BlockError) as error:
            raise PositionedError("write", piece.offset, error) from error
        _has_begun(begun)
        return True

    async def _slow_down(self) -> None:
        """Wait until the average since the beginning is no more than was asked for."""
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(max(self.began + self.read / self.rate - now, 0))

    def _source_of(self, piece: Piece) -> tuple[int, BlockBackend] | None:
        """Where the source begins that holds all of a piece, and the source; None where there is none."""
        for begin, source in zip(self.plan.begins, self.plan.sources, strict=True):
            if begin <= piece.offset and piece.offset + piece.nbytes <= begin + source.length:
                return begin, source
        return None

    # -- read --------------------------------------------------------------------------------------------------------

    async def _read(self, offset: int, view: memoryview) -> None:
        """Fill `view` from the sources that lie there."""
        for number, (begin, source) in enumerate(zip(self.plan.begins, self.plan.sources, strict=True)):
            first, stop = max(offset, begin), min(offset + len(view), begin + source.length)
            if first >= stop:
                continue
            if first > offset:  # between two sources
                view[: first - offset] = bytes(first - offset)
            try:
                await self._read_source(source, begin, first - begin, view[first - offset : stop - offset])
            except (OSError, BlockError) as error:
                raise PositionedError("read", first, error, source=number) from error
            view, offset = view[stop - offset :], stop
        view[:] = bytes(len(view))

    async def _read_source(self, source: BlockBackend, begin: int, offset: int, view: memoryview) -> None:
        try:
            await source.readinto(offset, view)
        except OSError as error:
            if self.salvage is None:
                raise
            if len(view) > SECTOR:  # find the part that cannot be read
                half = -(-len(view) // (2 * SECTOR)) * SECTOR
                await self._read_source(source, begin, offset, view[:half])
                await self._read_source(source, begin, offset + half, view[half:])
                return
            view[:] = bytes(len(view))
            self.salvage(begin + offset, error)

    # -- write -------------------------------------------------------------------------------------------------------

    async def _write(self, piece: Piece, view: memoryview, begun: "asyncio.Future[None]") -> None:
        """Write what was read; zeroes among it in the way of `_clear`."""
        if self.sparse:
            *others, last = parts(piece.offset, view, self.grain, self.least)
        else:
            others, last = [], (0, len(view), True)
        for offset, end, is_data in others:
            await self._put(piece.offset + offset, view[offset:end], is_data, None)
        offset, end, is_data = last
        await self._put(piece.offset + offset, view[offset:end], is_data, begun)

    async def _put(self, offset: int, view: memoryview, is_data: bool, begun: "asyncio.Future[None] | None") -> None:
        if not is_data:
            await self._clear(offset, len(view), begun)
            return
        flags = REQ_COMPRESSED if self.compressed else 0
        await self._carry_out(offset, start(self.target.pwrite(offset, view, flags)), begun)

    async def _clear(self, offset: int, nbytes: int, begun: "asyncio.Future[None] | None") -> None:
        """Let the range read as zeroes."""
        if self.target_is_zero:
            _has_begun(begun)
            return
        await self._carry_out(offset, start(self.target.pwrite_zeroes(offset, nbytes, REQ_MAY_UNMAP)), begun)

    @staticmethod
    async def _settled(request: "Finished[None] | asyncio.Task[None]") -> None:
        """The end of what has begun, also where this is cancelled."""
        if isinstance(request, Finished):
            request.result()
            return
        try:
            await request
        finally:
            await settle([request])

    async def _carry_out(
        self, offset: int, request: "Finished[None] | asyncio.Task[None]", begun: "asyncio.Future[None] | None"
    ) -> None:
        """See a write to its end that has begun; the next piece may begin its own meanwhile."""
        _has_begun(begun)
        try:
            await self._settled(request)
        except (OSError, BlockError) as error:
            raise PositionedError("write", offset, error) from error


def _has_begun(begun: "asyncio.Future[None] | None") -> None:
    """The writes of a piece have begun: the next piece may begin its own."""
    if begun is not None and not begun.done():
        begun.set_result(None)


def _first_failure(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that is told: that of the lowest offset where several copiers failed."""
    failures = [error for error in errors.exceptions if isinstance(error, PositionedError)]
    return min(failures, key=lambda error: error.offset) if failures else errors.exceptions[0]
