"""Extended L2 entries: copy-on-write, zeroes and status by subclusters."""

from pathlib import Path

import pytest

import aioblock
from aioblock import REQ_MAY_UNMAP, REQ_NO_FALLBACK
from tests.kit.oracle import assert_clean, qemu_img, qemu_io
from tests.kit.qcow2_images import assert_image, host_entries, new_image, open_disk, qemu_image
from tests.kit.recorded_disk import RecordedDisk

CLUSTER = 65536
SUB = 2048
ZERO = 32


async def bitmaps(disk: RecordedDisk, image: aioblock.BlockBackend) -> dict[int, int]:
    """The bitmap of each guest cluster that has an entry, as the file says after a flush."""
    await image.flush()
    return {cluster: entry[1] for cluster, entry in host_entries(disk.content()).items()}


async def test_only_the_touched_subclusters_are_copied() -> None:
    disk, below = RecordedDisk(await new_image(1 << 20, extended_l2=True)), RecordedDisk(b"b" * (1 << 20))
    async with await open_disk(disk, backing=below) as image:
        disk.records.clear()
        await image.pwrite(3 * SUB + 10, b"x" * SUB)
        assert [len(record.data) for record in disk.changes()] == [2 * SUB]
        assert await bitmaps(disk, image) == {0: 0b11000}
        disk.records.clear()
        await image.pwrite(4 * SUB + 100, b"y" * SUB)  # begins in a subcluster that is there, ends in one that is not
        assert sum(len(record.data) for record in disk.changes()) == SUB - 100 + SUB
        assert await bitmaps(disk, image) == {0: 0b111000}
        await image.pwrite(31 * SUB, b"z" * 2 * SUB)
        assert await bitmaps(disk, image) == {0: 0b111000 | 1 << 31, 1: 1}
        expected = bytearray(b"b" * (1 << 20))
        expected[3 * SUB + 10 : 4 * SUB + 10] = b"x" * SUB
        expected[4 * SUB + 100 : 5 * SUB + 100] = b"y" * SUB
        expected[31 * SUB : 33 * SUB] = b"z" * 2 * SUB
        assert await image.pread(0, 1 << 20) == expected


async def test_zeroes_are_set_and_overwritten_by_subclusters() -> None:
    disk = RecordedDisk(await new_image(1 << 20, extended_l2=True))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * CLUSTER)
        await image.pwrite_zeroes(2 * SUB, 3 * SUB, REQ_NO_FALLBACK | REQ_MAY_UNMAP)
        mask = 0b11100
        assert await bitmaps(disk, image) == {0: (0xFFFFFFFF & ~mask) | mask << ZERO}
        await image.pwrite(3 * SUB + 1, b"y")
        assert await bitmaps(disk, image) == {0: (0xFFFFFFFF & ~0b10100) | 0b10100 << ZERO}
        expected = b"x" * 2 * SUB + bytes(SUB + 1) + b"y" + bytes(2 * SUB - 2) + b"x" * 27 * SUB
        assert await image.pread(0, CLUSTER) == expected
        await image.pwrite_zeroes(0, CLUSTER, REQ_MAY_UNMAP)
        assert await bitmaps(disk, image) == {0: 0xFFFFFFFF << ZERO}
        await image.flush()
        assert host_entries(disk.content())[0][0] == 0


async def test_zeroes_of_a_part_of_a_compressed_cluster_are_written() -> None:
    disk = RecordedDisk(await new_image(1 << 20, extended_l2=True))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"c" * CLUSTER, aioblock.REQ_COMPRESSED)
        with pytest.raises(aioblock.NotSupported):
            await image.pwrite_zeroes(0, SUB, REQ_NO_FALLBACK)
        await image.pwrite_zeroes(0, SUB)
        assert await image.pread(0, CLUSTER) == bytes(SUB) + b"c" * (CLUSTER - SUB)
        assert await bitmaps(disk, image) == {0: 0xFFFFFFFF}


@pytest.mark.oracle
async def test_a_shared_cluster_takes_its_data_along(tmp_path: Path) -> None:
    path = qemu_image(tmp_path / "image", 1 << 20, "-o", "extended_l2=on")
    qemu_io(path, "write -P 1 4k 2k", "write -P 2 20k 2k", "write -z 40k 2k", fmt="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    model = bytearray(1 << 20)
    model[4096:6144], model[20480:22528] = b"\1" * SUB, b"\2" * SUB
    async with await aioblock.open(path, format="qcow2", writable=True) as image:
        await image.pwrite(10_000, b"new")
        model[10_000:10_003] = b"new"
        assert await image.pread(0, 1 << 20) == model
    assert_clean(path, "qcow2")
    entry, bitmap = host_entries(path.read_bytes())[0]
    assert entry >> 63 == 1
    assert bitmap >> ZERO == 1 << 20
    assert bitmap & 1 << 4
    assert bitmap & 1 << 10
    assert_image(tmp_path, path.read_bytes(), model)


@pytest.mark.parametrize("bitmap", [1 << ZERO | 1, 1])
async def test_a_bitmap_that_contradicts_itself_is_an_error(bitmap: int) -> None:
    disk = RecordedDisk(await new_image(1 << 20, extended_l2=True))
    async with await open_disk(disk) as image:
        await image.pwrite(CLUSTER, b"x" * CLUSTER)
        table = image.node.driver.image.l2.tables[0].offset  # type: ignore[attr-defined]
    entry = 0 if bitmap == 1 else host_entries(disk.content())[1][0]
    disk.write(table, memoryview(entry.to_bytes(8, "big") + bitmap.to_bytes(8, "big")))
    async with await open_disk(disk) as image:
        assert await image.pread(CLUSTER, 10) == b"x" * 10
        with pytest.raises(OSError, match="Invalid cluster entry"):
            await image.pread(0, 1)


async def test_a_bitmap_beside_a_compressed_entry_is_ignored() -> None:
    disk = RecordedDisk(await new_image(1 << 20, extended_l2=True))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"c" * CLUSTER, aioblock.REQ_COMPRESSED)
        table = image.node.driver.image.l2.tables[0].offset  # type: ignore[attr-defined]
    disk.write(table + 8, memoryview((1 << ZERO | 1).to_bytes(8, "big")))
    async with await open_disk(disk) as image:
        assert await image.pread(0, CLUSTER) == b"c" * CLUSTER
        await image.pwrite(5, b"x")
        assert await bitmaps(disk, image) == {0: 0xFFFFFFFF}
