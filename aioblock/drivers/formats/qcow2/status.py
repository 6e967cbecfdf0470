"""Block status: what this layer alone says, one run at a time or in batches over whole L2 tables.

data             DATA | OFFSET_VALID, and RECURSE where the file may have holes there
zero             ZERO, and OFFSET_VALID where a host cluster is kept
compressed       DATA | COMPRESSED
unallocated      nothing, and OFFSET_VALID for a subcluster whose cluster has a host cluster
"""

from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import NotSupported
from aioblock.base.flags import COMPRESSED as STATUS_COMPRESSED
from aioblock.base.flags import DATA, OFFSET_VALID, RECURSE, ZERO
from aioblock.core.io import Status
from aioblock.drivers.formats.qcow2.entries import (
    COMPRESSED,
    L2_RESERVED_MASK,
    NORMAL,
    OFFSET_MASK,
    OFLAG_ZERO,
    SUBCLUSTERS,
    UNALLOCATED,
    UNALLOCATED_ALLOC,
    ZERO_ALLOC,
    ZERO_PLAIN,
)
from aioblock.drivers.formats.qcow2.mapping import find_run

if TYPE_CHECKING:
    from aioblock.core.extents import ExtentBatch
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.tables import CachedTable

__all__ = ["block_status", "extents"]

_FLAGS: Final = {
    UNALLOCATED: 0,
    UNALLOCATED_ALLOC: OFFSET_VALID,
    ZERO_PLAIN: ZERO,
    ZERO_ALLOC: ZERO | OFFSET_VALID,
    NORMAL: DATA | OFFSET_VALID,
    COMPRESSED: DATA | STATUS_COMPRESSED,
}

_ENCRYPTED_FLAGS: Final = {kind: flags & ~OFFSET_VALID for kind, flags in _FLAGS.items()}
"""What lies at a host offset is not what the guest sees there."""

STEPS: Final = 1024
"""How many runs (or tables that are not there) are joined into one answer."""
BATCH: Final = 1 << 16
"""How many clusters or subclusters of a table are looked at in one piece, and about how many in one batch."""


async def block_status(image: "Image", offset: int, nbytes: int, want_zero: bool) -> Status:
    """The run at `offset`; longer than one table where the next ones are in memory. Raises: OSError."""
    table = await image.l2.fetch(offset >> image.table_shift)
    kind, pnum, host, _ = find_run(image, table, offset, nbytes)
    known = _ENCRYPTED_FLAGS if image.encrypted else _FLAGS
    flags = known[kind]
    at, end = offset + pnum, offset + nbytes
    for _ in range(STEPS):
        if at >= end:
            break
        index = at >> image.table_shift
        table = image.l2.tables.get(index)
        if table is None and image.l1[index]:
            break
        if table is not None and not _sound(image, table, at):
            break
        run = find_run(image, table, at, end - at)
        if known[run.kind] != flags or (flags & OFFSET_VALID and run.host != host + at - offset):
            break
        at += run.nbytes
    if kind == NORMAL and want_zero and await holes_in_data(image):
        flags |= RECURSE
    return Status(flags, at - offset, host, image.data_file if flags & OFFSET_VALID else None)


def _sound(image: "Image", table: "CachedTable", offset: int) -> bool:
    """Whether the entry of a cluster is one that `find_run` takes; else it is told when somebody asks for it."""
    entry = table.entries[(offset >> image.cluster_bits & image.l2_mask) * (2 if image.extended else 1)]
    bad = L2_RESERVED_MASK | image.cluster_mask
    return not entry & bad & ~OFLAG_ZERO or entry >> 62 & 1 == 1


async def holes_in_data(image: "Image") -> bool:
    """Whether the file is so much smaller than what is in use that data must be holes: preallocated metadata.

    The rule is QEMU's: more clusters in use than 10/9 of those that take up room, and at least two more.
    """
    if image.external or image.encrypted:
        return False  # the rule looks at the file that the refcounts count; a hole decrypts to noise
    if image.preallocated is None:
        try:
            image.preallocated = await _count_holes(image)
        except OSError:
            return False  # it only adds knowledge
    return image.preallocated


