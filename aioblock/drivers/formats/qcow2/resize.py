"""Truncate: make the disk larger. Making it smaller is not built yet.

The new size is written last: until then nothing that the guest could see has changed. What it uncovers reads as zeroes:
entries behind the old end are removed, the rest of the old last cluster is zeroed, and where a longer backing file
would show through, the new range is made zero first.
"""

import errno
from array import array
from typing import TYPE_CHECKING

from aioblock.base.errors import NotSupported
from aioblock.core.images import Prealloc
from aioblock.drivers.formats.qcow2.commit import commit
from aioblock.drivers.formats.qcow2.entries import NORMAL, OFFSET_MASK, OFLAG_COMPRESSED, OFLAG_COPIED
from aioblock.drivers.formats.qcow2.header import size_field
from aioblock.drivers.formats.qcow2.mapping import cluster_entry, find_run, release_entry, set_cluster_entry
from aioblock.drivers.formats.qcow2.write import write
from aioblock.drivers.formats.qcow2.zeroes import write_zeroes

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["grow"]


async def grow(image: "Image", length: int, prealloc: Prealloc) -> None:
    """Make the disk `length` bytes long.

    Failed: the old size; clusters may have been preallocated behind it, which the next attempt removes.
    Raises: OSError (EINVAL where the length is not a multiple of 512; EFBIG); NotSupported.
    """
    image.check_writable()
    header = image.header
    if length % 512:
        raise OSError(errno.EINVAL, "The new size must be a multiple of 512")
    if length < image.size:
        raise NotSupported("Making a qcow2 image smaller is not built yet")
    if header.nb_snapshots and image.version < 3:
        raise NotSupported("Can't resize a version 2 image which has snapshots")
    if length == image.size:
        return
    old = image.size
    needed = -(-length >> image.table_shift)
    if needed > header.max_l1_size:
        raise OSError(errno.EFBIG, "The image size is too large for its cluster size")
    if needed > len(image.l1):
        await _grow_l1(image, needed)
    await _clear_behind(image, old)
    # From here on requests may reach behind the old end, but only ours do: the node still has the old length.
    image.size = length
    try:
        if image.backing is not None and image.backing.length > old:
            await _zero_over_backing(image, old, min(length, image.backing.length))
        if prealloc is not Prealloc.OFF:
            await _preallocate(image, old, length, prealloc)
        await commit(image)
        await image.file.flush()
        image.check_writable()
        header.size = length
        await image.file.pwrite(*size_field(header))
    except BaseException:
        image.size = header.size = old
        raise


async def _grow_l1(image: "Image", needed: int) -> None:
    """A larger L1 table in a new place; the next commit writes it, and switches the header to it."""
    bits = image.cluster_bits
    clusters = -(-8 * needed >> bits)
    first = await image.refcounts.allocate_run(clusters, "L1 table")
    old, old_bytes = image.l1_offset, 8 * len(image.l1)
    if old_bytes:
        image.release(old, -(-old_bytes >> bits))
    image.l1.extend(array("Q", bytes(8 * needed - old_bytes)))
    image.l1_offset = first << bits
    image.table_moved(old, old_bytes, image.l1_offset, 8 * needed)
    image.l1_moved = True


async def _clear_behind(image: "Image", old: int) -> None:
    """Remove whatever entries there are behind the old end, and zero what the last cluster holds there."""
    last = old - 1 >> image.table_shift if old else -1
    for index in range(last + 1, len(image.l1)):
        if image.l1[index]:
            raise image.corruption(f"L1 entry {index:#x} lies behind the end of the disk and is in use")
    if old == 0 or not image.l1[last]:
        return
    clusters = range(-(-old >> image.cluster_bits), (last + 1) << (image.table_shift - image.cluster_bits))
    table = await image.l2.fetch(last)
    assert table is not None
    if any(cluster_entry(image, table, cluster) != (0, 0) for cluster in clusters):
        table = await image.l2.own(last)
        for cluster in clusters:
            entry, bitmap = cluster_entry(image, table, cluster)
            if entry or bitmap:
                set_cluster_entry(image, table, cluster, 0, 0)
                release_entry(image, entry, discard=True)
    tail = -old & image.cluster_mask
    if tail:
        await _zero_tail(image, old, tail)


