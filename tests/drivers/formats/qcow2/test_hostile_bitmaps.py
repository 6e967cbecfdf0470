"""Bitmaps that somebody made up: the image can be read, nothing is believed, nothing is taken for a declared size."""

import struct
import tracemalloc

import pytest

import aioblock
from aioblock import BitmapError, CorruptImage, ImageError
from aioblock.drivers.formats.qcow2 import extensions as ext
from tests.kit.qcow2_images import header_of, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

SIZE = 1 << 20
NAME = "first"


async def an_image():
    """An image with one bitmap, where its extension's value is, and where its directory and its table are."""
    disk = RecordedDisk(await new_image(SIZE))
    async with await open_disk(disk) as image:
        await image.bitmap_add(NAME, 512)
        await image.pwrite(0, b"x" * 4096)
    content = bytearray(disk.content())
    value = ext.find(header_of(bytes(content)).extensions, ext.BITMAPS)
    directory = ext.parse_bitmaps(value, 65536).directory_offset
    (table,) = struct.unpack_from(">Q", content, directory)
    return content, content.index(value), directory, table


EXTENSION = [
    (0, ">I", 0, "found bitmaps extension with zero bitmaps"),
    (0, ">I", 65536, "Image has 65536 bitmaps, exceeding the QEMU supported maximum of 65535"),
    (0, ">I", 2, "Less bitmaps found than specified in header extension"),
    (4, ">I", 1, "Reserved field is not zero"),
    (8, ">Q", 0, "Requested bitmap directory size is zero"),
    (8, ">Q", (64 << 20) + 1, "exceeds the maximum supported size"),
    (8, ">Q", 1 << 63, "exceeds the maximum supported size"),
    (8, ">Q", 0x3FFFC00, "Broken bitmap directory"),
    (8, ">Q", 16, "Broken bitmap directory"),
    (16, ">Q", 512, "invalid bitmap directory offset"),
    (16, ">Q", 0, "Broken bitmap directory"),
    (16, ">Q", 1 << 40, "Broken bitmap directory"),
]
ENTRY = [
    (0, ">Q", 0, "doesn't satisfy the constraints"),
    (0, ">Q", 513, "doesn't satisfy the constraints"),
    (0, ">Q", 1 << 62, "doesn't satisfy the constraints"),
    (8, ">I", 0, "doesn't satisfy the constraints"),
    (8, ">I", (1 << 27) + 1, "doesn't satisfy the constraints"),
    (8, ">I", (512 << 20 >> 16) + 1, "doesn't satisfy the constraints"),
    (12, ">I", 1 << 3, "doesn't satisfy the constraints"),
    (16, ">B", 2, "doesn't satisfy the constraints"),
    (17, ">B", 8, "doesn't satisfy the constraints"),
    (17, ">B", 32, "doesn't satisfy the constraints"),
    (18, ">H", 0, "doesn't satisfy the constraints"),
    (18, ">H", 1024, "Broken bitmap directory"),
    (18, ">H", 65535, "Broken bitmap directory"),
    (20, ">I", 8, "Broken bitmap directory"),
    (20, ">I", 0xFFFFFFF8, "Broken bitmap directory"),
]


@pytest.mark.parametrize(
    ("place", "field"), [("extension", row) for row in EXTENSION] + [("entry", row) for row in ENTRY]
)
async def test_the_directory(caplog, place, field):
    content, value, directory, _ = await an_image()
    at, form, number, message = field
    struct.pack_into(form, content, (value if place == "extension" else directory) + at, number)
    disk = RecordedDisk(bytes(content))
    tracemalloc.start()
    try:
        async with await open_disk(disk, writable=False) as image:
            assert image.bitmaps() == {}
            assert image.info().specific.get("bitmaps") is None
            assert bytes(await image.pread(0, 4)) == b"xxxx"
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert "Bitmaps are not available" in caplog.text
    with pytest.raises(ImageError, match=message):
        await open_disk(disk)
    assert disk.changes() == []


async def test_extra_data_and_names_that_are_too_long():
    content, value, directory, table = await an_image()
    for name, extra, message in (
        (b"n" * 1024, b"", "doesn't satisfy the constraints"),
        (b"n", b"extra   ", "Bitmap extra data is not supported"),
    ):
        fixed = struct.pack(">QIIBBHI", table, 1, 0, 1, 16, len(name), len(extra))
        entry = fixed + extra + name
        entry += bytes(-len(entry) % 8)
        content[directory : directory + len(entry)] = entry
        struct.pack_into(">Q", content, value + 8, len(entry))
        disk = RecordedDisk(bytes(content))
        async with await open_disk(disk, writable=False) as image:
            assert image.bitmaps() == {}
        with pytest.raises(CorruptImage, match=message):
            await open_disk(disk)


