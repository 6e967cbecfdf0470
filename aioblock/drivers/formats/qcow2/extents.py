"""Whole ranges: the runs of many L2 tables at once, as arrays. What they are is said in `status`."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np

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
        except OSError:
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
        except OSError:
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


def _standard_runs(image: "Image", words: Any, at: int, stop: int, data_flags: int) -> tuple[Any, Any, Any]:
    """Lengths, flags and host offsets of the runs from `at` to `stop`, or to an entry that makes no sense.

    `words`: the entries of the clusters that this touches. Only entries that are not zero are looked at: in the upper
    layers of a long chain that is one of many.
    """
    clusters = np.flatnonzero(words != 0)
    entries = words[clusters]
    host = (entries & np.uint64(OFFSET_MASK)).astype(np.int64)
    zero = (entries & np.uint64(OFLAG_ZERO)) != 0
    hosted = (entries & np.uint64(image.host_mask)) != 0
    bad = (entries & np.uint64((L2_RESERVED_MASK | image.cluster_mask) & ~OFLAG_ZERO)) != 0
    if image.version < 3:
        bad |= zero
    flags = _flags_of(entries, ~zero & hosted, zero, hosted, bad, data_flags)
    end = len(words)
    wrong = np.flatnonzero(flags == _BAD)
    if len(wrong):
        end = int(clusters[wrong[0]])
        clusters, flags, host = clusters[: wrong[0]], flags[: wrong[0]], host[: wrong[0]]
    has_host = (flags & OFFSET_VALID) != 0
    new = np.ones(len(clusters), bool)
    new[1:] = (clusters[1:] != clusters[:-1] + 1) | (flags[1:] != flags[:-1])
    new[1:] |= has_host[1:] & (host[1:] != host[:-1] + image.cluster_size)
    starts = np.flatnonzero(new)
    # Between two runs of such clusters, and around them, lies one of clusters that are not there, perhaps of none.
    begins, ends = (
        clusters[starts],
        clusters[np.append(starts[1:] - 1, len(clusters) - 1)] + 1 if len(starts) else starts,
    )
    bounds = np.zeros(2 * len(starts) + 2, np.int64)
    bounds[1:-1:2], bounds[2:-1:2], bounds[-1] = begins, ends, end
    lengths = np.diff(bounds) << image.cluster_bits
    all_flags, all_host = np.zeros(len(lengths), np.uint8), np.zeros(len(lengths), np.int64)
    all_flags[1::2], all_host[1::2] = flags[starts], np.where(has_host, host, 0)[starts]
    there = lengths != 0
    lengths, all_flags, all_host = lengths[there], all_flags[there], all_host[there]
    if end:
        inside = at & image.cluster_mask
        lengths[0] -= inside
        if all_flags[0] & OFFSET_VALID:
            all_host[0] += inside
        if end == len(words):
            lengths[-1] -= -stop & image.cluster_mask
    return lengths, all_flags, all_host


def _extended_runs(image: "Image", words: Any, at: int, stop: int, data_flags: int) -> tuple[Any, Any, Any]:
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


def _cut(image: "Image", flags: Any, host: Any, at: int, stop: int) -> tuple[Any, Any, Any]:
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
    bad = np.flatnonzero(flags == _BAD)
    if len(bad):
        flags, host, lengths = flags[: bad[0]], host[: bad[0]], lengths[: bad[0]]
    return lengths, flags, host


def _merge(lengths: Any, flags: Any, host: Any) -> tuple[Any, Any, Any]:
    """Join neighbours that are alike and, where they have a host offset, adjoin in the file."""
    if not len(lengths):
        return lengths, flags, host
    differs = flags[1:] != flags[:-1]
    differs |= ((flags[1:] & OFFSET_VALID) != 0) & (host[1:] != host[:-1] + lengths[:-1])
    starts = np.concatenate(([0], np.flatnonzero(differs) + 1))
    return np.add.reduceat(lengths, starts), flags[starts], host[starts]
