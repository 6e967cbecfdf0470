"""Truncate: make the disk larger; see `shrink` for the other way.

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
from aioblock.drivers.formats.qcow2.entries import NORMAL, OFLAG_COMPRESSED
from aioblock.drivers.formats.qcow2.header import size_field
from aioblock.drivers.formats.qcow2.mapping import find_run
from aioblock.drivers.formats.qcow2.preallocate import preallocate
from aioblock.drivers.formats.qcow2.shrink import drop_behind, shrink
from aioblock.drivers.formats.qcow2.write import write
from aioblock.drivers.formats.qcow2.zeroes import write_zeroes

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["grow_l1", "resize"]


async def resize(image: "Image", length: int, prealloc: Prealloc) -> None:
    """Make the disk `length` bytes long. `prealloc`: what is done with new clusters.

    Failed: the old size, or a smaller one that was asked for (see `shrink`); clusters may have been preallocated behind
    it, which the next attempt removes.
    Raises: OSError (EINVAL where the length is not a multiple of 512; EFBIG); NotSupported.
    """
    image.check_writable()
    header = image.header
    if length % 512:
        raise OSError(errno.EINVAL, "The new size must be a multiple of 512")
    if header.nb_snapshots and image.version < 3:
        raise NotSupported("Can't resize a v2 image which has snapshots")
    if length < image.size:
        if prealloc is not Prealloc.OFF:
            raise OSError(errno.EINVAL, "Preallocation can't be used for shrinking an image")
        await shrink(image, length)
    elif length > image.size:
        await _grow(image, length, prealloc)


async def _grow(image: "Image", length: int, prealloc: Prealloc) -> None:
    header = image.header
    old = image.size
    if image.data_file_raw and prealloc is Prealloc.OFF:
        prealloc = Prealloc.METADATA  # what the data file holds there, if it is longer, is what the disk shows
    needed = -(-length >> image.table_shift)
    if needed > header.max_l1_size:
        raise OSError(errno.EFBIG, "Failed to grow the L1 table: File too large")
    if needed > len(image.l1):
        await grow_l1(image, needed)
    await _clear_behind(image, old)
    # From here on requests may reach behind the old end, but only ours do: the node still has the old length.
    image.size = length
    try:
        if image.backing is not None and image.backing.length > old and not image.data_file_raw:
            # Version 3 says it of all that is new, so that the backing file may grow too.
            await _zero_over_backing(image, old, length if image.version >= 3 else min(length, image.backing.length))
        if prealloc is not Prealloc.OFF:
            await preallocate(image, old, length, prealloc)
        if image.external:
            mode = Prealloc.OFF if prealloc is Prealloc.METADATA else prealloc
            await image.data_file.truncate(length, exact=False, prealloc=mode)
        await commit(image)
        await image.flush_files()
        image.check_writable()
        header.size = length
        await image.file.pwrite(*size_field(header))
    except BaseException:
        image.size = header.size = old
        raise


async def grow_l1(image: "Image", needed: int) -> None:
    """A larger L1 table in a new place; the next commit writes it, and switches the header to it."""
    bits = image.cluster_bits
    clusters = -(-8 * needed >> bits)
    if image.event is not None:
        await image.event("l1_grow_alloc_table")
    first = await image.refcounts.allocate_run(clusters, "L1 table")
    old, old_bytes = image.l1_offset, 8 * len(image.l1)
    if old_bytes:
        image.release(old, -(-old_bytes >> bits))
    image.l1.extend(array("Q", bytes(8 * needed - old_bytes)))
    image.l1_offset = first << bits
    image.table_moved(old, old_bytes, image.l1_offset, 8 * needed)
    image.l1_moved = True


async def _clear_behind(image: "Image", old: int) -> None:
    """Remove whatever entries there are behind the old end, and zero what the last cluster holds there.

    There are some where a machine's state was kept, and where a power cut interrupted a shrink.
    """
    await drop_behind(image, old)
    tail = -old & image.cluster_mask
    if tail and image.l1[old >> image.table_shift]:
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
