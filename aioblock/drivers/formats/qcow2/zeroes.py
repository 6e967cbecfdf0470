"""Write-zeroes and discard: changes of entries, without data.

The generic code lets no overlapping request run beside these two, so a host cluster that an entry loses is not being
read or written in place; it is free once the change is stable. What it does not see is that a write may be allocating
another subcluster of the same cluster: that is waited for, or kept out by a claim.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import NotSupported
from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.drivers.formats.qcow2.entries import (
    COMPRESSED,
    NORMAL,
    OFLAG_COMPRESSED,
    SUBCLUSTERS,
    subcluster_mask,
)
from aioblock.drivers.formats.qcow2.mapping import (
    cluster_entry,
    find_run,
    release_entry,
    set_cluster_entry,
)

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.tables import CachedTable

__all__ = ["discard", "write_zeroes"]

BATCH: Final = 4096
"""How many clusters are changed before other tasks get their turn."""


async def write_zeroes(image: "Image", offset: int, nbytes: int, flags: int) -> None:
    """Make a range read as zeroes by entries alone.

    Raises: NotSupported where the image cannot say so, and then nothing has changed; OSError.
    """
    image.check_writable()
    end = offset + nbytes
    unit = image.subcluster_size
    if image.version < 3 and image.backing is not None:
        raise NotSupported("A version 2 image with a backing file cannot mark clusters as zero")
    if image.data_file_raw:  # the data file shall say the same without us
        await image.data.pwrite_zeroes(offset, offset, nbytes)
    if offset % unit or (end % unit and end != image.size):
        await _zero_partial(image, offset, nbytes)
        return
    end = -(-end // unit) * unit
    await _zero_units(image, offset, end, unmap=bool(flags & REQ_MAY_UNMAP))


async def _zero_partial(image: "Image", offset: int, nbytes: int) -> None:
    """A part of one (sub)cluster: all of it becomes zero if the rest of it reads as zeroes anyway."""
    unit = image.subcluster_size
    low = offset // unit * unit
    high = low + unit
    end = offset + nbytes
    if end > high or image.this is None:
        raise NotSupported
    cluster = low >> image.cluster_bits
    await image.unclaimed(range(cluster, cluster + 1))
    event = image.claim((cluster,))
    try:
        table = await image.l2.fetch(low >> image.table_shift)
        if find_run(image, table, low, unit).kind in (NORMAL, COMPRESSED):
            raise NotSupported
        visible = min(high, image.size)
        if offset > low and not await image.this.is_zero(low, offset - low):
            raise NotSupported
        if visible > end and not await image.this.is_zero(end, visible - end):
            raise NotSupported
        if image.version < 3:
            return  # not allocated, and no backing file: it reads as zeroes as it is
        await image.make_room()
        table = await image.l2.own(low >> image.table_shift)
        _zero_cluster(image, table, cluster, low & image.cluster_mask, unit, unmap=False)
    finally:
        image.disclaim((cluster,), event)


async def _zero_units(image: "Image", offset: int, end: int, *, unmap: bool) -> None:
    for edge in {offset, end} if image.extended else ():
        if edge & image.cluster_mask:
            table = await image.l2.fetch(edge >> image.table_shift)
            if find_run(image, table, edge, 1).kind == COMPRESSED:
                raise NotSupported("A part of a compressed cluster cannot be marked as zero")
    # Version 2 without a backing file: what has no table reads as zeroes.
    async for table, low, high in _tables(image, offset, end, only_existing=image.version < 3):
        for cluster in range(low >> image.cluster_bits, (high - 1 >> image.cluster_bits) + 1):
            guest = cluster << image.cluster_bits
            inside = max(low - guest, 0)
            _zero_cluster(image, table, cluster, inside, min(high - guest, image.cluster_size) - inside, unmap=unmap)


def _zero_cluster(image: "Image", table: "CachedTable", cluster: int, inside: int, nbytes: int, *, unmap: bool) -> None:
    """Make (sub)clusters of one cluster zero, `nbytes` from `inside` on."""
    entry, bitmap = cluster_entry(image, table, cluster)
    if image.version < 3:
        new_entry = new_bitmap = 0
    elif nbytes == image.cluster_size:
        keep = entry & image.host_mask and not entry & OFLAG_COMPRESSED and not unmap
        new_entry = entry if keep else 0
        new_bitmap = subcluster_mask(0, image.subclusters) << SUBCLUSTERS
    else:
        touched = subcluster_mask(inside // image.subcluster_size, nbytes // image.subcluster_size)
        new_entry, new_bitmap = entry, bitmap & ~touched | touched << SUBCLUSTERS
    _replace(image, table, cluster, (entry, bitmap), (new_entry, new_bitmap))


def _replace(image: "Image", table: "CachedTable", cluster: int, old: tuple[int, int], new: tuple[int, int]) -> None:
    if new == old:
        return
    set_cluster_entry(image, table, cluster, *new)
    if old[0] != new[0]:
        release_entry(image, old[0], discard=True)


async def discard(image: "Image", offset: int, nbytes: int) -> None:
    """Give whole clusters back: they read as zeroes afterwards, whatever the backing file holds. Raises: OSError.

    Version 2 cannot say that over a backing file, and keeps its clusters there.
    """
    image.check_writable()
    over_backing = image.backing is not None
    if image.version < 3 and over_backing:
        return
    end = offset + nbytes
    offset = -(-offset // image.cluster_size) * image.cluster_size
    end = -(-end // image.cluster_size) * image.cluster_size if end >= image.size else end & ~image.cluster_mask
    zero = subcluster_mask(0, image.subclusters) << SUBCLUSTERS if image.version >= 3 else 0
    if image.data_file_raw and offset < end:
        await image.data_file.pwrite_zeroes(offset, min(end, image.size) - offset, REQ_MAY_UNMAP)
    async for table, low, high in _tables(image, offset, end, only_existing=not over_backing):
        for cluster in range(low >> image.cluster_bits, high >> image.cluster_bits):
            entry, _ = old = cluster_entry(image, table, cluster)
            if entry or over_backing:  # what has no host cluster reads as zeroes already
                _replace(image, table, cluster, old, (0, zero))


async def _tables(
    image: "Image", offset: int, end: int, *, only_existing: bool
) -> AsyncIterator[tuple["CachedTable", int, int]]:
    """The owned table, and the part of the range from `offset` to `end` that it maps, in pieces of bounded work.

    Nobody allocates clusters of the piece, and nothing suspends before the caller comes back for the next one.
    `only_existing`: leave out what has no table.
    """
    first = offset
    while offset < end:
        if offset != first:
            await asyncio.sleep(0)
            image.check_writable()
        index = offset >> image.table_shift
        stop = min(end, (index + 1) << image.table_shift)
        if only_existing and not image.l1[index]:
            offset = stop
            continue
        stop = min(stop, offset + (BATCH << image.cluster_bits))
        clusters = range(offset >> image.cluster_bits, (stop - 1 >> image.cluster_bits) + 1)
        while True:
            await image.unclaimed(clusters)
            await image.make_room()
            table = await image.l2.own(index)
            if not image.claimed(clusters):
                break
        yield table, offset, stop
        offset = stop
