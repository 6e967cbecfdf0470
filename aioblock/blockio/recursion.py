"""Holes inside allocated data: step 7 of `block_status` over a batch, where the file below is asked for whole spans."""

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from aioblock.base.errors import BlockError
from aioblock.base.flags import DATA, OFFSET_VALID, RECURSE, ZERO
from aioblock.core.extents import ExtentBatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioblock.core.node import BlockNode

__all__ = ["look_into_files"]

_MOST_RUNS: Final = 4096
"""How many runs are looked into at a time: the file may have many more."""
_GAP: Final = 4 << 20
"""Bytes between two runs in the file that are asked about too, rather than with a question more."""

_Integers = npt.NDArray[np.int64]


async def look_into_files(
    batch: ExtentBatch, ask: "Callable[[BlockNode, int, int], Awaitable[ExtentBatch]]"
) -> ExtentBatch:
    """The first runs of a batch, cut where the files below change between data and zeroes.

    `ask(node, offset, nbytes)`: `layer_extents`. It only adds knowledge, so errors of the files are ignored.
    """
    first = slice(0, _MOST_RUNS)
    batch = ExtentBatch(
        batch.offset, batch.lengths[first], batch.flags[first], batch.map[first], batch.file_index[first], batch.files
    )
    wanted = DATA | OFFSET_VALID | RECURSE
    into = ((batch.flags & wanted) == wanted) & (batch.file_index >= 0)
    for index, file in enumerate(batch.files):
        inside = into & (batch.file_index == index)
        if inside.any():
            edges, zero = await _zeroes(file.node, batch.map[inside], batch.lengths[inside], ask)
            pieces = _split(batch, inside, edges, zero)
            into = np.repeat(into, pieces.counts)
            batch = pieces.batch
    return batch


async def _zeroes(
    node: "BlockNode",
    starts: _Integers,
    lengths: _Integers,
    ask: "Callable[[BlockNode, int, int], Awaitable[ExtentBatch]]",
) -> tuple[_Integers, npt.NDArray[np.bool_]]:
    """Where the file changes between zeroes and all else, from 0 on, and whether it is zeroes from there on."""
    order = np.argsort(starts)
    begins, ends = starts[order], np.maximum.accumulate((starts + lengths)[order])
    apart = np.flatnonzero(begins[1:] > ends[:-1] + _GAP)
    edges: list[_Integers] = [np.zeros(1, np.int64)]
    zero: list[npt.NDArray[np.bool_]] = [np.zeros(1, np.bool_)]
    for begin, end in zip(begins[np.r_[0, apart + 1]].tolist(), ends[np.r_[apart, -1]].tolist(), strict=True):
        at = begin
        while at < end:
            try:
                found = await ask(node, at, end - at)
            except (OSError, BlockError):
                break
            if not len(found.lengths):  # behind the end of the file
                edges.append(np.array([at]))
                zero.append(np.ones(1, np.bool_))
                at = end
                break
            edges.append(found.offset + np.cumsum(found.lengths) - found.lengths)
            zero.append((found.flags & ZERO) != 0)
            at += found.nbytes
        edges.append(np.array([at]))  # nobody knows what follows
        zero.append(np.zeros(1, np.bool_))
    where, state = np.concatenate(edges), np.concatenate(zero)
    last = np.r_[where[1:] > where[:-1], True]  # of several at one place the last one counts
    where, state = where[last], state[last]
    changes = np.r_[True, state[1:] != state[:-1]]
    return where[changes], state[changes]


class _Pieces:
    """A batch whose runs were cut, and into how many pieces each."""

    __slots__ = ("batch", "counts")

    def __init__(self, batch: ExtentBatch, counts: _Integers) -> None:
        self.batch, self.counts = batch, counts


def _split(batch: ExtentBatch, inside: npt.NDArray[np.bool_], edges: _Integers, zero: npt.NDArray[np.bool_]) -> _Pieces:
    """Cut the runs `inside` at the edges of the file, and add ZERO where it is."""
    first = np.searchsorted(edges, batch.map, "right")
    counts = np.where(inside, np.searchsorted(edges, batch.map + batch.lengths, "left") - first, 0) + 1
    run = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    skipped = np.where(number, edges[np.maximum(first[run] + number - 1, 0) % len(edges)] - batch.map[run], 0)
    following = np.r_[skipped[1:], 0]
    lengths = np.where(np.r_[number[1:], 0] > 0, following, batch.lengths[run]) - skipped
    where = batch.map[run] + skipped
    flags = batch.flags[run]
    flags |= (inside[run] & zero[np.searchsorted(edges, where, "right") - 1]) * np.uint8(ZERO)
    return _Pieces(ExtentBatch(batch.offset, lengths, flags, where, batch.file_index[run], batch.files), counts)
