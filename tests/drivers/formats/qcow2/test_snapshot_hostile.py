"""Snapshot tables and snapshots whose fields make no sense: refused, and nothing in the file changes."""

import errno
import struct
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import CorruptImage, ImageError
from tests.kit.qcow2_images import header_of, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

SIZE = 1 << 20
CLUSTER = 65536


async def with_snapshot(**options: Any) -> tuple[bytearray, int]:
    """An image with a little data and one snapshot, and where the entry of that lies."""
    disk = RecordedDisk(await new_image(SIZE, **options))
    image = await open_disk(disk)
    await image.pwrite(0, b"x" * 1000)
    await image.snapshot_create("one")
    await image.close()
    content = bytearray(disk.content())
    return content, header_of(content).snapshots_offset


@pytest.mark.parametrize(
    ("number", "offset", "message"),
    [
        (65537, 3 * CLUSTER, "Snapshot table too large"),
        ((1 << 31) - 1, 3 * CLUSTER, "Snapshot table too large"),
        (1, (1 << 64) - CLUSTER, "Snapshot table offset invalid"),
        (1, 3 * CLUSTER + 8, "Snapshot table offset invalid"),
    ],
)
async def test_the_header_field_of_the_table(number: int, offset: int, message: str) -> None:
    content, _ = await with_snapshot()
    content[60:72] = struct.pack(">IQ", number, offset)
    for writable in (False, True):
        disk = RecordedDisk(bytes(content))
        with pytest.raises(ImageError, match=message):
            await open_disk(disk, writable=writable)
        assert disk.changes() == []


async def test_too_much_extra_data() -> None:
    content, entry = await with_snapshot()
    content[entry + 36 : entry + 40] = struct.pack(">I", 1025)
    with pytest.raises(CorruptImage, match="Too much extra metadata in snapshot table entry 0"):
        await open_disk(RecordedDisk(bytes(content)), writable=False)


async def test_a_name_that_reaches_past_the_end_of_the_file_ends_in_zeroes() -> None:
    content, entry = await with_snapshot()
    content[entry + 14 : entry + 16] = struct.pack(">H", 65535)
    disk = RecordedDisk(bytes(content[: entry + 512]))
    image = await open_disk(disk, writable=False)
    (snapshot,) = image.snapshots()
    assert snapshot.name == "one" + "\0" * 65532
    await image.close()


async def test_names_keep_their_bytes_and_ids_may_be_there_twice() -> None:
    content, entry = await with_snapshot()
    second = entry + 72
    content[second : second + 68] = content[entry : entry + 68]
    content[second + 65 : second + 68] = b"\xff\xfe\x80"
    content[60:64] = struct.pack(">I", 2)
    disk = RecordedDisk(bytes(content))
    image = await open_disk(disk)
    assert [(each.id, each.name) for each in image.snapshots()] == [("1", "one"), ("1", "\udcff\udcfe\udc80")]
    await image.snapshot_create("third")
    await image.close()
    assert b"\xff\xfe\x80" in disk.content()[header_of(disk.content()).snapshots_offset :]


BAD_L1 = {
    "unaligned": (struct.pack(">QI", 0x400200, 1), "Snapshot L1 table offset invalid", errno.EINVAL),
    "too far": (struct.pack(">QI", (1 << 64) - CLUSTER, 1), "Snapshot L1 table offset invalid", errno.EINVAL),
    "too large": (struct.pack(">QI", 4 * CLUSTER, 1 << 28), "Snapshot L1 table too large", errno.EFBIG),
}


@pytest.mark.parametrize("case", BAD_L1)
async def test_a_bad_l1_table_is_refused_where_it_is_needed(case: str) -> None:
    field, message, code = BAD_L1[case]
    content, entry = await with_snapshot()
    content[entry : entry + 12] = field
    disk = RecordedDisk(bytes(content))
    with pytest.raises(CorruptImage, match=message):
        await open_disk(disk, {"snapshot": "one"}, writable=False)
    image = await open_disk(disk)
    for verb in (image.snapshot_apply, image.snapshot_delete):
        with pytest.raises(OSError, match=message) as caught:
            await verb("one")
        assert caught.value.errno == code
    assert [record for record in disk.changes() if record.data] == []
    assert await image.pread(0, 1000) == b"x" * 1000
    await image.close()


