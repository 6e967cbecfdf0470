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
    for index in range(len(refcounts.table)):
        if refcounts.has_block(index):
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
    while at < end and left > 0:
        index = at >> image.table_shift
        stop = min(end, (index + 1) << image.table_shift)
        table = await image.l2.fetch(index)
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
        flags, host = _classify(image, table, first, last + 1, data_flags)
        left -= len(flags)
        flags, host, lengths, covered = _cut(image, flags, host, at, stop)
        if not covered:
            if not pieces:
                find_run(image, table, at, 1)  # raises, and says what is wrong
                raise AssertionError("an entry is wrong in a batch and right by itself")
            break
        pieces.append(_merge(lengths, flags, host))
        at += covered
    lengths, flags, host = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    index_of = np.where(flags & OFFSET_VALID, 0, -1).astype(np.int8)
    return ExtentBatch(offset, lengths.astype(np.int64), flags, host, index_of, (image.data_file,))


_BAD: Final = 0xFF
"""Stands for the flags of an entry that makes no sense."""


def _classify(image: "Image", table: "CachedTable", first: int, end: int, data_flags: int) -> tuple[Any, Any]:
    """Flags and host offsets of (sub)clusters, for guest clusters `first` up to `end` of one table."""
    import numpy as np

    first &= image.l2_mask
    last = (end - 1) & image.l2_mask
    words = np.frombuffer(table.entries, np.uint64)
    bad_bits = np.uint64((L2_RESERVED_MASK | image.cluster_mask) & ~OFLAG_ZERO)
    zero_bit = np.uint64(OFLAG_ZERO)
    host_bits = np.uint64(image.host_mask)
    if not image.extended:
        entries = words[first : last + 1]
        host = (entries & np.uint64(OFFSET_MASK)).astype(np.int64)
        zero = (entries & zero_bit) != 0
        hosted = (entries & host_bits) != 0
        normal = ~zero & hosted
        bad = (entries & bad_bits) != 0
        if image.version < 3:
            bad |= zero
    else:
        entries = words[2 * first : 2 * last + 2 : 2, None]
        bitmaps = words[2 * first + 1 : 2 * last + 2 : 2, None]
        numbers = np.arange(SUBCLUSTERS, dtype=np.uint64)
        host = (entries & np.uint64(OFFSET_MASK)).astype(np.int64)
        hosted = (entries & host_bits) != 0
        normal = (bitmaps >> numbers & np.uint64(1)) != 0
        zero = (bitmaps >> (numbers + np.uint64(SUBCLUSTERS)) & np.uint64(1)) != 0
        bad = ((entries & bad_bits) != 0) | (normal & (zero | ~hosted))
    compressed = (entries >> np.uint64(62) & np.uint64(1)) != 0
    kept = np.where(hosted, data_flags & OFFSET_VALID, 0)
    flags = np.where(normal, data_flags, np.where(zero, ZERO | kept, kept))
    flags = np.where(bad, _BAD, flags)
    flags = np.where(compressed, DATA | STATUS_COMPRESSED, flags).astype(np.uint8)
    if image.extended:
        host = host + (np.arange(SUBCLUSTERS) * image.subcluster_size)
    host = np.where(flags & OFFSET_VALID, host, 0)
    return flags.ravel(), host.ravel()


def _cut(image: "Image", flags: Any, host: Any, at: int, stop: int) -> tuple[Any, Any, Any, int]:
    """Cut whole (sub)clusters to the range `at` to `stop`, and to what comes before an entry that makes no sense.

    Returns flags, host offsets and lengths of what is left, and how many bytes that is.
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
    return flags, host, lengths, int(lengths.sum())


def _merge(lengths: Any, flags: Any, host: Any) -> tuple[Any, Any, Any]:
    """Join neighbours that are alike and, where they have a host offset, adjoin in the file."""
    import numpy as np

    differs = flags[1:] != flags[:-1]
    differs |= ((flags[1:] & OFFSET_VALID) != 0) & (host[1:] != host[:-1] + lengths[:-1])
    starts = np.concatenate(([0], np.flatnonzero(differs) + 1))
    return np.add.reduceat(lengths, starts), flags[starts], host[starts]
