"""Zero clusters made into what version 2 knows: nothing where there is no backing file, else clusters full of zeroes.

    new clusters counted, zeroes written => L2 entries => what they named before counted down

The guest sees no difference, so tables that belong to snapshots may be changed where they lie. Their clusters are
counted once for each L1 entry that leads to the table.
"""

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import NotSupported
from aioblock.drivers.formats.qcow2.commit import write_back
from aioblock.drivers.formats.qcow2.entries import (
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    OFLAG_COPIED,
    OFLAG_ZERO,
    table_from_bytes,
    table_to_bytes,
)
from aioblock.drivers.formats.qcow2.mapping import cluster_entry, release_entry, set_cluster_entry
from aioblock.drivers.formats.qcow2.snapshot_find import read_l1

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.snapshot_table import SnapshotEntry
    from aioblock.drivers.formats.qcow2.tables import CachedTable

__all__ = ["expand_zeroes"]

Progress = Callable[[int, int], None]

BATCH: Final = 256
"""How many clusters are filled with zeroes before other tasks get their turn."""


async def expand_zeroes(image: "Image", progress: Progress | None = None) -> None:
    """Leave no zero cluster in any table; subclusters are not there. Nothing else is in flight. Stable when done.

    Failed: some are left, and nothing else has changed. Raises: OSError.
    """
    inactive = await _snapshot_tables(image)
    total = len(image.l1) + sum(entry.l1_size for entry in image.header.snapshots)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for index in range(len(image.l1)):
        if image.l1[index]:
            await _expand_active(image, index)
        count()
    await write_back(image)
    for entry in image.header.snapshots:
        for index, offset in enumerate(await _tables_of(image, entry)):
            if references := inactive.pop((index, offset), 0):
                await _expand_inactive(image, index, offset, references)
            count()


def _zeroes_in(entries: "array[int]") -> list[int]:
    """The places of zero clusters in a table."""
    return [place for place, entry in enumerate(entries) if entry & OFLAG_ZERO and not entry & OFLAG_COMPRESSED]


async def _expand_active(image: "Image", index: int) -> None:
    table = await image.l2.fetch(index)
    assert table is not None
    zeroes = _zeroes_in(table.entries)
    for number, place in enumerate(zeroes):
        await image.make_room()
        table = await image.l2.own(index)
        await _expand(image, table, (index << image.table_shift - image.cluster_bits) + place)
        if not number % BATCH:
            await asyncio.sleep(0)


async def _expand(image: "Image", table: "CachedTable", cluster: int) -> None:
    """One cluster of the active tables. A host cluster that it alone has is kept, and filled."""
    entry, _ = cluster_entry(image, table, cluster)
    guest, host = cluster << image.cluster_bits, entry & OFFSET_MASK
    index = table.index
    new = 0
    if host and entry & OFLAG_COPIED:
        new = entry
    elif image.backing is not None:
        first, _ = await image.refcounts.allocate(1, "data cluster")
        new = first << image.cluster_bits | OFLAG_COPIED
    if new:
        await image.data.pwrite_zeroes(new & OFFSET_MASK, guest, image.cluster_size)
    table = await image.l2.own(index)
    set_cluster_entry(image, table, cluster, new, 1 if new else 0)
    if new != entry:
        release_entry(image, entry, discard=True)


# -- snapshots -------------------------------------------------------------------------------------------------------


async def _snapshot_tables(image: "Image") -> Counter[tuple[int, int]]:
    """The L2 tables of all snapshots, as L1 index and offset, and how many L1 entries of theirs lead to each."""
    tables: Counter[tuple[int, int]] = Counter()
    for entry in image.header.snapshots:
        offsets = await _tables_of(image, entry)
        tables.update((index, offset) for index, offset in enumerate(offsets) if offset)
        await asyncio.sleep(0)
    return tables


async def _tables_of(image: "Image", entry: "SnapshotEntry") -> list[int]:
    """The offsets of the L2 tables of a snapshot, 0 where there is none."""
    return [word & OFFSET_MASK for word in await read_l1(image, entry)]


async def _expand_inactive(image: "Image", index: int, offset: int, references: int) -> None:
    """A table of snapshots, in its place. The active table that was the same is another one by now."""
    table = table_from_bytes(await image.file.pread(offset, image.cluster_size))
    zeroes = _zeroes_in(table)
    if not zeroes:
        return
    released = []
    for number, place in enumerate(zeroes):
        released.append(table[place] & OFFSET_MASK)
        guest = (index << image.table_shift) + (place << image.cluster_bits)
        table[place] = await _shared_zeroes(image, guest, references) if image.backing is not None else 0
        if not number % BATCH:
            await asyncio.sleep(0)
    await write_back(image)
    await image.file.pwrite(offset, table_to_bytes(table))
    await image.file.flush()
    for host in released:
        for _ in range(references if host else 0):
            image.release(host, discard=True)
    await write_back(image)


async def _shared_zeroes(image: "Image", guest: int, references: int) -> int:
    """A new cluster full of zeroes that is referred to so often; its offset. Raises: NotSupported, OSError."""
    refcounts = image.refcounts
    cluster, _ = await refcounts.allocate(1, "data cluster")
    for _ in range(references - 1):
        await refcounts.fetch(cluster >> refcounts.shift)
        if not refcounts.count_up(cluster):
            raise NotSupported("Too many snapshots share a cluster")
    await image.data.pwrite_zeroes(cluster << image.cluster_bits, guest, image.cluster_size)
    return cluster << image.cluster_bits
