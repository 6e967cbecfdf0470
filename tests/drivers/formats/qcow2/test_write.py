"""Writing: images of QEMU's making are changed by us, and QEMU finds the result sound and equal."""

import random
from pathlib import Path

import pytest

import aioblock
from tests.drivers.formats.qcow2.test_read import VARIANTS
from tests.kit.oracle import assert_clean, assert_same, qemu_img, qemu_io
from tests.kit.qcow2_images import host_entries, new_image, open_disk, qemu_image
from tests.kit.recorded_disk import RecordedDisk


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("args", VARIANTS, ids=lambda args: args[1])
async def test_qemu_reads_what_was_written(tmp_path: Path, args: list[str]) -> None:
    path, raw = qemu_image(tmp_path / "image", 5 << 20, *args), tmp_path / "raw"
    model = bytearray(5 << 20)
    chance = random.Random(1)
    async with await aioblock.open(path, format="qcow2", writable=True) as image:
        for number in range(1, 40):
            offset = chance.randrange(len(model))
            nbytes = min(chance.choice((1, 511, 4096, 70_000, 400_000)), len(model) - offset)
            await image.pwrite(offset, bytes([number]) * nbytes)
            model[offset : offset + nbytes] = bytes([number]) * nbytes
    raw.write_bytes(model)
    assert_clean(path, "qcow2")
    assert_same(path, raw, ("qcow2", "raw"))


@pytest.mark.oracle
@pytest.mark.parametrize("options", ["compat=1.1", "compat=0.10", "extended_l2=on", "cluster_size=4k,refcount_bits=64"])
async def test_clusters_of_a_snapshot_are_copied_on_write(tmp_path: Path, options: str) -> None:
    path, raw = qemu_image(tmp_path / "image", 1 << 20, "-o", options), tmp_path / "raw"
    qemu_io(path, "write -P 1 0 512k", "write -c -P 9 512k 64k", "write -P 3 640k 2k", fmt="qcow2")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    before = raw.read_bytes()
    qemu_img("snapshot", "-c", "one", path)
    model = bytearray(before)
    async with await aioblock.open(path, format="qcow2", writable=True) as image:
        for offset, nbytes in ((70_000, 1000), (200_000, 131_072), (530_000, 5), (650_000, 10), (900_000, 1)):
            await image.pwrite(offset, b"x" * nbytes)
            model[offset : offset + nbytes] = b"x" * nbytes
        await image.pdiscard(0, 65536)
        await image.pwrite_zeroes(393216, 65536, aioblock.REQ_MAY_UNMAP)
        model[:65536] = model[393216:458752] = bytes(65536)
        assert await image.pread(0, 1 << 20) == model
    assert_clean(path, "qcow2")
    raw.write_bytes(model)
    assert_same(path, raw, ("qcow2", "raw"))
    qemu_img("snapshot", "-a", "one", path)
    raw.write_bytes(before)
    assert_same(path, raw, ("qcow2", "raw"))


async def test_head_and_tail_come_from_the_backing_file_in_one_write() -> None:
    disk, below = RecordedDisk(await new_image(1 << 20)), RecordedDisk(b"b" * (1 << 20))
    async with await open_disk(disk, backing=below) as image:
        disk.records.clear()
        await image.pwrite(70_000, b"x" * 131_072)
        assert [(record.verb, len(record.data)) for record in disk.changes()] == [("write", 196_608)]
        assert await image.pread(65536, 196_608) == b"b" * 4464 + b"x" * 131_072 + b"b" * 61_072


async def test_head_and_tail_of_a_large_cluster_are_zeroed_without_a_buffer() -> None:
    disk = RecordedDisk(await new_image(8 << 20, cluster_size=2 << 20))
    async with await open_disk(disk) as image:
        disk.records.clear()
        await image.pwrite(3 << 20, b"x" * 4096)
        assert [record.verb for record in disk.changes()] == ["zero", "write", "zero"]
        assert await image.pread(2 << 20, 2 << 20) == bytes(1 << 20) + b"x" * 4096 + bytes((1 << 20) - 4096)


async def test_adjoining_clusters_are_allocated_and_written_at_once() -> None:
    disk = RecordedDisk(await new_image(8 << 20))
    async with await open_disk(disk) as image:
        disk.records.clear()
        await image.pwrite(0, b"x" * (4 << 20))
        assert [len(record.data) for record in disk.changes()] == [4 << 20]


@pytest.mark.parametrize("options", [{}, {"extended_l2": True}], ids=str)
async def test_data_and_preallocated_zeroes_that_adjoin_are_written_at_once(options: dict[str, bool]) -> None:
    disk = RecordedDisk(await new_image(1 << 20, **options))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"a" * 327_680)
        await image.pwrite_zeroes(65536, 65536)
        await image.pwrite_zeroes(196_608, 65536)
        await image.flush()
        before = [entry[0] & ~1 for entry in host_entries(disk.content()).values()]
        disk.records.clear()
        await image.pwrite(1000, b"b" * 300_000)  # data, zeroes, data, zeroes, data
        assert [len(record.data) for record in disk.changes()] == [300_000]
        assert await image.pread(0, 1 << 20) == b"a" * 1000 + b"b" * 300_000 + b"a" * 26_680 + bytes(720_896)
        await image.flush()
        assert [entry[0] for entry in host_entries(disk.content()).values()] == before
        await image.pwrite_zeroes(65536, 131_072)
        disk.records.clear()
        await image.pwrite(0, b"c" * 100_000)  # data, a part of the zeroes
        assert [len(record.data) for record in disk.changes()] == [100_352 if options else 131_072]
        assert await image.pread(65536, 131_072) == b"c" * 34_464 + bytes(96_608)


async def test_what_lies_behind_the_end_of_the_disk_is_written_as_zeroes() -> None:
    disk, below = RecordedDisk(await new_image(66_048)), RecordedDisk(b"b" * 200_704)
    async with await open_disk(disk, backing=below) as image:
        await image.pwrite(65536, b"x")
        await image.flush()
        host = host_entries(disk.content())[1][0] & 0x00FF_FFFF_FFFF_FE00
        assert disk.content()[host : host + 65536] == b"x" + b"b" * 511 + bytes(65024)


async def test_reopening_read_only_and_back(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(await new_image(1 << 20))
    async with await aioblock.open(path, format="qcow2", writable=True) as image:
        await image.pwrite(0, b"x" * 100)
        await image.reopen(writable=False)
        assert await image.pread(0, 100) == b"x" * 100
        async with await aioblock.open(path, format="qcow2", force_share=True) as other:
            assert await other.pread(0, 100) == b"x" * 100
        await image.reopen(writable=True)
        await image.pwrite(50, b"y" * 100)
        assert await image.pread(0, 150) == b"x" * 50 + b"y" * 100
