"""Block status of one layer: by kind of cluster, and equal to `qemu-img map` on images of QEMU's making."""

import random
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock import ALLOCATED, COMPRESSED, DATA, EOF, OFFSET_VALID, REQ_COMPRESSED, REQ_MAY_UNMAP, ZERO
from aioblock.base.flags import RECURSE
from tests.drivers.formats.qcow2.test_read import VARIANTS
from tests.kit.oracle import qemu_img, qemu_io, qemu_map
from tests.kit.qcow2_images import new_image, open_disk, qemu_image
from tests.kit.recorded_disk import RecordedDisk

CLUSTER = 65536


async def runs_of(image: aioblock.BlockBackend, **kwargs: Any) -> list[tuple[int, int, int]]:
    """Offset, length and flags of every run of the chain, joined."""
    return [(run.offset, run.length, run.flags) async for run in image.extents(**kwargs)]


async def test_each_kind_of_cluster() -> None:
    disk, below = RecordedDisk(await new_image(20 * CLUSTER)), RecordedDisk(b"b" * 20 * CLUSTER)
    async with await open_disk(disk, backing=below) as image:
        driver = image.node.driver
        await image.pwrite(0, b"x" * 4 * CLUSTER)
        await image.pwrite_zeroes(4 * CLUSTER, 2 * CLUSTER)
        await image.pwrite_zeroes(2 * CLUSTER, CLUSTER)
        await image.pwrite(8 * CLUSTER, b"c" * 2 * CLUSTER, REQ_COMPRESSED)
        expected = [
            (0, 2, DATA | OFFSET_VALID),
            (2, 1, ZERO | OFFSET_VALID),
            (3, 1, DATA | OFFSET_VALID),
            (4, 2, ZERO),
            (6, 2, 0),
            (8, 2, DATA | COMPRESSED),
            (10, 10, 0),
        ]
        for start, count, flags in expected:
            for inside in (0, 1, CLUSTER - 1):
                found = await driver.block_status(
                    start * CLUSTER + inside, 20 * CLUSTER - start * CLUSTER - inside, True
                )
                assert (found.flags & ~RECURSE, found.pnum) == (flags, count * CLUSTER - inside)
                assert (found.file is not None) == bool(flags & OFFSET_VALID)
        whole = await driver.block_status(0, CLUSTER, True)
        later = await driver.block_status(70_000, 1000, True)
        assert later.map - whole.map == 70_000
        assert (await image.block_status(10 * CLUSTER, 1)).flags == 0
        assert (await image.block_status(19 * CLUSTER, CLUSTER)).flags & EOF
        assert (await image.block_status(4 * CLUSTER, CLUSTER)).flags == ZERO | ALLOCATED


async def test_it_does_not_suspend_where_the_table_is_in_memory() -> None:
    disk = RecordedDisk(await new_image(2 << 30))
    async with await open_disk(disk) as image:
        await image.pwrite(1 << 20, b"x" * CLUSTER)
        driver = image.node.driver
        await driver.block_status(0, 1, True)
        with pytest.raises(StopIteration) as caught:
            driver.block_status(0, 2 << 30, True).send(None)
        assert caught.value.value.pnum == 1 << 20
        with pytest.raises(StopIteration) as caught:
            driver.block_status((1 << 20) + CLUSTER, (2 << 30) - (1 << 20) - CLUSTER, True).send(None)
        assert caught.value.value.pnum == (2 << 30) - (1 << 20) - CLUSTER


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("args", VARIANTS, ids=lambda args: args[1])
async def test_the_map_is_that_of_qemu(tmp_path: Path, args: list[str]) -> None:
    path = qemu_image(tmp_path / "image", (5 << 20) + 1536, *args)
    chance = random.Random(args[1])
    commands = []
    for number in range(30):
        verb = chance.choice((f"write -P {number + 1}", "write -z", "write -z -u", "discard"))
        offset = chance.randrange(5 << 20)
        commands.append(f"{verb} {offset} {chance.randrange(1, 200_000)}")
    qemu_io(path, *(f"{command}" for command in commands), fmt="qcow2", check=False)
    await assert_same_map(path)


@pytest.mark.oracle
@pytest.mark.parametrize("clusters", [16, 64, 256])
async def test_holes_in_data_are_looked_for_where_qemu_does(tmp_path: Path, clusters: int) -> None:
    path = qemu_image(tmp_path / "image", clusters * CLUSTER)
    qemu_io(path, f"write -P 1 0 {clusters * CLUSTER}", fmt="qcow2")
    first = qemu_map(path)[0]["offset"]
    wanted = clusters // 10
    for punched in range(max(wanted - 2, 0), wanted + 2):
        with path.open("r+b") as file:
            file.seek(first)
            file.write(bytes(CLUSTER * punched))
        qemu_img("convert", "-f", "raw", "-O", "raw", "-S", "64k", path, tmp_path / "sparse")
        (tmp_path / "sparse").replace(path)
        await assert_same_map(path)


async def assert_same_map(path: Path) -> None:
    theirs = [
        (run["start"], run["length"], run["data"], run["zero"], run["present"], run.get("offset"))
        for run in qemu_map(path, fmt="qcow2")
    ]
    async with await aioblock.open(path, format="qcow2") as image:
        ours: list[tuple[int, int, bool, bool, bool, int | None]] = []
        at = 0
        while at < image.length:
            run = await image.block_status(at, image.length - at)
            flags = run.flags
            offset = run.map if flags & OFFSET_VALID else None
            row = (at, run.pnum, bool(flags & DATA), bool(flags & ZERO), bool(flags & ALLOCATED), offset)
            if ours and ours[-1][2:5] == row[2:5] and adjoin(ours[-1], row):
                ours[-1] = (ours[-1][0], ours[-1][1] + run.pnum, *ours[-1][2:])
            else:
                ours.append(row)
            at += run.pnum
    assert ours == theirs


def adjoin(last: tuple[Any, ...], row: tuple[Any, ...]) -> bool:
    if last[5] is None or row[5] is None:
        return last[5] is row[5]
    return bool(last[5] + last[1] == row[5])


async def test_want_zero_false_asks_nothing_of_the_file() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 10)
        await image.pwrite_zeroes(CLUSTER, CLUSTER, REQ_MAY_UNMAP)
        disk.records.clear()
        assert (await image.node.driver.block_status(0, 1 << 20, False)).flags == DATA | OFFSET_VALID
        assert disk.records == []
