"""Allocation: refcounts of every width, growth of blocks, refcount table and L1 table, and damage that is met."""

import errno
import struct
from pathlib import Path

import pytest

import aioblock
from aioblock import CorruptImage, UnsupportedFeature
from aioblock.drivers.formats.qcow2.refblocks import counts_from_bytes, counts_to_bytes, find_run, find_zero
from aioblock.graph.backend import BlockBackend
from tests.kit.oracle import assert_clean
from tests.kit.power_cut import assert_sound
from tests.kit.qcow2_images import assert_image, header_of, host_entries, new_image, open_disk, qemu_image
from tests.kit.recorded_disk import RecordedDisk


@pytest.mark.parametrize("order", range(7))
def test_counts_survive_the_way_to_bytes_and_back(order: int) -> None:
    data = bytes(number * 37 % 256 for number in range(512))
    counts = counts_from_bytes(data, order)
    assert len(counts) == 4096 >> order
    assert counts_to_bytes(counts, order) == data
    assert counts_to_bytes(counts[8:16], order) == data[1 << order : 2 << order]


def test_the_place_of_a_narrow_count_is_from_the_lowest_bit_on() -> None:
    assert list(counts_from_bytes(b"\x01\x80", 0)) == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert list(counts_from_bytes(b"\x21", 2)) == [1, 2]
    assert list(counts_from_bytes(b"\x01\x02", 4)) == [258]


@pytest.mark.parametrize("order", range(7))
def test_a_free_count_is_found(order: int) -> None:
    counts = counts_from_bytes(bytes(64), order)
    for number in range(len(counts)):
        counts[number] = 1
    assert find_zero(counts, 0) == -1
    if order > 3:
        counts[1] = 256  # its bytes are zero at one end
    counts[5] = 0
    assert find_zero(counts, 0) == 5
    assert find_zero(counts, 6) == -1


@pytest.mark.parametrize("order", range(7))
def test_a_run_of_free_counts_is_found(order: int) -> None:
    counts = counts_from_bytes(b"\xff" * 128, order)
    if order > 3:
        counts[9] = 1 << (counts.itemsize * 8 - 8)  # its bytes are zero at one end
    counts[2] = counts[4] = counts[5] = 0
    assert find_run(counts, 2, 1) == (2, 1)
    assert find_run(counts, 2, 2) == (4, 2)
    assert find_run(counts, 4, 1) == (4, 1)
    assert find_run(counts, 2, 3) == (2, 1)
    counts[-2] = counts[-1] = 0
    assert find_run(counts, 2, 2) == (4, 2)
    assert find_run(counts, 2, 9) == (len(counts) - 2, 2)
    assert find_run(counts, len(counts) - 1, 9) == (len(counts) - 1, 1)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize(("cluster", "bits", "size"), [(512, 64, 5 << 20), (512, 16, 12 << 20), (1024, 64, 20 << 20)])
async def test_refcount_table_and_blocks_grow(tmp_path: Path, cluster: int, bits: int, size: int) -> None:
    disk = RecordedDisk(await new_image(size, cluster_size=cluster, refcount_bits=bits))
    before = header_of(disk.content())
    model = bytearray(size)
    async with await open_disk(disk) as image:
        for offset in range(0, size, 1 << 20):
            model[offset : offset + (1 << 20)] = bytes([1 + (offset >> 20)]) * min(1 << 20, size - offset)
            await image.pwrite(offset, model[offset : offset + (1 << 20)])
    after = header_of(disk.content())
    assert after.refcount_table_clusters > before.refcount_table_clusters
    assert after.refcount_table_offset != before.refcount_table_offset
    assert_image(tmp_path, disk.content(), model)


@pytest.mark.oracle
async def test_a_one_bit_refcount_is_used_up_by_one_stream(tmp_path: Path) -> None:
    disk = RecordedDisk(await new_image(1 << 20, refcount_bits=1))
    model = bytearray(1 << 20)
    async with await open_disk(disk) as image:
        for offset in range(0, 1 << 20, 65536):
            model[offset : offset + 65536] = b"%015d\n" % offset * 4096
            await image.pwrite(offset, model[offset : offset + 65536], aioblock.REQ_COMPRESSED)
    assert_image(tmp_path, disk.content(), model)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("options", [{}, {"cluster_size": 512}, {"cluster_size": 16384, "extended_l2": True}])
