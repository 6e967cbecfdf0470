"""What the layers of a chain say of one range, laid over each other from the top down, as NumPy arrays.

Runs are kept as they are as long as they are few. Where they become so many that it pays, the range is divided into
cells, all of one length: laying a layer over that takes no search, and only time for the runs that say something. So it
is with layers whose clusters lie scattered over one another.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from aioblock.base.flags import ALLOCATED, OFFSET_VALID
from aioblock.core.node import BlockNode

__all__ = ["Answer", "ChainExtents", "Fold"]

CELLS_A_RUN: Final = 16
"""How many cells a run may become on the average so that dividing pays."""

_Flags = npt.NDArray[np.uint8]
_Int16 = npt.NDArray[np.int16]
_Int64 = npt.NDArray[np.int64]


@dataclass(slots=True)
class ChainExtents:
    """What a chain says of runs that follow each other without a gap, beginning at `offset`. One entry a run.

    `depth`: which layer decided, 1 = the top, 0 = none did. `map` counts where OFFSET_VALID is set; it lies in
    `files[file_index]`. Neighbours that say the same are merged inside a batch, not across batches.
    """

    offset: int
    lengths: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]
    map: npt.NDArray[np.int64]
    depth: npt.NDArray[np.int16]
    file_index: npt.NDArray[np.int16]
    files: tuple[BlockNode, ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """How many bytes the runs cover together."""
        return int(self.lengths.sum())


class Answer(Protocol):
    """What a layer says of a range: runs that begin at `starts`, the last one up to `end`."""

    depth: int
    end: int
    starts: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]
    map: npt.NDArray[np.int64]
    index: npt.NDArray[np.int8]
    owners: tuple[BlockNode, ...]

    def within(self, offset: int, end: int) -> tuple[int, int]:
        """Which runs lie in a range, as a slice."""


class Fold:
    """What the layers above said of `offset` to `end`; `end` moves down to what every layer asked has answered."""

    def __init__(self, offset: int, end: int) -> None:
        self.offset, self.end = offset, end
        self.limit = end
        """Where the walk ends."""
        self.starts = np.array([offset], np.int64)
        self.flags = np.zeros(1, np.uint8)
        self.map = np.zeros(1, np.int64)
        self.depth = np.zeros(1, np.int16)
        self.index = np.full(1, -1, np.int16)
        self.files: list[BlockNode] = []
        self.cell = 0
        """Not 0: every run is cut into cells of so many bytes, a power of two."""
        self.undecided = True

    def _open(self) -> npt.NDArray[np.bool_]:
        still_open: npt.NDArray[np.bool_] = self.flags & ALLOCATED == 0
        return still_open

    def _stop(self, run: int) -> int:
        return int(self.starts[run + 1]) if run + 1 < len(self.starts) else self.end

    def span(self) -> tuple[int, int]:
        """From the first byte that is still open to behind the last one."""
        runs = self._open().tobytes()  # to be searched from behind, too
        return int(self.starts[runs.index(1)]), self._stop(runs.rindex(1))

    def first_run(self) -> tuple[int, int]:
        """The first bytes that are still open, as far as they lie together."""
        runs = np.flatnonzero(self._open())
        apart = np.flatnonzero(np.diff(runs) > 1)
        last = runs[apart[0]] if len(apart) else runs[-1]
        return int(self.starts[runs[0]]), self._stop(int(last))

    def cut(self, end: int) -> None:
        """Forget what lies at `end` and behind it."""
        keep = int(np.searchsorted(self.starts, end, "left"))
        self.starts, self.flags, self.map = self.starts[:keep], self.flags[:keep], self.map[:keep]
        self.depth, self.index, self.end = self.depth[:keep], self.index[:keep], end
        self.undecided = bool(self._open().any())

    def add(self, layer: Answer) -> None:
        """Let the next layer decide what those above have left open."""
        if layer.end < self.span()[1]:
            self.cut(layer.end)
        first, last = layer.within(self.offset, self.end)
        runs = slice(first, last)
        starts, where = layer.starts[runs].copy(), layer.map[runs].copy()
        where[0] += self.offset - starts[0]
        starts[0] = self.offset
        owners = np.array([self._file(node) for node in layer.owners] + [-1], np.int16)
        below = starts, layer.flags[runs], where, owners[layer.index[runs]]
        if len(self.starts) == 1 and not self.flags[0] & ALLOCATED:
            self._take(*below, layer.depth)
        elif self._divide(starts):
            self._overlay(*below, min(layer.end, self.end), layer.depth)
        else:
            self._insert(*below, layer.depth)
        self.undecided = bool(self._open().any())

    def _take(self, starts: _Int64, flags: _Flags, where: _Int64, index: _Int16, depth: int) -> None:
        """Be what a layer says: nobody above said anything."""
        self.starts, self.flags, self.map, self.index = starts, flags.copy(), where, index
        self.depth = np.where(flags & ALLOCATED, depth, 0).astype(np.int16)

    def _insert(self, starts: _Int64, flags: _Flags, where: _Int64, index: _Int16, depth: int) -> None:
        """Add a layer run by run."""
        self.cell = 0
        decided = (self.flags & ALLOCATED) != 0
        # Boundaries of the lower layer count only where it is asked, so a decided run stays whole.
        place = np.searchsorted(self.starts, starts, "right")
        more = ~decided[place - 1] & (starts != self.starts[place - 1])
        place = place[more]
        above = np.insert(np.arange(len(self.starts)), place, place - 1)
        self.starts = np.insert(self.starts, place, starts[more])
        self.map, self.depth, self.index = self.map[above], self.depth[above], self.index[above]
        self.flags = self.flags[above]
        asked = np.flatnonzero(~decided[above])
        asked_at = self.starts[asked]
        below = np.searchsorted(starts, asked_at, "right") - 1
        self.map[asked] = where[below] + (asked_at - starts[below])
        self.index[asked] = index[below]
        self._say(asked, flags[below], depth)

    def _say(self, runs: npt.NDArray[np.intp], flags: _Flags, depth: int) -> None:
        self.flags[runs] = flags
        self.depth[runs] = np.where(flags & ALLOCATED, depth, 0)

    def _divide(self, starts: _Int64) -> bool:
        """Divide what is here into cells of one length, at whose bounds all runs of a layer begin, where that pays."""
        cell = min(_granularity(self.offset, starts), self.cell or _granularity(self.offset, self.starts))
        if cell == self.cell:
            return True
        count = -(-(self.end - self.offset) // cell)
        if count > CELLS_A_RUN * max(len(starts), len(self.starts)):
            return False
        parts = -(-np.diff(self.starts, append=self.end) // cell)
        source = np.repeat(np.arange(len(parts)), parts)
        divided = self.offset + np.arange(count) * cell
        self.map = self.map[source] + (divided - self.starts[source])
        self.flags, self.depth, self.index = self.flags[source], self.depth[source], self.index[source]
        self.starts, self.cell = divided, cell
        return True

    def _overlay(self, starts: _Int64, flags: _Flags, where: _Int64, index: _Int16, end: int, depth: int) -> None:
        """Add a layer cell by cell. Only those of its runs are looked at that say something."""
        self.flags *= self.flags & ALLOCATED != 0
        shift = self.cell.bit_length() - 1
        run = np.flatnonzero(flags != 0)
        cells = starts[run] - self.offset >> shift
        lengths = -(self.offset - np.append(starts[1:], end)[run] >> shift) - cells
        # `into`: how many cells behind the beginning of its run a cell lies.
        into = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        run, cells = np.repeat(run, lengths), np.repeat(cells, lengths) + into
        still_open = np.flatnonzero(self.flags[cells] & ALLOCATED == 0)
        run, cells, into = run[still_open], cells[still_open], into[still_open]
        self.map[cells] = where[run] + (into << shift)
        self.index[cells] = index[run]
        self._say(cells, flags[run], depth)

    def _file(self, node: BlockNode) -> int:
        if node not in self.files:
            self.files.append(node)
        return self.files.index(node)

    def result(self) -> ChainExtents:
        """The runs, neighbours that say the same merged."""
        lengths = np.diff(self.starts, append=self.end)
        flags, index = self.flags, self.index
        index = np.where(flags & OFFSET_VALID, index, -1).astype(np.int16)
        where = np.where(flags & OFFSET_VALID, self.map, 0)
        new = np.ones(len(flags), bool)
        new[1:] = (
            (flags[1:] != flags[:-1])
            | (self.depth[1:] != self.depth[:-1])
            | (index[1:] != index[:-1])
            | ((flags[1:] & OFFSET_VALID != 0) & (where[1:] != where[:-1] + lengths[:-1]))
        )
        at = np.flatnonzero(new)
        merged = np.diff(self.starts[at], append=self.end)
        return ChainExtents(self.offset, merged, flags[at], where[at], self.depth[at], index[at], tuple(self.files))


def _granularity(offset: int, starts: _Int64) -> int:
    """The largest power of two of which `offset` and all `starts` are multiples, up to 2**62."""
    bits = offset | int(np.bitwise_or.reduce(starts)) | 1 << 62
    return bits & -bits
