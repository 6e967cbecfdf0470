"""Block status: what this layer alone says, one run at a time. See `extents` for whole ranges.

data             DATA | OFFSET_VALID, and RECURSE where the file may have holes there
zero             ZERO, and OFFSET_VALID where a host cluster is kept
compressed       DATA | COMPRESSED
unallocated      nothing, and OFFSET_VALID for a subcluster whose cluster has a host cluster
"""

from typing import TYPE_CHECKING, Final

from aioblock.base.errors import NotSupported
from aioblock.base.flags import COMPRESSED as STATUS_COMPRESSED
from aioblock.base.flags import DATA, OFFSET_VALID, RECURSE, ZERO
from aioblock.core.io import Status
from aioblock.drivers.formats.qcow2.entries import (
    COMPRESSED,
    L2_RESERVED_MASK,
    NORMAL,
    OFLAG_ZERO,
    UNALLOCATED,
    UNALLOCATED_ALLOC,
    ZERO_ALLOC,
    ZERO_PLAIN,
)
from aioblock.drivers.formats.qcow2.mapping import find_run

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.tables import CachedTable

__all__ = ["block_status", "holes_in_data"]

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
    bad = (L2_RESERVED_MASK | image.cluster_mask) & ~OFLAG_ZERO | (OFLAG_ZERO if image.version < 3 else 0)
    return not entry & bad or entry >> 62 & 1 == 1


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
