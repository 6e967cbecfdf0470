"""Internal snapshots: create, apply, delete. The image is drained: nothing else is in flight.

A snapshot is an L1 table of its own, and an entry in the snapshot table that names it. Its L2 tables and clusters are
those of the disk; their refcounts count the ways to them (see `snapshot_counts`). Everything is prepared next to what
is valid, and then one write inside the first sector of the header switches to it: a power cut leaves the image before
the switch or behind it, and clusters that leak.

Each verb begins with memory and file alike, and ends so. Between two steps stands a `write_back`: what was done before
is stable (`A => B` in the docstrings). Rules are those of the order of writes; 1: counts before references; 7: a count
goes down when the removal of the reference is stable; 9: COPIED says, at every moment, that there is one reference.
"""

import errno
import os
import time
from array import array
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from aioblock.base.errors import CorruptImage, NotSupported
from aioblock.drivers.formats.qcow2.commit import write_back
from aioblock.drivers.formats.qcow2.entries import OFFSET_MASK, table_to_bytes
from aioblock.drivers.formats.qcow2.header import size_and_l1_field, snapshots_field
from aioblock.drivers.formats.qcow2.shrink import drop_behind
from aioblock.drivers.formats.qcow2.snapshot_counts import check_tree, count_down, count_up, set_copied
from aioblock.drivers.formats.qcow2.snapshot_find import check_l1, find, read_l1
from aioblock.drivers.formats.qcow2.snapshot_table import (
    MAX_NAME,
    MAX_TABLE_BYTES,
    SnapshotEntry,
    completed,
    extra_data,
    next_id,
    read_snapshot_table,
    snapshot_table_to_bytes,
    table_length,
)
from aioblock.drivers.formats.qcow2.validation import MAX_SNAPSHOTS
from aioblock.drivers.formats.qcow2.vm_state import vm_state_offset

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["apply_snapshot", "complete_snapshot_table", "create_snapshot", "delete_snapshot"]


async def create_snapshot(
    image: "Image", name: str, *, vm_state_size: int, vm_clock_nsec: int, icount: int | None
) -> SnapshotEntry:
    """Keep the disk and the VM state as they are now. Rule 12:

        counts of the whole tree and of the new tables, COPIED cleared in the active L2 tables, then in the active L1
        table (9), the new L1 table, without COPIED => the new snapshot table => the header names it => counts of the
        old snapshot table; the active tables lose the VM state, which belongs to the snapshot

    Failed: there is no such snapshot; at worst clusters leak. Raises: NotSupported; OSError (EINVAL: the name is too
    long, or a refcount too narrow; EFBIG: no room in the snapshot table).
    """
    await _ready(image)
    entries = image.header.snapshots
    raw_name = os.fsencode(name)
    if len(raw_name) > MAX_NAME or vm_state_size < 0:
        raise OSError(errno.EINVAL, "The name of the snapshot is too long, or the size of its VM state negative")
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    entry = SnapshotEntry(
        l1_table_offset=0,
        l1_size=len(image.l1),
        date_sec=seconds & 0xFFFFFFFF,
        date_nsec=nanoseconds,
        vm_clock_nsec=vm_clock_nsec,
        vm_state_size=vm_state_size,
        extra_data=extra_data(vm_state_size, image.size, icount),
        id=next_id(entries),
        name=raw_name,
    )
    new = [*(completed(old, image.header.size) for old in entries), entry]
    if len(new) > MAX_SNAPSHOTS or table_length(new) > MAX_TABLE_BYTES:
        raise OSError(errno.EFBIG, "The image has too many snapshots, or their names are too long")

    await count_up(image, image.l1)
    taken = _Taken(image)
    try:
        await set_copied(image)
        entry.l1_table_offset = await taken.write("snapshot L1 table", _l1_bytes(image.l1))
        await write_back(image)
        await _switch_table(image, new, taken)
    except OSError:
        await taken.give_back()
        await _undo(image, image.l1)
        raise
    if vm_state_size:
        await drop_behind(image, vm_state_offset(image))
    await write_back(image)
    return entry


async def delete_snapshot(image: "Image", id_or_name: str) -> None:
    """Forget a snapshot. Rule 14:

        the snapshot table without it, and the count of that => the header names it
        => counts of its tree, its L1 table and the old snapshot table (7) => COPIED where one reference is left (9)

    Failed: it is there, or gone; at worst clusters leak. Raises: OSError (ENOENT: there is none).
    """
    await _ready(image)
    entries = image.header.snapshots
    entry = find(image, id_or_name)
    l1 = await read_l1(image, entry)
    await check_tree(image, l1)
    taken = _Taken(image)
    try:
        left = [completed(other, image.header.size) for other in entries if other is not entry]
        await _switch_table(image, left, taken)
    except OSError:
        await taken.give_back()
        raise
    await count_down(image, l1)
    _release(image, entry.l1_table_offset, 8 * entry.l1_size)
    await write_back(image)
    await set_copied(image)
    await write_back(image)


