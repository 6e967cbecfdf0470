"""What a conversion does with which bytes: the runs of its sources, one after the other, as work for its copiers.

The sources lie behind each other in the target, each from a multiple of 512 bytes on. Their runs come in batches from
block status; neighbours with the same fate are joined, cut to whole clusters where the target can only take those, and
handed out in pieces of bounded size.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple, TypeAlias

from aioblock.base.errors import BlockError
from aioblock.base.flags import DATA, ZERO
from aioblock.core.node import BlockNode
from aioblock.graph.backend import BlockBackend
from aioblock.jobs.errors import PositionedError

__all__ = ["CLEAR", "COPY", "SECTOR", "SKIP", "Piece", "Plan"]

SECTOR: Final = 512

SKIP: Final = 0
"""Nothing is written: the target reads as it should already."""
CLEAR: Final = 1
"""It reads as zeroes."""
COPY: Final = 2
"""It is read and written."""

ONE_BY_ONE: Final = 256
"""How many runs of a source are asked for one by one; only who has more of them has to load NumPy, for 0.1 s."""

Run: TypeAlias = tuple[int, int, int]
"""Begin and end in the target, in bytes, and fate."""


class Piece(NamedTuple):
    """A part of the target, and what becomes of it. Bytes."""

    offset: int
    nbytes: int
    fate: int


class Plan:
    """How the runs of the sources become pieces.

    `longest`: no piece that is copied is longer; a multiple of `granularity`. `granularity`: every piece begins at a
    multiple of this and ends at one, or at the end of it all. `keep_backing`: what the layers of the source above
    `base` (None: its top layer) leave open is left open in the target too. `skip`: so much of the beginning of the only
    source is left out; what it has behind `longest_part` bytes from there too. `end`: the target is written up to there
    at least. `clear_until`: from there on zeroes need not be written. `copy_zeroes`: before that they are copied like
    data. `salvage`: where the status of a source cannot be asked, it is copied.
    """

    def __init__(
        self,
        sources: Sequence[BlockBackend],
        *,
        longest: int,
        granularity: int = 1,
        keep_backing: bool = False,
        base: BlockNode | None = None,
        skip: int = 0,
        longest_part: int | None = None,
        end: int = 0,
        clear_until: int | None = None,
        copy_zeroes: bool = False,
        salvage: bool = False,
    ) -> None:
        self.sources = sources
        self.begins: list[int] = []
        """Where each source lies in the target; the only one begins before it where a part is left out."""
        self.nbytes = 0
        """Where all of it ends."""
        for source in sources:
            self.begins.append(-(-self.nbytes // SECTOR) * SECTOR - skip)
            self.nbytes = max(self.begins[-1] + source.length, 0)
        if longest_part is not None:
            self.nbytes = min(self.nbytes, longest_part)
        self.data_end = self.nbytes
        """Where the last source ends, or the part of it."""
        self.nbytes = max(self.nbytes, end)
        self.longest = longest
        self.granularity = granularity
        self.keep_backing = keep_backing
        self.base = base
        self.clear_until = self.nbytes if clear_until is None else clear_until
        self.for_zeroes = COPY if copy_zeroes else CLEAR
        self.salvage = salvage

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """All pieces, in order and without a gap. Raises: PositionedError."""
        units = _WholeUnits(self.granularity, self.nbytes)
        alike, joined = _Joined(), _Joined()  # before they are cut to units, and behind that
        async with aclosing(self._batches()) as batches:
            async for runs in batches:
                for run in runs:
                    for part in self._zeroes_decided(run):
                        for whole in units.add(alike.add(part)):
                            for piece in self._cut(joined.add(whole)):
                                yield piece
        for whole in units.add(alike.rest()):
            for piece in self._cut(joined.add(whole)):
                yield piece
        for piece in self._cut(joined.rest()):
            yield piece

    async def _batches(self) -> AsyncGenerator[list[Run], None]:
        """All runs, where neighbours may have the same fate."""
        stop = 0
        for number, (begin, source) in enumerate(zip(self.begins, self.sources, strict=True)):
            if stop < begin:
                yield [(stop, begin, CLEAR)]
            stop = min(begin + source.length, self.data_end)
            at = max(begin, 0)
            while at < stop:
                try:
                    async with aclosing(self._runs_of(source, begin, at - begin, stop - at)) as batches:
                        async for runs in batches:
                            yield runs
                            at = runs[-1][1]
                except (OSError, BlockError) as error:
                    if not self.salvage:
                        raise PositionedError("status", at, error, source=number) from error
                    end = min(at + self.longest, stop)
                    yield [(at, end, COPY)]
                    at = end
        if stop < self.nbytes:
            yield [(stop, self.nbytes, CLEAR)]

    async def _runs_of(
        self, source: BlockBackend, begin: int, start: int, nbytes: int
    ) -> AsyncGenerator[list[Run], None]:
        base = (self.base or source.node.below) if self.keep_backing else None
        stop = start + nbytes
        for _ in range(ONE_BY_ONE):
            run = await source.block_status_above(base, start, stop - start)
            yield [(begin + start, begin + start + run.pnum, self._fate(run.flags))]
            start += run.pnum
            if start == stop:
                return
        import numpy as np

        async with aclosing(source.extent_batches(start, stop - start, base=base)) as batches:
            async for batch in batches:
                ends = begin + batch.offset + np.cumsum(batch.lengths)
                left_open = SKIP if self.keep_backing else COPY
                decided = (batch.flags & (DATA | ZERO)) != 0
                fates = np.where(batch.flags & ZERO, CLEAR, np.where(decided, COPY, left_open))
                last = np.ones(len(fates), bool)
                last[:-1] = fates[1:] != fates[:-1]
                stops = ends[last].tolist()
                yield list(zip([begin + batch.offset, *stops[:-1]], stops, fates[last].tolist(), strict=True))

    def _fate(self, flags: int) -> int:
        if flags & ZERO:
            return CLEAR
        return COPY if flags & DATA or not self.keep_backing else SKIP

    def _zeroes_decided(self, run: Run) -> Iterator[Run]:
        begin, end, fate = run
        if fate != CLEAR:
            yield run
            return
        if begin < self.clear_until:
            yield begin, min(end, self.clear_until), self.for_zeroes
        if end > self.clear_until:
            yield max(begin, self.clear_until), end, SKIP

    def _cut(self, run: Run | None) -> Iterator[Piece]:
        if run is None:
            return
        begin, end, fate = run
        while fate == COPY and end - begin > self.longest:
            stop = (begin // self.longest + 1) * self.longest
            yield Piece(begin, stop - begin, fate)
            begin = stop
        yield Piece(begin, end - begin, fate)


class _Joined:
    """Joins neighbours with the same fate."""

    def __init__(self) -> None:
        self._run: Run | None = None

    def add(self, run: Run) -> Run | None:
        """A run that is complete now, if there is one."""
        last = self._run
        if last is not None and last[2] == run[2]:
            self._run = (last[0], run[1], run[2])
            return None
        self._run = run
        return last

    def rest(self) -> Run | None:
        """The run that might have gone on."""
        return self._run


class _WholeUnits:
    """Cuts runs to whole units; a unit that holds several fates is copied."""

    def __init__(self, unit: int, total: int) -> None:
        self._unit, self._total = unit, total
        self._at = 0  # everything before has been handed on

    def add(self, run: Run | None) -> Iterator[Run]:
        """The runs of whole units that are complete now. Two that follow each other have different fates."""
        if run is None:
            return
        begin, end, fate = run
        if self._at < begin:  # the unit there began with another run
            stop = min(self._at + self._unit, self._total)
            if end < stop:
                return
            yield self._at, stop, COPY
            self._at = stop
        stop = end if end == self._total else end // self._unit * self._unit
        if stop > self._at:
            yield self._at, stop, fate
            self._at = stop
