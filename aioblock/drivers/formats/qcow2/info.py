"""What a qcow2 image tells about itself, in the words and the order of `qemu-img info`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aioblock.core.images import DriverInfo, InnerName
from aioblock.drivers.formats.qcow2.bitmap_directory import AUTO, IN_USE, BitmapEntry
from aioblock.drivers.formats.qcow2.compression import compression_name
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_DATA_FILE_RAW, CRYPT_AES, CRYPT_NONE
from aioblock.drivers.formats.qcow2.header import Header

__all__ = ["describe"]


def describe(header: Header, bitmaps: Sequence[BitmapEntry] = ()) -> DriverInfo:
    """The facts in the header, and the persistent bitmaps if the caller has read their directory."""
    specific = _specific(header, bitmaps)
    return DriverInfo(
        cluster_size=header.cluster_size,
        dirty=header.dirty,
        encrypted=header.crypt_method != CRYPT_NONE,
        backing=None if header.backing_file is None else InnerName(header.backing_file, header.backing_format),
        vm_state_offset=header.l1_entries_needed << (header.cluster_bits + header.l2_bits),
        snapshots=header.nb_snapshots,
        specific=specific,
        lines=tuple(_lines(specific)),
    )


def _specific(header: Header, bitmaps: Sequence[BitmapEntry]) -> dict[str, Any]:
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
        data["encrypt"] = {"format": "aes" if header.crypt_method == CRYPT_AES else "luks"}
    if modern:
        if header.has_data_file:
            data["data-file-raw"] = bool(header.autoclear_features & AUTOCLEAR_DATA_FILE_RAW)
        data["corrupt"] = header.corrupt
        data["extended-l2"] = header.extended_l2
    return data


def _bitmap(bitmap: BitmapEntry) -> dict[str, Any]:
    flags = [name for bit, name in ((IN_USE, "in-use"), (AUTO, "auto")) if bitmap.flags & bit]
    return {"flags": flags, "name": bitmap.name, "granularity": 1 << bitmap.granularity_bits}


def _lines(value: Mapping[str, Any] | Sequence[Any], indent: str = "") -> Iterator[str]:
    """A nested value, a line for each leaf; what lies deeper is indented by four more."""
    pairs: Iterator[tuple[str, Any]]
    if isinstance(value, Mapping):
        pairs = ((key.replace("-", " "), item) for key, item in value.items())
    else:
        pairs = ((f"[{number}]", item) for number, item in enumerate(value))
    for name, item in pairs:
        if isinstance(item, Mapping | list):
            yield f"{indent}{name}:"
            yield from _lines(item, indent + "    ")
        else:
            shown = str(item).lower() if isinstance(item, bool) else item
            yield f"{indent}{name}: {shown}"