async def test_the_disk_grows(tmp_path: Path, options: dict[str, int]) -> None:
    disk = RecordedDisk(await new_image(100 * 512, **options))
    model = bytearray(b"a" * 100 * 512)
    async with await open_disk(disk) as image:
        await image.pwrite(0, model)
        for size in (101 * 512, 65536 * 3, 4 << 20, 9 << 20):
            await image.truncate(size)
            model.extend(bytes(size - len(model)))
            assert image.length == size
            assert await image.pread(0, size) == model
            await image.pwrite(size - 700, b"e" * 700)
            model[size - 700 :] = b"e" * 700
        with pytest.raises(OSError) as caught:
            await image.truncate(1000)
        assert caught.value.errno == errno.EINVAL
    assert_image(tmp_path, disk.content(), model)


@pytest.mark.oracle
@pytest.mark.parametrize("bits", [16, 64])
async def test_an_l1_table_may_be_longer_than_what_one_refcount_block_covers(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(await new_image(1 << 20, cluster_size=512, refcount_bits=bits))
    async with await aioblock.open(path, format="qcow2", writable=True) as image:
        await image.pwrite(0, b"x" * 512)
        await image.truncate(2 << 30)
        await image.pwrite((2 << 30) - 512, b"y" * 512)
        assert header_of(path.read_bytes()).l1_size << 3 > 256 * 512
    assert_clean(path, "qcow2")


async def test_a_long_write_passes_over_a_hole_that_is_too_small() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        for cluster in range(4):
            await image.pwrite(cluster << 16, b"x" * 65536)
        await image.pdiscard(1 << 16, 65536)
        await image.flush()
        disk.records.clear()
        await image.pwrite(4 << 16, b"y" * 131_072)
        assert [len(record.data) for record in disk.changes()] == [131_072]
        await image.pwrite(6 << 16, b"z" * 65536)  # here it fits
        await image.flush()
        entries = host_entries(disk.content())
        hosts = {cluster: entry[0] - entries[0][0] >> 16 for cluster, entry in entries.items()}
        assert [hosts[cluster] for cluster in (2, 3, 4, 5, 6)] == [2, 3, 4, 5, 1]


async def test_clusters_that_wait_to_become_free_do_not_let_the_file_grow_without_end() -> None:
    disk = RecordedDisk(await new_image(8 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * (4 << 20))
        length = len(disk.content())
        for round in range(8):
            await image.pdiscard(0, 1 << 20)
            await image.pwrite(round * 65536, b"y" * (1 << 20))
            await image.pdiscard(2 << 20, 1 << 20)
            await image.pwrite(2 << 20, b"z" * (1 << 20))
        assert len(disk.content()) <= length + (2 << 20)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
async def test_a_longer_backing_file_does_not_show_when_the_disk_grows(compat: str) -> None:
    disk, below = RecordedDisk(await new_image(100 * 512, compat=compat)), RecordedDisk(b"b" * 300_032)
    async with await open_disk(disk, backing=below) as image:
        await image.truncate(400_384)
        assert await image.pread(0, 400_384) == b"b" * 51_200 + bytes(400_384 - 51_200)


async def test_what_an_old_end_left_behind_is_zeroed_when_the_disk_grows() -> None:
    disk = RecordedDisk(await new_image(1024))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 1024)
        await image.flush()
        host = host_entries(disk.content())[0][0] & 0x00FF_FFFF_FFFF_FE00
        disk.write(host, memoryview(b"j" * 65536))
        await image.truncate(65536)
        assert await image.pread(0, 65536) == b"j" * 1024 + bytes(64512)


@pytest.mark.oracle
@pytest.mark.parametrize("prealloc", [aioblock.Prealloc.METADATA, aioblock.Prealloc.FALLOC, aioblock.Prealloc.FULL])
async def test_growing_with_preallocation(tmp_path: Path, prealloc: aioblock.Prealloc) -> None:
    path = qemu_image(tmp_path / "image", 65536)
    async with await aioblock.open(path, format="qcow2", writable=True) as image:
        await image.truncate(3 << 20, prealloc=prealloc)
        assert await image.pread(0, 3 << 20) == bytes(3 << 20)
        assert path.stat().st_size >= (3 << 20) - 65536
    assert_clean(path, "qcow2")
    entries = host_entries(path.read_bytes())
    assert sorted(entries) == list(range(1, 48))


# -- damage ----------------------------------------------------------------------------------------------------------


async def damaged(content: bytes, at: int, data: bytes) -> tuple[RecordedDisk, BlockBackend]:
    disk = RecordedDisk(content[:at] + data + content[at + len(data) :])
    return disk, await open_disk(disk)


async def filled() -> bytes:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 262_144)
    return disk.content()


