"""Finding a snapshot, its L1 table, and opening an image as it was then."""

import errno
import os
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aioblock.base.errors import CorruptImage, NotSupported, OptionError, message_of
from aioblock.base.options import Options
from aioblock.core.images import SnapshotInfo
from aioblock.drivers.formats.qcow2.entries import table_from_bytes
from aioblock.drivers.formats.qcow2.snapshot_table import SnapshotEntry
from aioblock.drivers.formats.qcow2.validation import MAX_L1_BYTES

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.header import Header
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["check_l1", "describe_snapshots", "find", "load_snapshot", "read_l1"]


def describe_snapshots(header: "Header") -> Sequence[SnapshotInfo]:
    """What users are told, in the order of the table."""
    return tuple(describe_snapshot(entry, header.size) for entry in header.snapshots)


def describe_snapshot(entry: SnapshotEntry, disk_size: int) -> SnapshotInfo:
    """One of them; `disk_size`: where the snapshot does not say its own."""
    return SnapshotInfo(
        id=os.fsdecode(entry.id),
        name=os.fsdecode(entry.name),
        vm_state_size=entry.vm_state_size,
        date_sec=entry.date_sec,
        date_nsec=entry.date_nsec,
        vm_clock_nsec=entry.vm_clock_nsec,
        icount=entry.icount,
        disk_size=disk_size if entry.disk_size is None else entry.disk_size,
    )


def find(image: "Image", id_or_name: str) -> SnapshotEntry:
    """The snapshot with this id, else the first with this name. Raises: OSError ENOENT."""
    wanted = os.fsencode(id_or_name)
    for attribute in ("id", "name"):
        for entry in image.header.snapshots:
            if getattr(entry, attribute) == wanted:
                return entry
    raise OSError(errno.ENOENT, "Can't find snapshot")


def check_l1(image: "Image", entry: SnapshotEntry) -> None:
    """Whether the L1 table of a snapshot can be one. Raises: OSError (EINVAL, EFBIG, EIO)."""
    if 8 * entry.l1_size > MAX_L1_BYTES:
        raise OSError(errno.EFBIG, "Snapshot L1 table too large")
    if entry.l1_table_offset & image.cluster_mask or entry.l1_table_offset > (1 << 63) - 1 - 8 * entry.l1_size:
        raise OSError(errno.EINVAL, "Snapshot L1 table offset invalid")
    if entry.l1_size and (not entry.l1_table_offset or _overlap(image, entry)):
        raise OSError(errno.EIO, "Snapshot L1 table overlaps with the header or the active L1 table")


def _overlap(image: "Image", entry: SnapshotEntry) -> bool:
    header = image.header
    begin, end = header.l1_table_offset, header.l1_table_offset + 8 * header.l1_size
    return entry.l1_table_offset < end and begin < entry.l1_table_offset + 8 * entry.l1_size


async def read_l1(image: "Image", entry: SnapshotEntry) -> "array[int]":
    """The L1 table of a snapshot, checked; behind the end of the file it is zero. Raises: OSError, as `check_l1`."""
    check_l1(image, entry)
    return table_from_bytes(await image.file.pread(entry.l1_table_offset, 8 * entry.l1_size))


async def load_snapshot(image: "Image", asked: Any) -> None:
    """Let a read-only image be what a snapshot holds. `asked`: an id or a name, or a mapping with one or both of them.

    Raises: OptionError where there is none; CorruptImage; NotSupported; OSError.
    """
    entry = _chosen(image, asked)
    if not image.read_only:
        raise OptionError("A snapshot can be opened read-only only", option="snapshot")
    if image.external:
        raise NotSupported
    try:
        check_l1(image, entry)
    except OSError as error:
        raise CorruptImage(message_of(error)) from error
    size = image.size if entry.disk_size is None else entry.disk_size
    needed = -(-size >> image.table_shift)
    if size > image.header.max_size:
        raise CorruptImage("The size of the disk in the snapshot makes no sense")
    l1 = await read_l1(image, entry)
    l1.extend(array("Q", bytes(8 * max(needed - len(l1), 0))))
    image.l1, image.l1_offset, image.size = l1, entry.l1_table_offset, size
    image.snapshot = entry


def _chosen(image: "Image", asked: Any) -> SnapshotEntry:
    if not isinstance(asked, Mapping):
        try:
            return find(image, str(asked))
        except OSError as error:
            raise OptionError(message_of(error), option="snapshot") from None
    options = Options(asked)
    wanted = {name: value for name in ("id", "name") if (value := options.take_str(name, None)) is not None}
    for name in options.leftover():
        raise OptionError(f"Invalid parameter 'snapshot.{name}'", option="snapshot")
    for entry in image.header.snapshots:
        if wanted and all(getattr(entry, name) == os.fsencode(value) for name, value in wanted.items()):
            return entry
    raise OptionError("Can't find snapshot", option="snapshot")