def l1_of(content: bytearray, entry: int) -> int:
    return int(struct.unpack_from(">Q", content, entry)[0])


@pytest.mark.parametrize(
    "l1_entry",
    [0x50200, 0x7F00_0000_0000_0000 | 4 * CLUSTER, 4 * CLUSTER | 1, 1 << 55, 100 * CLUSTER],
    ids=["unaligned", "reserved", "reserved low", "far", "behind the file"],
)
async def test_a_bad_entry_in_the_l1_table_of_a_snapshot(l1_entry: int) -> None:
    content, entry = await with_snapshot()
    struct.pack_into(">Q", content, l1_of(content, entry), l1_entry)
    await refused_and_unchanged(bytes(content))


def add_l2_table(content: bytearray, entry: int, l2_entry: int) -> None:
    """Give the snapshot an L2 table of its own, in a new cluster at the end that is counted once."""
    table = -(-len(content) // CLUSTER) * CLUSTER
    content.extend(bytes(table + CLUSTER - len(content)))
    struct.pack_into(">Q", content, table, l2_entry)
    struct.pack_into(">Q", content, l1_of(content, entry), table)
    (block,) = struct.unpack_from(">Q", content, header_of(content).refcount_table_offset)
    struct.pack_into(">H", content, block + 2 * (table // CLUSTER), 1)


@pytest.mark.parametrize("l2_entry", [0x50200, 1 << 55, 100 * CLUSTER], ids=["unaligned", "far", "behind the file"])
async def test_a_bad_entry_in_an_l2_table_of_a_snapshot(l2_entry: int) -> None:
    content, entry = await with_snapshot()
    add_l2_table(content, entry, l2_entry)
    await refused_and_unchanged(bytes(content))


async def refused_and_unchanged(content: bytes) -> None:
    disk = RecordedDisk(content)
    image = await open_disk(disk)
    before = disk.content()
    for verb in (image.snapshot_apply, image.snapshot_delete):
        with pytest.raises(OSError) as caught:
            await verb("one")
        assert caught.value.errno in (errno.EIO, errno.EFBIG)
    assert disk.content() == before
    await image.pwrite(500, b"y")
    assert await image.pread(499, 3) == b"xyx"
    await image.close()


@pytest.mark.parametrize("where", ["active L1 table", "header", "refcount table", "refcount block", "active L2 table"])
@pytest.mark.parametrize("what", ["L1 table", "L1 entry", "L2 entry"])
async def test_metadata_that_is_none_of_the_snapshot(what: str, where: str) -> None:
    """It would be taken for free, and lost, with the snapshot. Sharing an L2 table with the disk is all right."""
    content, entry = await with_snapshot()
    header = header_of(content)
    (block,) = struct.unpack_from(">Q", content, header.refcount_table_offset)
    (active_l2,) = struct.unpack_from(">Q", content, header.l1_table_offset)
    place = {
        "active L1 table": header.l1_table_offset,
        "header": 0,
        "refcount table": header.refcount_table_offset,
        "refcount block": block,
        "active L2 table": active_l2,
    }[where]
    if what == "L1 table":
        struct.pack_into(">Q", content, entry, place)
    elif what == "L1 entry":
        if where in ("header", "active L2 table"):
            return  # no table; a table that is shared
        struct.pack_into(">Q", content, l1_of(content, entry), place)
    else:
        if where == "header":
            return  # not allocated
        add_l2_table(content, entry, place)
    await refused_and_unchanged(bytes(content))


async def test_no_l1_table_although_the_disk_has_a_size() -> None:
    content, _ = await with_snapshot()
    content[36:40] = bytes(4)
    with pytest.raises(ImageError, match="L1 table is too small"):
        await open_disk(RecordedDisk(bytes(content)), writable=False)


async def test_a_size_of_the_disk_that_makes_no_sense() -> None:
    content, entry = await with_snapshot()
    for size in ((1 << 64) - 512, 1 << 62):
        struct.pack_into(">Q", content, entry + 48, size)
        with pytest.raises(CorruptImage, match="makes no sense"):
            await open_disk(RecordedDisk(bytes(content)), {"snapshot": "one"}, writable=False)
        image = await open_disk(RecordedDisk(bytes(content)))
        with pytest.raises(OSError, match="makes no sense"):
            await image.snapshot_apply("one")
        await image.close()


async def test_an_l1_table_that_is_too_short_for_the_disk_is_continued_with_holes() -> None:
    content, entry = await with_snapshot(cluster_size=512)
    struct.pack_into(">I", content, entry + 8, 1)
    disk = RecordedDisk(bytes(content))
    image = await open_disk(disk, {"snapshot": "one"}, writable=False)
    assert await image.pread(0, 1000) == b"x" * 1000
    assert await image.pread(SIZE - 10, 10) == bytes(10)
    await image.close()
    image = await open_disk(disk)
    await image.snapshot_apply("one")
    await image.pwrite(SIZE - 10, b"e" * 10)
    assert await image.pread(SIZE - 10, 10) == b"e" * 10
    await image.close()


async def test_one_l2_table_for_every_l1_entry_is_read_once() -> None:
    content, entry = await with_snapshot(cluster_size=512, refcount_bits=32)
    l1 = l1_of(content, entry)
    (table,) = struct.unpack_from(">Q", content, l1)
    entries = struct.unpack_from(">I", content, entry + 8)[0]
    for number in range(entries):
        struct.pack_into(">Q", content, l1 + 8 * number, table)
    disk = RecordedDisk(bytes(content))
    image = await open_disk(disk)
    disk.records.clear()
    with pytest.raises(OSError, match="more often than its refcount says"):
        await image.snapshot_delete("one")
    reads = [record for record in disk.records if record.verb == "read" and record.offset == table]
    assert entries > 30 and len(reads) == 1
    await image.close()


async def test_a_table_that_the_check_let_through_is_read_before_it_is_changed() -> None:
    """An image that was opened to be checked does not lose the snapshots that it did not look at."""
    content, _ = await with_snapshot()
    disk = RecordedDisk(bytes(content))
    described = {"driver": "qcow2", "file": disk.options(), "backing": None}
    image = await aioblock.open(described, writable=True, for_check=True)
    await image.snapshot_create("two")
    assert [each.name for each in image.snapshots()] == ["one", "two"]
    await image.close()


async def test_extra_data_of_others_is_kept() -> None:
    content, entry = await with_snapshot()
    table = bytearray(content[entry : entry + 68])
    table[36:40] = struct.pack(">I", 50)
    table[64:64] = b"very important data".ljust(26, b"\0")
    content[entry : entry + len(table)] = table
    disk = RecordedDisk(bytes(content))
    image = await open_disk(disk)
    await image.snapshot_create("two")
    await image.snapshot_delete("two")
    await image.close()
    after = header_of(disk.content()).snapshots_offset
    assert disk.content()[after : after + len(table)] == table


async def test_incomplete_extra_data_is_completed_by_the_next_change() -> None:
    content, entry = await with_snapshot()
    table = bytearray(content[entry : entry + 68])
    table[36:40] = bytes(4)
    del table[40:64]
    content[entry : entry + 68] = table.ljust(68, b"\0")
    disk = RecordedDisk(bytes(content))
    image = await open_disk(disk)
    assert image.snapshots()[0].disk_size == SIZE
    await image.snapshot_create("two")
    await image.close()
    after = header_of(disk.content()).snapshots_offset
    assert struct.unpack_from(">IQQQ", disk.content(), after + 36) == (24, 0, SIZE, (1 << 64) - 1)


@pytest.mark.parametrize("field", ["offset", "size"])
async def test_amend_and_overlap_checks_do_not_follow_a_hostile_l1(tmp_path: Path, field: str) -> None:
    path = tmp_path / "image.qcow2"
    await aioblock.create(path, "qcow2", size=1 << 20)
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        await disk.pwrite(0, b"data")
        await disk.snapshot_create("one")
    content = bytearray(path.read_bytes())
    table = int.from_bytes(content[64:72], "big")
    if field == "offset":
        content[table : table + 8] = (0x400200).to_bytes(8, "big")
    else:
        content[table + 8 : table + 12] = (1 << 28).to_bytes(4, "big")
    path.write_bytes(content)
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        with pytest.raises(OSError, match=r"Snapshot L1 table (offset invalid|too large)"):
            await disk.amend({"compat": "0.10"})
    with pytest.raises(OSError, match=r"Snapshot L1 table (offset invalid|too large)|too many L2 tables"):
        await aioblock.open(path, format="qcow2", writable=True, options={"overlap-check": "all"})
    assert path.read_bytes() == content