async def assert_marked(disk: RecordedDisk, image: BlockBackend) -> None:
    """All writes fail, the mark is in the file, and nothing else was written after it."""
    with pytest.raises(OSError) as caught:
        await image.pwrite(500_000, b"y")
    assert caught.value.errno == errno.EIO
    await image.close()
    assert header_of(disk.content()).corrupt
    with pytest.raises(CorruptImage, match="cannot be opened read/write"):
        await open_disk(disk)
    async with await open_disk(disk, writable=False):
        pass


L2_UNALIGNED = struct.pack(">Q", 1 << 63 | 0x50200)


@pytest.mark.parametrize(
    ("place", "data"),
    [
        ("l2", L2_UNALIGNED),
        ("l2", struct.pack(">Q", 1 << 63 | 1 << 56 | 0x50000)),
        ("l1", struct.pack(">Q", 1 << 63 | 0x40200)),
        ("l1", struct.pack(">Q", 1 << 63 | 1 << 57 | 0x40000)),
    ],
)
async def test_nonsense_in_a_table_is_an_error_and_marks_the_image(place: str, data: bytes) -> None:
    content = await filled()
    header = header_of(content)
    (l1,) = struct.unpack_from(">Q", content, header.l1_table_offset)
    at = header.l1_table_offset if place == "l1" else l1 & 0x00FF_FFFF_FFFF_FE00
    disk, image = await damaged(content, at, data)
    with pytest.raises(OSError) as caught:
        await image.pread(0, 512)
    assert caught.value.errno == errno.EIO
    await assert_marked(disk, image)
    pairs = zip(disk.first, disk.content(), strict=True)
    assert [number for number, (old, new) in enumerate(pairs) if old != new] == [79]  # the bit, and nothing else


async def test_a_read_only_image_is_never_marked() -> None:
    content = await filled()
    (l1,) = struct.unpack_from(">Q", content, header_of(content).l1_table_offset)
    at = l1 & 0x00FF_FFFF_FFFF_FE00
    disk = RecordedDisk(content[:at] + L2_UNALIGNED + content[at + 8 :])
    async with await open_disk(disk, writable=False) as image:
        with pytest.raises(OSError):
            await image.pread(0, 512)
        assert await image.pread(65536, 512) == b"x" * 512
    assert disk.changes() == []


@pytest.mark.parametrize("name", ["header", "l1", "reftable", "refblock", "l2"])
async def test_data_is_never_written_over_metadata(name: str) -> None:
    content = await filled()
    header = header_of(content)
    (l1,) = struct.unpack_from(">Q", content, header.l1_table_offset)
    (block,) = struct.unpack_from(">Q", content, header.refcount_table_offset)
    l2 = l1 & 0x00FF_FFFF_FFFF_FE00
    target = {"l1": header.l1_table_offset, "reftable": header.refcount_table_offset, "refblock": block, "l2": l2}
    entry = target.get(name, 0) | 1 << 63
    disk, image = await damaged(content, l2, struct.pack(">Q", entry))
    if name == "header":
        await image.pwrite(0, b"y" * 100)  # an offset of 0 means none, so this allocates
        await image.close()
        assert_sound(disk.content())
        return
    with pytest.raises(OSError, match="Preventing invalid write on metadata"):
        await image.pwrite(0, b"y" * 100)
    await assert_marked(disk, image)