async def apply_snapshot(image: "Image", id_or_name: str) -> None:
    """Make the disk what a snapshot holds, its size too. Rule 13:

        counts of the snapshot's tree, and of a new L1 table; that table, without COPIED => the header names it, and
        has the size, in one write => counts of the old tree and its L1 table (7) => COPIED where one reference is
        left (9)

    The L1 table that is stored for the snapshot is never used itself, and its COPIED bits mean nothing.

    Failed: the disk is as it was, or as the snapshot; at worst clusters leak. Raises: NotSupported; OSError (ENOENT:
    there is none; EINVAL: a refcount is too narrow).
    """
    await _ready(image)
    if image.bitmaps:  # they would not tell what is different then
        raise NotSupported("Device has active dirty bitmaps")
    entry = find(image, id_or_name)
    check_l1(image, entry)
    header = image.header
    size = image.size if entry.disk_size is None else entry.disk_size
    if size != image.size and image.version < 3:
        raise NotSupported("Can't change the size of a v2 image which has snapshots")
    needed = -(-size >> image.table_shift)
    if size % 512 or max(needed, entry.l1_size) > header.max_l1_size or size > header.max_size:
        raise OSError(errno.EFBIG, "The size of the disk in the snapshot makes no sense")
    stored = await read_l1(image, entry)
    await check_tree(image, stored)
    new = array("Q", [l1_entry & OFFSET_MASK for l1_entry in stored])
    new.extend(array("Q", bytes(8 * max(needed - len(new), 0))))
    old, old_offset = image.l1, image.l1_offset

    await count_up(image, stored)
    taken = _Taken(image)
    try:
        offset = await taken.write("L1 table", _l1_bytes(new))
        await write_back(image)
        before = header.size, header.l1_size, header.l1_table_offset
        header.size, header.l1_size, header.l1_table_offset = size, len(new), offset
        try:
            await taken.switch(size_and_l1_field(header))
        except OSError:
            header.size, header.l1_size, header.l1_table_offset = before
            raise
    except OSError:
        await taken.give_back()
        await _undo(image, stored)
        raise
    image.l1, image.l1_offset, image.size = new, offset, size
    image.forget_mapping()
    await count_down(image, old)
    _release(image, old_offset, 8 * len(old))
    await write_back(image)
    await set_copied(image)
    await write_back(image)


async def complete_snapshot_table(image: "Image") -> None:
    """Give every snapshot the extra data that version 3 asks for. Memory and file agree; stable when done.

    Failed: the old table, or the new one. Raises: OSError.
    """
    header = image.header
    if all(entry.disk_size is not None for entry in header.snapshots):
        return
    taken = _Taken(image)
    try:
        await _switch_table(image, [completed(entry, header.size) for entry in header.snapshots], taken)
    except BaseException:
        await taken.give_back()
        raise
    await write_back(image)


# -- steps -----------------------------------------------------------------------------------------------------------


async def _ready(image: "Image") -> None:
    """Memory and file agree, and the snapshot table is known. Raises: NotSupported; OSError."""
    image.check_writable()
    header = image.header
    if header.has_data_file:
        raise NotSupported  # its clusters have no refcounts
    if len(header.snapshots) != header.nb_snapshots:
        try:
            header.snapshots, _ = await read_snapshot_table(image.file, header)
        except CorruptImage as error:
            raise OSError(errno.EIO, str(error)) from error
    await write_back(image)


class _Taken:
    """Clusters that a verb has taken, and gives back where it fails before the header names them."""

    def __init__(self, image: "Image") -> None:
        self.image = image
        self._runs: list[tuple[int, int]] = []
        self._named = False

    async def write(self, what: str, data: bytes) -> int:
        """Store a table in clusters of its own; their offset, or 0 where there is nothing to store. Raises: OSError."""
        image = self.image
        count = -(-len(data) >> image.cluster_bits)
        if not count:
            return 0
        first = await image.refcounts.allocate_run(count, what)
        self._runs.append((first, count))
        await image.file.pwrite(first << image.cluster_bits, data.ljust(count << image.cluster_bits, b"\0"))
        return first << image.cluster_bits

    async def switch(self, field: tuple[int, bytes]) -> None:
        """Write a field of the header, inside one sector, and make it stable.

        Failed: nobody knows which header the file has, so nothing is given back, and the image not written any more.
        Raises: OSError.
        """
        self._named = True
        try:
            await self.image.file.pwrite(*field)
            await self.image.file.flush()
        except OSError as error:
            self.image.failure = self.image.failure or error
            raise

    async def give_back(self) -> None:
        """The verb has failed."""
        if self._named:
            return
        for first, count in self._runs:
            await _at_worst_leaking(self.image.refcounts.give_back(first, count))


async def _switch_table(image: "Image", entries: list[SnapshotEntry], taken: _Taken) -> None:
    """Write everything back, with a new snapshot table in a new place => the header names it; the old one is released.

    Raises: OSError.
    """
    header = image.header
    old = header.snapshots_offset, table_length(header.snapshots)
    offset = await taken.write("snapshot table", snapshot_table_to_bytes(entries))
    await write_back(image)
    before = header.nb_snapshots, header.snapshots_offset
    header.nb_snapshots, header.snapshots_offset = len(entries), offset
    try:
        await taken.switch(snapshots_field(header))
    except OSError:
        header.nb_snapshots, header.snapshots_offset = before
        raise
    header.snapshots = entries
    _release(image, *old)


async def _undo(image: "Image", l1: "array[int]") -> None:
    """A verb has failed behind `count_up`: take the counts back, and set COPIED again, unless the file is lost."""
    if image.failure is None:
        await _at_worst_leaking(count_down(image, l1))
        await _at_worst_leaking(set_copied(image))


async def _at_worst_leaking(step: Awaitable[None]) -> None:
    """Clean up behind an error that is raised anyway."""
    try:
        await step
    except OSError:
        pass


def _release(image: "Image", offset: int, nbytes: int) -> None:
    """Give a table back, which nothing in the file refers to any more."""
    if offset and nbytes:
        image.release(offset, -(-nbytes >> image.cluster_bits))


def _l1_bytes(l1: "array[int]") -> bytes:
    """An L1 table without COPIED: more than one tree refers to what it names."""
    return table_to_bytes(entry & OFFSET_MASK for entry in l1)
