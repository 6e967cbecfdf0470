"""Write-zeroes: what becomes of each kind of cluster is what QEMU makes of it, by `qemu-img map`."""

import json
from pathlib import Path

import pytest

import aioblock
from aioblock import REQ_MAY_UNMAP, REQ_NO_FALLBACK
from tests.kit.oracle import assert_clean, qemu_img, qemu_io, qemu_map
from tests.kit.qcow2_images import host_entries, new_image, open_disk, qemu_image
from tests.kit.recorded_disk import RecordedDisk

SETUP = ("write -P 1 0 256k", "write -c -P 2 256k 64k", "write -z 320k 64k", "write -P 1 384k 64k", "write -z 384k 64k")


def without_offsets(image: Path) -> list[str]:
    """The map, with only whether there is an offset."""
    return [json.dumps(run | ({"offset": True} if "offset" in run else {})) for run in qemu_map(image, fmt="qcow2")]


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("verb", ["write -z", "write -z -u", "discard"])
@pytest.mark.parametrize(
    "options", ["compat=1.1", "compat=0.10", "extended_l2=on", "compat=1.1,backing", "compat=0.10,backing"]
)
async def test_entries_are_those_that_qemu_makes(tmp_path: Path, options: str, verb: str) -> None:
    args = ["-o", options.removesuffix(",backing")]
    if options.endswith("backing"):
        (tmp_path / "base").write_bytes(b"b" * 300_032 + bytes(300_032))
        args += ["-b", str(tmp_path / "base"), "-F", "raw"]
    ranges = [(0, 65536), (98304, 65536), (196_608, 1000), (262_144, 65536), (320 << 10, 64 << 10), (393_216, 65536)]
    ranges += [(458_752, 65536), (540_000, 100), (600_000, 30_000), (786_432, 65536), ((1 << 20) - 2048, 1000)]
    theirs = qemu_image(tmp_path / "theirs", (1 << 20) - 1024, *args)
    ours = qemu_image(tmp_path / "ours", (1 << 20) - 1024, *args)
    for path in (theirs, ours):
        qemu_io(path, *SETUP, fmt="qcow2")
        qemu_img("snapshot", "-c", "one", path)
        qemu_io(path, "write -P 3 64k 64k", fmt="qcow2")
    qemu_io(theirs, *(f"{verb} {offset} {nbytes}" for offset, nbytes in ranges), fmt="qcow2")
    async with await aioblock.open(ours, format="qcow2", writable=True, discard="unmap") as image:
        for offset, nbytes in ranges:
            if verb == "discard":
                await image.pdiscard(offset, nbytes)
            else:
                await image.pwrite_zeroes(offset, nbytes, REQ_MAY_UNMAP if verb.endswith("u") else 0)
    assert_clean(ours, "qcow2")
    assert without_offsets(ours) == without_offsets(theirs)
    qemu_img("compare", ours, theirs)


async def test_nothing_is_allocated_for_zeroes() -> None:
    disk = RecordedDisk(await new_image(10 << 20))
    async with await open_disk(disk) as image:
        disk.records.clear()
        await image.pwrite_zeroes(0, 10 << 20)
        assert disk.changes() == []
    assert set(host_entries(disk.content()).values()) == {(1,)}


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(65536, 100), (70_000, 1), (131_071, 1), (65536, 65535), (66_000, 65_072)]
)
async def test_a_part_of_a_cluster_whose_rest_is_zero_makes_it_a_zero_cluster(offset: int, nbytes: int) -> None:
    disk, below = RecordedDisk(await new_image(1 << 20)), RecordedDisk(b"b" * 65536)
    async with await open_disk(disk, backing=below) as image:
        await image.pwrite_zeroes(offset, nbytes, REQ_NO_FALLBACK)
    assert host_entries(disk.content()) == {1: (1,)}


async def test_a_part_of_a_cluster_is_written_where_the_rest_is_not_zero() -> None:
    disk, below = RecordedDisk(await new_image(1 << 20)), RecordedDisk(bytes(66_000 // 512 * 512) + b"b" * 512)
    async with await open_disk(disk, backing=below) as image:
        with pytest.raises(aioblock.NotSupported):
            await image.pwrite_zeroes(70_000, 100, REQ_NO_FALLBACK)
        await image.pwrite_zeroes(70_000, 100)
        assert (await image.pread(65536, 1024)).count(b"b") == 512
    assert host_entries(disk.content())[1][0] > 1


async def test_zeroes_over_a_cluster_that_keeps_its_place_are_overwritten_there() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 131_072)
        await image.flush()
        before = host_entries(disk.content())
        await image.pwrite_zeroes(0, 131_072)
        await image.pwrite(10_000, b"y" * 100_000)
        assert await image.pread(0, 131_072) == bytes(10_000) + b"y" * 100_000 + bytes(21_072)
        await image.flush()
        assert host_entries(disk.content()) == before


async def test_a_huge_range_lets_others_run() -> None:
    import asyncio

    disk = RecordedDisk(await new_image(64 << 20, cluster_size=512))
    async with await open_disk(disk) as image:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        await image.pwrite_zeroes(0, 16 << 20)
        other.cancel()
        assert turns > 100