@pytest.mark.parametrize("name", ["header", "l1", "l2"])
async def test_a_refcount_of_zero_does_not_make_metadata_free(name: str) -> None:
    content = await filled()
    header = header_of(content)
    (l1,) = struct.unpack_from(">Q", content, header.l1_table_offset)
    (block,) = struct.unpack_from(">Q", content, header.refcount_table_offset)
    cluster = {"header": 0, "l1": header.l1_table_offset, "l2": l1 & 0x00FF_FFFF_FFFF_FE00}[name] >> 16
    disk, image = await damaged(content, block + 2 * cluster, b"\0\0")
    with pytest.raises(OSError, match="Preventing invalid"):
        await image.pwrite(800_000, b"y")
    await assert_marked(disk, image)


async def test_refcount_zero_of_a_freed_cluster_is_told() -> None:
    content = await filled()
    header = header_of(content)
    (block,) = struct.unpack_from(">Q", content, header.refcount_table_offset)
    host = host_entries(content)[0][0] & 0x00FF_FFFF_FFFF_FE00
    disk, image = await damaged(content, block + 2 * (host >> 16), b"\0\0")
    await image.pdiscard(0, 65536)
    with pytest.raises(OSError, match="refcount is 0"):
        await image.flush()
    with pytest.raises(OSError, match="refcount is 0"):
        await image.close()
    assert header_of(disk.content()).corrupt


async def test_what_a_corruption_makes_unwritable_is_told_when_the_image_is_closed() -> None:
    content = await filled()
    (l1,) = struct.unpack_from(">Q", content, header_of(content).l1_table_offset)
    disk, image = await damaged(content, l1 & 0x00FF_FFFF_FFFF_FE00, L2_UNALIGNED)
    await image.pwrite(800_000, b"y")
    with pytest.raises(OSError, match="unaligned"):
        await image.pread(0, 1)
    disk.records.clear()
    with pytest.raises(OSError, match="corrupt"):
        await image.flush()
    with pytest.raises(OSError, match="corrupt"):
        await image.close()
    assert [len(record.data) for record in disk.changes() if record.verb != "flush"] == [24]  # the header's bits


@pytest.mark.parametrize("entry", [0, 0x10200, 0xFFFF2A00, 0x10001])
async def test_a_bad_refcount_table_is_met_by_the_first_allocation(entry: int) -> None:
    content = await filled()
    disk, image = await damaged(content, header_of(content).refcount_table_offset, struct.pack(">Q", entry))
    await image.pwrite(0, b"in place")  # needs no refcount
    with pytest.raises(OSError) as caught:
        await image.pwrite(800_000, b"y")
    assert caught.value.errno == errno.EIO
    await assert_marked(disk, image)


async def test_two_l1_entries_with_one_table_are_not_written_through() -> None:
    disk = RecordedDisk(await new_image(128 << 10, cluster_size=512))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 512)
    content = disk.content()
    l1_table = header_of(content).l1_table_offset
    disk, image = await damaged(content, l1_table + 8, content[l1_table : l1_table + 8])
    assert await image.pread(32768, 512) == b"x" * 512
    with pytest.raises(OSError, match="overlaps with active L2 table"):
        await image.pwrite(40_000, b"y")
    await assert_marked(disk, image)


async def test_a_corrupt_image_is_read_and_not_written() -> None:
    content = bytearray(await filled())
    content[79] |= 2
    disk = RecordedDisk(bytes(content))
    async with await open_disk(disk, writable=False) as image:
        assert await image.pread(0, 10) == b"x" * 10
        with pytest.raises(CorruptImage):
            await image.reopen(writable=True)
    with pytest.raises(CorruptImage):
        await open_disk(disk)
    assert disk.changes() == []


async def test_unknown_features_are_refused_by_name() -> None:
    content = bytearray(await filled())
    content[74] |= 1
    with pytest.raises(UnsupportedFeature, match="Unknown incompatible feature"):
        await open_disk(RecordedDisk(bytes(content)), writable=False)