async def _count_holes(image: "Image") -> bool:
    try:
        allocated = await image.file.node.driver.allocated_size()
    except NotSupported:
        return False
    if allocated is None:
        return False
    real = allocated >> image.cluster_bits
    enough = max(real * 10 // 9, real + 2)
    if -(-image.file.length >> image.cluster_bits) < enough:
        return False
    refcounts = image.refcounts
    await refcounts.ready()
    used = 0
    for index in [index for index, entry in enumerate(refcounts.table) if entry]:
        counts = (await refcounts.fetch(index)).entries
        used += len(counts) - counts.count(0)
        if used >= enough:
            return True
    return False


# -- batches ---------------------------------------------------------------------------------------------------------


async def extents(image: "Image", offset: int, nbytes: int, want_zero: bool) -> "ExtentBatch":
    """The runs from `offset` on, up to the end of the range or of a good batch. Raises: OSError."""
    import numpy as np

    from aioblock.core.extents import ExtentBatch

    data_flags = DATA if image.encrypted else DATA | OFFSET_VALID
    if want_zero and await holes_in_data(image):
        data_flags |= RECURSE
    pieces: list[tuple[Any, Any, Any]] = []
    at, end = offset, offset + nbytes
    left = BATCH
    last_table = (end - 1 >> image.table_shift) + 1
    while at < end and left > 0:
        index = at >> image.table_shift
        stop = min(end, (index + 1) << image.table_shift)
        table = await image.l2.fetch_ahead(index, last_table)
        if table is None:
            while stop < end and not image.l1[stop >> image.table_shift]:
                stop = min(end, stop + (1 << image.table_shift))
            pieces.append((np.array([stop - at]), np.zeros(1, np.uint8), np.zeros(1, np.int64)))
            at = stop
            left -= 1
            continue
        per_cluster = SUBCLUSTERS if image.extended else 1
        stop = min(stop, at - (at & image.cluster_mask) + (BATCH // per_cluster << image.cluster_bits))
        first, last = at >> image.cluster_bits, stop - 1 >> image.cluster_bits
        if image.extended:
            piece = _extended_runs(image, table, at, stop, data_flags)
        else:
            piece = _standard_runs(image, table, at, stop, data_flags)
        left -= (last - first + 1) * per_cluster
        covered = int(piece[0].sum())
        if not covered:
            if not pieces:
                find_run(image, table, at, 1)  # raises, and says what is wrong
                raise AssertionError("an entry is wrong in a batch and right by itself")
            break
        pieces.append(piece)
        at += covered
    lengths, flags, host = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    index_of = np.where(flags & OFFSET_VALID, 0, -1).astype(np.int8)
    return ExtentBatch(offset, lengths.astype(np.int64), flags, host, index_of, (image.data_file,))


_BAD: Final = 0xFF
"""Stands for the flags of an entry that makes no sense."""


def _words(image: "Image", table: "CachedTable", at: int, stop: int, per_cluster: int) -> Any:
    """The entries of the clusters that `at` to `stop` touches, `per_cluster` words for each."""
    import numpy as np

    first, last = (at >> image.cluster_bits) & image.l2_mask, (stop - 1 >> image.cluster_bits) & image.l2_mask
    return np.frombuffer(table.entries, np.uint64)[per_cluster * first : per_cluster * (last + 1)]


def _standard_runs(image: "Image", table: "CachedTable", at: int, stop: int, data_flags: int) -> tuple[Any, Any, Any]:
    """Lengths, flags and host offsets of the runs from `at` to `stop` in one table, or to an entry that makes no sense.

    Only entries that are not zero are looked at: in the upper layers of a long chain that is one of many.
    """
    import numpy as np

    words = _words(image, table, at, stop, 1)
    clusters = np.flatnonzero(words)
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


def _extended_runs(image: "Image", table: "CachedTable", at: int, stop: int, data_flags: int) -> tuple[Any, Any, Any]:
    """As `_standard_runs`, of extended entries: runs of subclusters."""
    import numpy as np

    words = _words(image, table, at, stop, 2)
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
    import numpy as np

    compressed = (entries >> np.uint64(62) & np.uint64(1)) != 0
    flags = hosted * np.uint8(data_flags & OFFSET_VALID) | zero * np.uint8(ZERO)
    flags = np.where(normal, np.uint8(data_flags), flags)
    flags = np.where(bad, np.uint8(_BAD), flags)
    return np.where(compressed, np.uint8(DATA | STATUS_COMPRESSED), flags)


def _cut(image: "Image", flags: Any, host: Any, at: int, stop: int) -> tuple[Any, Any, Any]:
    """Cut whole subclusters to the range `at` to `stop`, and to what comes before an entry that makes no sense.

    Returns lengths, flags and host offsets of what is left.
    """
    import numpy as np

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
    import numpy as np

    if not len(lengths):
        return lengths, flags, host
    differs = flags[1:] != flags[:-1]
    differs |= ((flags[1:] & OFFSET_VALID) != 0) & (host[1:] != host[:-1] + lengths[:-1])
    starts = np.concatenate(([0], np.flatnonzero(differs) + 1))
    return np.add.reduceat(lengths, starts), flags[starts], host[starts]