async def test_two_of_one_name():
    content, value, directory, _ = await an_image()
    entry = content[directory : directory + 32]
    content[directory + 32 : directory + 64] = entry
    struct.pack_into(">IIQ", content, value, 2, 0, 64)
    with pytest.raises(CorruptImage, match="Bitmap already exists: first"):
        await open_disk(RecordedDisk(bytes(content)))


async def test_a_check_opens_in_spite_of_them():
    content, value, _, _ = await an_image()
    struct.pack_into(">I", content, value, 2)
    disk = RecordedDisk(bytes(content))
    described = {"driver": "qcow2", "file": disk.options(), "backing": None}
    async with await aioblock.open(described, writable=True, for_check=True) as image:
        assert image.bitmaps() == {}
        assert (await image.check()).corruptions == 1


BAD_TABLES = [
    (1 << 1, "reserved bit"),
    (1 << 56, "reserved bit"),
    (1 << 62, "reserved bit"),
    (0x10200, "not aligned"),
    (0x10001, "an offset, and all ones"),
    (1 << 40, "behind the end of the file"),
]


@pytest.mark.parametrize("entry", [row[0] for row in BAD_TABLES], ids=[row[1] for row in BAD_TABLES])
async def test_a_bad_table_makes_its_bitmap_inconsistent(caplog, entry):
    content, _, _, table = await an_image()
    struct.pack_into(">Q", content, table, entry)
    await found_inconsistent(RecordedDisk(bytes(content)))
    assert "Bitmap 'first' is not available" in caplog.text


async def test_a_table_of_another_size_than_the_disk_asks_for():
    content, _, directory, _ = await an_image()
    struct.pack_into(">I", content, directory + 8, 2)
    await found_inconsistent(RecordedDisk(bytes(content)))


async def test_a_table_behind_the_end_of_the_file():
    content, _, directory, _ = await an_image()
    struct.pack_into(">Q", content, directory, 1 << 40)
    await found_inconsistent(RecordedDisk(bytes(content)))


async def found_inconsistent(disk):
    """It is there, cannot be used, and can be removed."""
    async with await open_disk(disk, writable=False) as image:
        assert set(image.bitmaps()) == {NAME}
        with pytest.raises(BitmapError, match="inconsistent"):
            await image.bitmap(NAME)
        assert image.info().specific["bitmaps"][0]["flags"] == ["in-use", "auto"]
    async with await open_disk(disk) as image:
        assert image.bitmaps()[NAME].inconsistent
        await image.pwrite(0, b"y")
    async with await open_disk(disk) as image:
        assert image.bitmaps()[NAME].inconsistent
        await image.bitmap_remove(NAME)
        await image.bitmap_add(NAME)
        await image.pwrite(0, b"y")
    async with await open_disk(disk, writable=False) as image:
        assert list((await image.bitmap(NAME)).ranges()) == [(0, 65536)]


async def test_many_tables_over_the_same_cluster_take_no_more_memory_than_the_file():
    content = bytearray(await new_image(1 << 40))
    disk = RecordedDisk(bytes(content))
    async with await open_disk(disk) as image:
        await image.bitmap_add(NAME, 4096)
        await image.pwrite(0, b"x")
    content = bytearray(disk.content())
    value = ext.find(header_of(bytes(content)).extensions, ext.BITMAPS)
    table, size = struct.unpack_from(">QI", content, ext.parse_bitmaps(value, 65536).directory_offset)
    (data,) = struct.unpack_from(">Q", content, table)
    content[data : data + 65536] = b"\x55" * 65536
    content[table : table + 8 * size] = struct.pack(">Q", data) * size
    assert size == 512
    tracemalloc.start()
    try:
        async with await open_disk(RecordedDisk(bytes(content)), writable=False) as image:
            with pytest.raises(BitmapError, match="inconsistent"):
                await image.bitmap(NAME)
        assert tracemalloc.get_traced_memory()[1] < 6 * len(content)
    finally:
        tracemalloc.stop()
