"""Whole ranges: the runs of many L2 tables at once, as arrays. What they are is said in `status`."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aioblock.base.errors import BlockError
from aioblock.base.flags import COMPRESSED as STATUS_COMPRESSED
from aioblock.base.flags import DATA, OFFSET_VALID, RECURSE, ZERO
from aioblock.core.extents import ExtentBatch
from aioblock.drivers.formats.qcow2.entries import L2_RESERVED_MASK, OFFSET_MASK, OFLAG_ZERO, SUBCLUSTERS
from aioblock.drivers.formats.qcow2.mapping import find_run
from aioblock.drivers.formats.qcow2.status import holes_in_data

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["extents"]

BATCH: Final = 1 << 16
"""How many clusters or subclusters are looked at in one piece, and about how many in one batch."""

_Runs = tuple[Any, Any, Any]
"""Arrays of lengths, flags and host offsets."""


async def extents(image: "Image", offset: int, nbytes: int, want_zero: bool) -> ExtentBatch:
    """The runs from `offset` on, up to the end of the range or of a good batch.

    Raises: OSError where what lies at `offset` cannot be told; of what lies behind it, those ask who want it.
    """
    data_flags = DATA if image.encrypted else DATA | OFFSET_VALID
    if want_zero and await holes_in_data(image):
        data_flags |= RECURSE
    per_cluster = SUBCLUSTERS if image.extended else 1
    runs_of = _extended_runs if image.extended else _standard_runs
    pieces: list[_Runs] = []
    at, end = offset, offset + nbytes
    # All layers of one shape end their batches at the same places, wherever they begin.
    left = BATCH - (at >> image.cluster_bits) * per_cluster % BATCH
    while at < end and left > 0:
        try:
            words, stop = await _entries(image, at, end, -(-left // per_cluster))
        except (OSError, BlockError):
            if not pieces:
                raise
            break
        if words is None:
            pieces.append((np.array([stop - at]), np.zeros(1, np.uint8), np.zeros(1, np.int64)))
            at = stop
            left -= 1
            continue
        piece = runs_of(image, words, at, stop, data_flags)
        left -= ((stop - 1 >> image.cluster_bits) - (at >> image.cluster_bits) + 1) * per_cluster
        covered = int(piece[0].sum())
        if covered:
            pieces.append(piece)
            at += covered
        if at < stop:  # an entry makes no sense
            if pieces:
                break
            find_run(image, await image.l2.fetch(at >> image.table_shift), at, 1)  # raises, and says what is wrong
            raise AssertionError("an entry is wrong in a batch and right by itself")
    lengths, flags, host = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    index_of = np.where(flags & OFFSET_VALID, 0, -1).astype(np.int8)
    return ExtentBatch(offset, lengths.astype(np.int64), flags, host, index_of, (image.data_file,))


async def _entries(image: "Image", offset: int, end: int, clusters: int) -> tuple[Any, int]:
    """The L2 entries from the cluster of `offset` on, `clusters` of them at most, and where that ends in bytes.

    They end before a table that is not there or cannot be had. None: there is no table at `offset`, and up to that end.
    Raises: OSError where the first table cannot be had.
    """
    width = 2 if image.extended else 1
    first = offset >> image.cluster_bits
    last = min(first + clusters, -(-end >> image.cluster_bits))
    tables_end = (end - 1 >> image.table_shift) + 1
    words: Any = np.empty((last - first) * width, np.uint64)
    at = first
    while at < last:
        index = at >> image.header.l2_bits
        if at > first and not image.l2.loadable(index):
            break
        try:
            table = await image.l2.fetch_ahead(index, tables_end)
        except (OSError, BlockError):
            if at == first:
                raise
            break
        if table is None:
            if at == first:
                while index < tables_end and not image.l1[index]:
                    index += 1
                return None, min(end, index << image.table_shift)
            break
        inside = at & image.l2_mask
        count = min(last - at, image.l2_mask + 1 - inside)
        part = np.frombuffer(table.entries, np.uint64)[width * inside : width * (inside + count)]
        words[(at - first) * width : (at - first + count) * width] = part
        at += count
    return words[: (at - first) * width], min(end, at << image.cluster_bits)


_BAD: Final = 0xFF
"""Stands for the flags of an entry that makes no sense."""


def _standard_runs(image: "Image", words: Any, at: int, stop: int, data_flags: int) -> _Runs:
    """The runs from `at` to `stop`, or to an entry that makes no sense. `words`: the entries that this touches.

    Most entries begin no run: they are the one before, or a cluster further. Only the others are looked at.
    """
    size = np.uint64(image.cluster_size)
    new = np.ones(len(words), bool)
    new[1:] = (words[1:] != words[:-1] + size) & (words[1:] != words[:-1])
    starts = np.flatnonzero(new)
    counts = np.diff(starts, append=len(words))
    hosted = (words[starts] & np.uint64(image.host_mask)) != 0
    last = words[starts] + (counts - 1).astype(np.uint64) * size * hosted
    if (last != words[starts + counts - 1]).any() or ((last ^ words[starts]) & ~np.uint64(OFFSET_MASK)).any():
        # Both kinds of steps in one run, or none that is right for it: such an entry stands for itself.
        starts, counts = np.arange(len(words)), np.ones(len(words), np.int64)
    entries = words[starts]
    zero = (entries & np.uint64(OFLAG_ZERO)) != 0
    hosted = (entries & np.uint64(image.host_mask)) != 0
    bad = (entries & np.uint64((L2_RESERVED_MASK | image.cluster_mask) & ~OFLAG_ZERO)) != 0
    if image.version < 3:
        bad |= zero
    flags = _flags_of(entries, ~zero & hosted, zero, hosted, bad, data_flags)
    host = np.where(flags & OFFSET_VALID, entries & np.uint64(OFFSET_MASK), 0).astype(np.int64)
    lengths = counts << image.cluster_bits
    inside = at & image.cluster_mask
    lengths[0] -= inside
    if flags[0] & OFFSET_VALID:
        host[0] += inside
    lengths[-1] -= -stop & image.cluster_mask
    return _merge(*_sound(lengths, flags, host))


def _extended_runs(image: "Image", words: Any, at: int, stop: int, data_flags: int) -> _Runs:
    """As `_standard_runs`, of extended entries: runs of subclusters."""
    entries, bitmaps = words[::2, None], words[1::2, None]
    numbers = np.arange(SUBCLUSTERS, dtype=np.uint64)
    hosted = (entries & np.uint64(image.host_mask)) != 0
    normal = (bitmaps >> numbers & np.uint64(1)) != 0
    zero = (bitmaps >> (numbers + np.uint64(SUBCLUSTERS)) & np.uint64(1)) != 0
    bad = (entries & np.uint64((L2_RESERVED_MASK | image.cluster_mask) & ~OFLAG_ZERO)) != 0
    flags = _flags_of(entries, normal, zero, hosted, bad | (normal & (zero | ~hosted)), data_flags)
    host = (entries & np.uint64(OFFSET_MASK)).astype(np.int64) + np.arange(SUBCLUSTERS) * image.subcluster_size
    host = np.where(flags & OFFSET_VALID, host, 0)
    return _merge(*_cut(image, flags.ravel(), host.ravel(), at, stop))


def _flags_of(entries: Any, normal: Any, zero: Any, hosted: Any, bad: Any, data_flags: int) -> Any:
    """The flags of (sub)clusters: bit masks by hand, because `where` over integers makes arrays of 8 bytes each."""
    compressed = (entries >> np.uint64(62) & np.uint64(1)) != 0
    flags = hosted * np.uint8(data_flags & OFFSET_VALID) | zero * np.uint8(ZERO)
    flags = np.where(normal, np.uint8(data_flags), flags)
    flags = np.where(bad, np.uint8(_BAD), flags)
    return np.where(compressed, np.uint8(DATA | STATUS_COMPRESSED), flags)


def _cut(image: "Image", flags: Any, host: Any, at: int, stop: int) -> _Runs:
    """Cut whole subclusters to the range `at` to `stop`, and to what comes before an entry that makes no sense.

    Returns lengths, flags and host offsets of what is left.
    """
    unit = image.subcluster_size
    skip = (at & image.cluster_mask) // unit
    flags, host = flags[skip:], host[skip:]
    count = -(-(stop - at // unit * unit) // unit)
    flags, host = flags[:count], host[:count]
    lengths = np.full(len(flags), unit, np.int64)
    lengths[-1] -= -stop % unit
    lengths[0] -= at % unit
    host = host.copy()
    if flags[0] & OFFSET_VALID:
        host[0] += at % unit
    return _sound(lengths, flags, host)


def _sound(lengths: Any, flags: Any, host: Any) -> _Runs:
    """The runs up to an entry that makes no sense."""
    bad = np.flatnonzero(flags == _BAD)
    end = int(bad[0]) if len(bad) else len(flags)
    return lengths[:end], flags[:end], host[:end]


def _merge(lengths: Any, flags: Any, host: Any) -> _Runs:
    """Join neighbours that are alike and, where they have a host offset, adjoin in the file."""
    if not len(lengths):
        return lengths, flags, host
    differs = flags[1:] != flags[:-1]
    differs |= ((flags[1:] & OFFSET_VALID) != 0) & (host[1:] != host[:-1] + lengths[:-1])
    if differs.all():
        return lengths, flags, host
    starts = np.concatenate(([0], np.flatnonzero(differs) + 1))
    return np.add.reduceat(lengths, starts), flags[starts], host[starts]
