"""Truncate: make the disk smaller, and give back what lies behind its end; or all of it, for `make_empty`.

    the size field => references dropped from the active tables => counts taken down
                   => refcount table entries of empty blocks => the file cut

So the new size is in the file before anything is lost, and a cut later on leaves at worst clusters that are counted and
not used, or entries behind the end, which the next growth removes.

The generic code keeps every other request away meanwhile: nobody allocates.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import NotSupported
from aioblock.drivers.formats.qcow2.commit import commit, write_back
from aioblock.drivers.formats.qcow2.header import size_field
from aioblock.drivers.formats.qcow2.mapping import cluster_entry, release_entry, set_cluster_entry

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.tables import CachedTable

__all__ = ["drop_behind", "make_empty", "shrink"]

log: Final = logging.getLogger("aioblock.qcow2")

BATCH: Final = 4096
"""How many entries are looked at before other tasks get their turn."""
MOST_FREES: Final = 4096
"""How many runs of clusters wait to be counted down before that is done."""


async def shrink(image: "Image", length: int) -> None:
    """Make the disk `length` bytes long, a multiple of 512 less than its size.

    Failed: the old size, or the new one, with space behind its end that is not given back. Raises: OSError.
    """
    image.check_writable()
    header = image.header
    old = image.size
    await commit(image)
    header.size = length
    try:
        await image.file.pwrite(*size_field(header))
        await image.file.flush()
    except BaseException:
        await _restore_size(image, old)
        raise
    image.size = length
    await drop_behind(image, length)
    await _cut_file(image)
    if image.external:
        await image.data_file.truncate(length, exact=False)


async def make_empty(image: "Image") -> None:
    """Let the disk be what the backing file says: drop every reference of the active tables, VM state included.

    As in `shrink`, from the second step on. Stable after a flush. Failed: some are left. Raises: NotSupported; OSError.
    """
    image.check_writable()
    if image.data_file_raw:
        raise NotSupported("A raw external data file holds the whole disk by itself")
    await drop_behind(image, 0)
    await _cut_file(image)


async def _cut_file(image: "Image") -> None:
    """Write back what was dropped, and cut off the end of the file that nothing uses any more. Raises: OSError."""
    await write_back(image)
    end = await _drop_empty_blocks(image)
    if end << image.cluster_bits < image.file.length:
        await image.file.truncate(end << image.cluster_bits, exact=False)


async def _restore_size(image: "Image", old: int) -> None:
    """The file may have the new size: write the old one again, or give the image up."""
    image.header.size = old
    try:
        await image.file.pwrite(*size_field(image.header))
    except OSError as error:
        image.failure = error


async def drop_behind(image: "Image", end: int) -> None:
    """Take away from the active tables every reference to what lies in whole clusters behind `end`, VM state included.

    Failed: some are left. Raises: OSError.
    """
    first = -(-end >> image.cluster_bits)
    per_table = image.l2_mask + 1
    index = first // per_table
    if first % per_table:
        if index < len(image.l1) and image.l1[index]:
            await _drop_entries(image, first, (index + 1) * per_table)
        index += 1
    for number in range(index, len(image.l1)):
        if image.l1[number]:
            await _drop_table(image, number)
        elif not number % BATCH:
            await asyncio.sleep(0)


async def _drop_entries(image: "Image", first: int, stop: int) -> None:
    """Empty the entries of guest clusters from `first` up to `stop`, in one table, which stays."""
    for low in range(first, stop, BATCH):
        high = min(low + BATCH, stop)
        index = low << image.cluster_bits >> image.table_shift
        table = await image.l2.fetch(index)
        assert table is not None
        used = [cluster for cluster in range(low, high) if cluster_entry(image, table, cluster) != (0, 0)]
        if used:
            await image.make_room()
            table = await image.l2.own(index)
        for cluster in used:
            entry, _ = cluster_entry(image, table, cluster)
            set_cluster_entry(image, table, cluster, 0, 0)
            release_entry(image, entry, discard=True)
        await _settle_many(image)
        await asyncio.sleep(0)


async def _drop_table(image: "Image", index: int) -> None:
    """Take a whole L2 table away, and every reference in it."""
    table = await image.l2.drop(index)
    if table is None:
        return
    words = 2 if image.extended else 1
    for low in range(0, image.l2_mask + 1, BATCH):
        # Most entries are 0: those are passed over quickly.
        part = table.entries[low * words : (low + BATCH) * words : words]
        for number, entry in enumerate(part, low):
            if entry:
                release_entry(image, cluster_entry(image, table, number)[0], discard=True)
        await _settle_many(image)
        await asyncio.sleep(0)


async def _settle_many(image: "Image") -> None:
    if len(image.frees) > MOST_FREES:
        await commit(image)


async def _drop_empty_blocks(image: "Image") -> int:
    """Remove refcount blocks at the end that count nothing; the first host cluster behind everything in use."""
    refcounts = image.refcounts
    while True:
        end = 0
        dropped = False
        for index in range(len(refcounts.table) - 1, -1, -1):
            if not refcounts.table[index]:
                continue
            block = await refcounts.fetch(index)
            last = _last_used(block, index << refcounts.shift, image.cluster_bits)
            if last is not None:
                end = (index << refcounts.shift) + last + 1
                break
            refcounts.drop_block(block)
            dropped = True
            await asyncio.sleep(0)
        if not dropped:
            return end
        refcounts.hint = min(refcounts.hint, end)
        await write_back(image)


def _last_used(block: "CachedTable", first: int, cluster_bits: int) -> int | None:
    """The place of the last count in a block, which covers clusters from `first` on; None: it counts itself at most."""
    counts = block.entries
    width = counts.itemsize
    place = (block.offset >> cluster_bits) - first
    used = counts.tobytes().rstrip(b"\0")
    if not used:
        return None
    last = (len(used) - 1) // width
    if last == place and counts[place] == 1 and not used[: place * width].strip(b"\0"):
        return None
    return last
