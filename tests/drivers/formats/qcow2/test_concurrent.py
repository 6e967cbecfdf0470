"""Many requests at a time: allocating writers in one cluster, in one table, across tables."""

import asyncio
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import aioblock
from tests.kit.qcow2_images import assert_image, new_image, open_disk
from tests.kit.recorded_disk import Hook, RecordedDisk

CLUSTER = 65536


def jitter(seed: int) -> Hook:
    chance = random.Random(seed)

    async def before(verb: str, offset: int, nbytes: int) -> None:
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)

    return before


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": 512},
        {"cluster_size": 4096, "refcount_bits": 64},
        {"cluster_size": 16384, "extended_l2": True},
    ],
    ids=str,
)
async def test_64_writers(tmp_path: Path, options: dict[str, Any], seed: int) -> None:
    size = 2048 * options.get("cluster_size", 1024)
    below = RecordedDisk(b"b" * (size - 100_352))
    (tmp_path / "base").write_bytes(below.content())
    options = options | {"backing_file": str(tmp_path / "base"), "backing_fmt": "raw"}
    disk = RecordedDisk(await new_image(size, **options))
    disk.before = jitter(seed)
    chance = random.Random(seed)
    model = bytearray(below.content().ljust(size, b"\0"))
    cuts = sorted(chance.sample(range(size), 513))
    pieces = list(pairwise(cuts))
    chance.shuffle(pieces)
    todo = iter(pieces)
    async with await open_disk(disk, {"l2-cache-size": 1024}, backing=below) as image:

        async def writer(number: int) -> None:
            for low, high in todo:
                data = bytes([number]) * (high - low)
                await image.pwrite(low, data)
                model[low:high] = data
                assert await image.pread(low, high - low) == data

        await asyncio.gather(*(writer(number) for number in range(1, 65)))
        assert await image.pread(0, size) == model
        state = image.node.driver.image  # type: ignore[attr-defined]
        assert (state.allocating, state.reading) == ({}, {})
    assert_image(tmp_path, disk.content(), model)


async def test_writers_of_one_cluster_allocate_it_once() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        gate = asyncio.Event()
        begun = []

        async def before(verb: str, offset: int, nbytes: int) -> None:
            if verb == "write":
                begun.append(nbytes)
                await gate.wait()

        disk.before = before
        writers = [asyncio.create_task(image.pwrite(number * 1000, bytes([number + 1]) * 1000)) for number in range(60)]
        for _ in range(200):
            await asyncio.sleep(0)
        assert begun == [CLUSTER]  # one allocates, with head and tail; the others wait for it
        gate.set()
        await asyncio.gather(*writers)
        assert begun == [CLUSTER] + [1000] * 59
        expected = b"".join(bytes([number + 1]) * 1000 for number in range(60))
        assert await image.pread(0, CLUSTER) == expected + bytes(CLUSTER - 60_000)


async def test_writers_of_different_clusters_do_not_wait_for_each_other() -> None:
    disk = RecordedDisk(await new_image(2 << 30))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x")
        gate, all_begun = asyncio.Event(), asyncio.Event()
        begun = []

        async def before(verb: str, offset: int, nbytes: int) -> None:
            if verb == "write":
                begun.append(nbytes)
                if len(begun) == len(places):
                    all_begun.set()
                await gate.wait()

        disk.before = before
        places = [number * CLUSTER for number in range(1, 30)] + [1 << 30, (1 << 30) + CLUSTER]  # in two L2 tables
        writers = [asyncio.create_task(image.pwrite(place, b"y" * CLUSTER)) for place in places]
        await all_begun.wait()
        # Reads of what is there go on meanwhile, also in the same table; what is being allocated still reads as it was.
        assert await image.pread(0, 10) == b"x" + bytes(9)
        assert await image.pread(CLUSTER, 10) == bytes(10)
        gate.set()
        await asyncio.gather(*writers)
        for place in places:
            assert await image.pread(place, CLUSTER) == b"y" * CLUSTER


async def test_a_flush_waits_for_no_write_that_is_not_done() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        gate = asyncio.Event()
        await image.pwrite(0, b"x" * CLUSTER)

        async def before(verb: str, offset: int, nbytes: int) -> None:
            if verb == "write" and nbytes == 3 * CLUSTER:
                await gate.wait()

        disk.before = before
        writer = asyncio.create_task(image.pwrite(2 * CLUSTER, b"y" * 3 * CLUSTER))
        await asyncio.sleep(0)
        await image.flush()
        assert not writer.done()
        async with await open_disk(RecordedDisk(disk.content()), writable=False) as other:
            assert await other.pread(0, 3 * CLUSTER) == b"x" * CLUSTER + bytes(2 * CLUSTER)
        gate.set()
        await writer


async def test_snapshotted_clusters_may_be_read_while_they_are_copied(tmp_path: Path) -> None:
    from tests.kit.oracle import qemu_img, qemu_io
    from tests.kit.qcow2_images import qemu_image

    path = qemu_image(tmp_path / "image", 1 << 20)
    qemu_io(path, "write -P 1 0 1M", fmt="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    qemu_img("snapshot", "-d", "one", path)
    async with await aioblock.open(path, format="qcow2", writable=True) as image:

        async def reader(offset: int) -> None:
            assert set(await image.pread(offset, 8192)) <= {1, ord("w")}

        readers = [reader(number * 4096) for number in range(200)]
        writers = [image.pwrite(number * CLUSTER + 10, b"w" * 10) for number in range(16)]
        await asyncio.gather(*readers, *writers)