async def _zero_tail(image: "Image", old: int, tail: int) -> None:
    """Zero the bytes of the last cluster behind the old end, where it has any of its own."""
    unit = image.subcluster_size
    at, end = old, old + tail
    while at < end:
        table = await image.l2.fetch(at >> image.table_shift)
        run = find_run(image, table, at, min(end - at, unit - at % unit))
        if run.kind == NORMAL and run.copied:
            await image.data.pwrite_zeroes(run.host, at, run.nbytes)
        elif run.kind == NORMAL or run.entry & OFLAG_COMPRESSED:
            before, image.size = image.size, end
            try:
                await write(image, at, memoryview(bytes(run.nbytes)))
            finally:
                image.size = before
        at += run.nbytes


async def _zero_over_backing(image: "Image", offset: int, end: int) -> None:
    """Make a range zero, so that the backing file does not show through."""
    unit = image.subcluster_size
    head = min(-offset % unit, end - offset)
    step = 1 << 20
    if image.version >= 3:
        if head:
            await write(image, offset, memoryview(bytes(head)))
        if end > offset + head:
            await write_zeroes(image, offset + head, min(-(-end // unit) * unit, image.size) - offset - head, 0)
        return
    for at in range(offset, end, step):
        await write(image, at, memoryview(bytes(min(step, end - at))))


async def _preallocate(image: "Image", offset: int, end: int, prealloc: Prealloc) -> None:
    """Give every cluster from `offset` on, that has none, a host cluster; `falloc` and `full` take room too."""
    bits = image.cluster_bits
    cluster, stop = -(-offset >> bits), -(-end >> bits)
    full = (1 << image.subclusters) - 1
    highest = 0
    while cluster < stop:
        await image.make_room()
        index = cluster << bits >> image.table_shift
        table = await image.l2.own(index)
        wanted = 0
        while cluster + wanted < min(stop, (cluster | image.l2_mask) + 1):
            entry, _ = cluster_entry(image, table, cluster + wanted)
            if entry & (OFFSET_MASK | OFLAG_COMPRESSED):
                break
            wanted += 1
        if not wanted:
            cluster += 1
            continue
        host, count = await image.refcounts.allocate(wanted, "data cluster")
        try:
            await _take_room(image, host << bits, count << bits, prealloc)
            table = await image.l2.own(index)
        except BaseException:
            await image.refcounts.give_back(host, count)
            raise
        for number in range(count):
            _, bitmap = cluster_entry(image, table, cluster + number)
            set_cluster_entry(image, table, cluster + number, (host + number << bits) | OFLAG_COPIED, bitmap or full)
        highest = max(highest, host + count)
        cluster += count
    image.preallocated = None
    if highest << bits > image.file.length:
        await image.file.truncate(highest << bits, exact=False)


async def _take_room(image: "Image", host: int, nbytes: int, prealloc: Prealloc) -> None:
    """Make a part of the file read as zeroes, in the way the preallocation asks for."""
    file = image.file
    if prealloc is Prealloc.METADATA or prealloc is Prealloc.FALLOC:
        if host >= file.length:
            await file.truncate(host + nbytes, prealloc=Prealloc.OFF if prealloc is Prealloc.METADATA else prealloc)
        else:
            await file.pwrite_zeroes(host, nbytes)
        return
    step = 1 << 20
    zeroes = memoryview(bytes(min(step, nbytes)))
    for at in range(0, nbytes, step):
        await file.pwrite(host + at, zeroes[: min(step, nbytes - at)])
