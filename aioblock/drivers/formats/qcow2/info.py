"""What a qcow2 image tells about itself, in the words and the order of `qemu-img info`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aioblock.core.dirty_bitmap import DirtyBitmap
from aioblock.core.images import DriverInfo, InnerName, detail_lines
from aioblock.drivers.formats.qcow2.compression import compression_name
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_DATA_FILE_RAW, CRYPT_AES, CRYPT_NONE
from aioblock.drivers.formats.qcow2.header import Header

if TYPE_CHECKING:
    from aioblock.luks.volume import Volume

__all__ = ["describe"]


def describe(header: Header, bitmaps: Sequence[DirtyBitmap] = (), volume: "Volume | None" = None) -> DriverInfo:
    """The facts in the header, the persistent bitmaps, and the LUKS header of an encrypted image."""
    specific = _specific(header, bitmaps, volume)
    return DriverInfo(
        cluster_size=header.cluster_size,
        dirty=header.dirty,
        encrypted=header.crypt_method != CRYPT_NONE,
        backing=None if header.backing_file is None else InnerName(header.backing_file, header.backing_format),
        vm_state_offset=header.l1_entries_needed << (header.cluster_bits + header.l2_bits),
        snapshots=header.nb_snapshots,
        specific=specific,
        lines=tuple(detail_lines(specific)),
    )


def _specific(header: Header, bitmaps: Sequence[DirtyBitmap], volume: "Volume | None") -> dict[str, Any]:
    modern = header.version >= 3
    data: dict[str, Any] = {
        "compat": "1.1" if modern else "0.10",
        "compression-type": compression_name(header.compression_type),
    }
    if modern:
        data["lazy-refcounts"] = header.lazy_refcounts
    if bitmaps:
        data["bitmaps"] = [_bitmap(bitmap) for bitmap in bitmaps]
    data["refcount-bits"] = header.refcount_bits
    if header.has_data_file and header.data_file is not None:
        data["data-file"] = header.data_file
    if header.crypt_method != CRYPT_NONE:
        form = "aes" if header.crypt_method == CRYPT_AES else "luks"
        data["encrypt"] = {"format": form} if volume is None else volume.describe(form)
    if modern:
        if header.has_data_file:
            data["data-file-raw"] = bool(header.autoclear_features & AUTOCLEAR_DATA_FILE_RAW)
        data["corrupt"] = header.corrupt
        data["extended-l2"] = header.extended_l2
    return data


def _bitmap(bitmap: DirtyBitmap) -> dict[str, Any]:
    flags = [name for on, name in ((bitmap.inconsistent, "in-use"), (bitmap.enabled, "auto")) if on]
    return {"flags": flags, "name": bitmap.name, "granularity": bitmap.granularity}
