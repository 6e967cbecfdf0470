"""Batches say what `block_status` says, run for run."""

import random
from typing import Any

import pytest

from aioblock import COMPRESSED, DATA, OFFSET_VALID, REQ_COMPRESSED, REQ_MAY_UNMAP
from aioblock.core.driver import BlockDriver
from aioblock.drivers.formats.qcow2 import extents
from tests.kit.qcow2_images import header_of, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

SHAPES: list[dict[str, Any]] = [
    {"cluster_size": 512},
    {"cluster_size": 512, "compat": "0.10"},
    {"cluster_size": 65536},
    {"cluster_size": 16384, "extended_l2": True},
]

Run = tuple[int, int, int | None]


def joined(runs: list[Run]) -> list[Run]:
    """Length, flags and host offset, neighbours that continue each other made one."""
    result: list[Run] = []
    for length, flags, host in runs:
        if result:
            last = result[-1]
            if last[1] == flags and (host is None or host == (last[2] or 0) + last[0]):
                result[-1] = (last[0] + length, flags, last[2])
                continue
        result.append((length, flags, host))
    return result


async def one_by_one(driver: BlockDriver, offset: int, end: int) -> list[Run]:
    runs = []
    while offset < end:
        run = await driver.block_status(offset, end - offset, True)
        pnum = min(run.pnum, end - offset)
        runs.append((pnum, run.flags, run.map if run.flags & OFFSET_VALID else None))
        offset += pnum
    return runs


async def in_batches(driver: BlockDriver, offset: int, end: int) -> list[Run]:
    runs: list[Run] = []
    while offset < end:
        batch = await driver.extents(offset, end - offset, True)
        assert batch.offset == offset
        assert 0 < batch.nbytes <= end - offset
        for number in range(len(batch.lengths)):
            flags = int(batch.flags[number])
            valid = bool(flags & OFFSET_VALID)
            assert (int(batch.file_index[number]) == 0) == valid
            runs.append((int(batch.lengths[number]), flags, int(batch.map[number]) if valid else None))
        offset += batch.nbytes
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1 << 16, 100])
async def test_batches_equal_single_answers(shape: dict[str, Any], batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "BATCH", batch)
    cluster = shape["cluster_size"]
    size = 400 * cluster + 512
    disk = RecordedDisk(await new_image(size, **shape))
    chance = random.Random(7)
    async with await open_disk(disk) as image:
        for _ in range(80):
            offset = chance.randrange(size)
            nbytes = min(chance.randrange(1, 20 * cluster), size - offset)
            kind = chance.randrange(5)
            if kind < 2:
                await image.pwrite(offset, b"x" * nbytes)
            elif kind == 2:
                await image.pwrite_zeroes(offset, nbytes, chance.choice((0, REQ_MAY_UNMAP)))
            elif kind == 3:
                await image.pdiscard(offset, nbytes)
            elif (first := -(-offset // cluster) * cluster) + cluster <= size:
                await image.pwrite(first, b"c" * cluster, REQ_COMPRESSED)
        driver = image.node.driver
        for _ in range(30):
            offset = chance.randrange(size)
            end = min(offset + chance.randrange(1, size), size)
            assert joined(await in_batches(driver, offset, end)) == joined(await one_by_one(driver, offset, end))
        everything = joined(await in_batches(driver, 0, size))
        assert sum(length for length, _, _ in everything) == size
        assert {DATA | COMPRESSED} <= {flags for _, flags, _ in everything}


async def test_an_unused_disk_is_one_run() -> None:
    disk = RecordedDisk(await new_image(1 << 40))
    async with await open_disk(disk) as image:
        assert await in_batches(image.node.driver, 0, 1 << 40) == [(1 << 40, 0, None)]


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
async def test_a_bad_entry_ends_the_batch_before_it_and_is_an_error_by_itself(shape: dict[str, Any]) -> None:
    cluster = shape["cluster_size"]
    disk = RecordedDisk(await new_image(40 * cluster, **shape))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 40 * cluster)
    header = header_of(disk.content())
    l1 = int.from_bytes(disk.content()[header.l1_table_offset : header.l1_table_offset + 8], "big")
    at = (l1 & 0x00FF_FFFF_FFFF_FE00) + 9 * header.l2_entry_size
    disk.write(at, memoryview((1 << 63 | 5 << 16 | 1 << 8).to_bytes(8, "big")))
    async with await open_disk(disk, writable=False) as image:
        driver = image.node.driver
        assert (await driver.extents(0, 40 * cluster, True)).nbytes == 9 * cluster
        assert (await driver.block_status(0, 40 * cluster, True)).pnum == 9 * cluster
        for question in (driver.extents, driver.block_status):
            with pytest.raises(OSError):
                await question(9 * cluster, cluster, True)
        assert (await driver.extents(10 * cluster, 30 * cluster, True)).nbytes == 30 * cluster


@pytest.mark.parametrize("version", ["0.10", "1.1"])
async def test_any_sequence_of_entries(version: str) -> None:
    """Also such as no program writes: steps that are those of a run without being one."""
    size, cluster = 64 * 512, 512
    first = 1 << 40
    steps = [
        0,
        0,
        1,
        512,
        first,
        first + cluster,
        first + 1,
        1 << 63 | first,
        1 << 62 | first,
        1 << 62 | 512,
    ]
    chance = random.Random(11)
    content = await new_image(size, cluster_size=cluster, compat=version)
    disk = RecordedDisk(content)
    table = -(-len(content) // cluster) * cluster
    disk.write(header_of(content).l1_table_offset, memoryview((table | 1 << 63).to_bytes(8, "big")))
    for _ in range(150):
        entries = [chance.choice(steps)]
        while len(entries) < 64:
            last = entries[-1]
            entries.append(chance.choice([last, last + cluster, last + cluster, chance.choice(steps)]) % (1 << 64))
        disk.write(table, memoryview(b"".join(entry.to_bytes(8, "big") for entry in entries)))
        async with await open_disk(disk, writable=False) as image:
            driver = image.node.driver
            at, broken = 0, False
            while at < size and not broken:
                try:
                    run = await driver.block_status(at, size - at, False)
                    end = at + min(run.pnum, size - at)
                except OSError:
                    end, broken = at, True
                at = end
            if at:
                assert joined(await in_batches(driver, 0, at)) == joined(await one_by_one(driver, 0, at))
            if broken:
                with pytest.raises(OSError):
                    await driver.extents(at, size - at, False)
