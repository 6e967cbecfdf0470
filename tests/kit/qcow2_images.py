"""qcow2 images for tests: made by our own `create` or by qemu-img, as bytes in memory or as files."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aioblock
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from aioblock.drivers.formats.qcow2.header import Header, parse_header
from aioblock.graph.backend import BlockBackend
from tests.kit.memory_io import MemoryIO
from tests.kit.oracle import assert_clean, assert_same, qemu_img
from tests.kit.recorded_disk import RecordedDisk

__all__ = ["assert_image", "header_of", "host_entries", "new_image", "open_disk", "qemu_image"]


async def new_image(size: int, **options: Any) -> bytes:
    """An empty image of our own making."""
    file = MemoryIO()
    await Qcow2Driver.create(file, {"size": size, **options})
    return bytes(file.data)


def qemu_image(path: Path, size: int, *args: str) -> Path:
    """An empty image of QEMU's making."""
    qemu_img("create", "-q", "-f", "qcow2", *args, path, str(size))
    return path


async def open_disk(
    disk: RecordedDisk,
    options: Mapping[str, Any] | None = None,
    *,
    writable: bool = True,
    backing: RecordedDisk | None = None,
) -> BlockBackend:
    """Open the qcow2 image on a disk; `backing`: a raw disk below it."""
    described: dict[str, Any] = {"driver": "qcow2", "file": disk.options(), **(options or {})}
    described["backing"] = None if backing is None else {"driver": "raw", "file": backing.options()}
    return await aioblock.open(described, writable=writable, trust=aioblock.TRUST_ALL)


def header_of(content: bytes) -> Header:
    """The header of an image."""
    return parse_header(content[:65536], "test", len(content), True)


def host_entries(content: bytes) -> dict[int, tuple[int, ...]]:
    """What the active L2 tables on disk hold: guest cluster to its entry (and bitmap), for those that are not 0."""
    header = header_of(content)
    words = header.l2_entry_size // 8
    found = {}
    for index in range(header.l1_size):
        (l1,) = struct.unpack_from(">Q", content, header.l1_table_offset + 8 * index)
        table = l1 & 0x00FF_FFFF_FFFF_FE00
        if not table:
            continue
        for number in range(header.l2_entries):
            place = table + number * header.l2_entry_size
            entry = struct.unpack(f">{words}Q", content[place : place + 8 * words].ljust(8 * words, b"\0"))
            if any(entry):
                found[index * header.l2_entries + number] = entry
    return found


def assert_image(folder: Path, content: bytes, model: bytes | bytearray) -> None:
    """QEMU finds nothing wrong with the image, and `model` in it."""
    image, raw = folder / "image.qcow2", folder / "model.raw"
    image.write_bytes(content)
    raw.write_bytes(model)
    assert_clean(image, "qcow2")
    assert_same(image, raw, ("qcow2", "raw"))
