"""Compressed clusters: packed tightly, counted, replaced, and read while they are replaced."""

import asyncio
import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest

import aioblock
from aioblock import REQ_COMPRESSED
from aioblock.drivers.formats.qcow2.entries import compressed_extent
from tests.kit.oracle import assert_clean, qemu_img, qemu_io
from tests.kit.qcow2_images import assert_image, host_entries, new_image, open_disk, qemu_image
from tests.kit.recorded_disk import RecordedDisk

CLUSTER = 65536


def text(number: int, nbytes: int = CLUSTER) -> bytes:
    """Bytes that compress well, different for each number."""
    return (b"%06d " % number * (nbytes // 7 + 1))[:nbytes]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 << 20])
async def test_qemu_reads_what_was_packed(tmp_path: Path, kind: str, cluster: int) -> None:
    size = 20 * cluster + 512 if cluster > 512 else 20 * cluster
    disk = RecordedDisk(await new_image(size, cluster_size=cluster, compression_type=kind))
    model = bytearray(size)
    async with await open_disk(disk) as image:
        parts = []
        for number in range(-(-size // cluster)):
            offset = number * cluster
            part = text(number, min(cluster, size - offset))
            if number % 5 == 4:
                part = os.urandom(len(part))  # gets no smaller: stored as it is
            model[offset : offset + len(part)] = part
            parts.append(image.pwrite(offset, part, REQ_COMPRESSED))
        await asyncio.gather(*parts)
        assert await image.pread(0, size) == model
        await image.pwrite(0, b"", REQ_COMPRESSED)
    assert disk.size % 512 == 0
    assert_image(tmp_path, disk.content(), model)
    packed = sum(1 for entry in host_entries(disk.content()).values() if entry[0] >> 62 & 1)
    assert packed >= 16


async def test_streams_lie_behind_each_other() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        disk.records.clear()
        for number in range(8):
            await image.pwrite(number * CLUSTER, text(number), REQ_COMPRESSED)
        writes = disk.changes()
        assert all(first.end == second.offset for first, second in pairwise(writes))


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 1000), (1000, CLUSTER), (CLUSTER, CLUSTER + 512)])
async def test_only_whole_clusters_are_taken(offset: int, nbytes: int) -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        with pytest.raises(OSError):
            await image.pwrite(offset, bytes(nbytes), REQ_COMPRESSED)


@pytest.mark.oracle
async def test_every_kind_of_cluster_is_replaced(tmp_path: Path) -> None:
    path = qemu_image(tmp_path / "image", 1 << 20)
    qemu_io(path, "write -P 1 0 64k", "write -z 64k 64k", "write -P 1 128k 64k", "write -z 128k 64k", fmt="qcow2")
    qemu_io(path, "write -c -P 1 192k 64k", "write -P 2 256k 64k", "write -c -P 2 320k 64k", fmt="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 1 0 64k", fmt="qcow2")
    model = bytearray(1 << 20)
    async with await aioblock.open(path, format="qcow2", writable=True) as image:
        for number in range(8):
            await image.pwrite(number * CLUSTER, text(number), REQ_COMPRESSED)
            model[number * CLUSTER : (number + 1) * CLUSTER] = text(number)
        await image.flush()
        for number in range(0, 8, 2):
            await image.pwrite(number * CLUSTER + 5, b"abc")
            model[number * CLUSTER + 5 : number * CLUSTER + 8] = b"abc"
        assert await image.pread(0, 1 << 20) == model
    assert_clean(path, "qcow2")
    assert_image(tmp_path, path.read_bytes(), model)


async def test_a_cluster_is_not_used_again_while_its_stream_is_being_read() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, text(1), REQ_COMPRESSED)
        await image.flush()
        (entry,) = host_entries(disk.content())[0]
        stream, _ = compressed_extent(entry, 16)
        gate, reading = asyncio.Event(), asyncio.Event()

        async def before(verb: str, offset: int, nbytes: int) -> None:
            if verb == "read" and offset == stream:
                reading.set()
                await gate.wait()

        disk.before = before
        reader = asyncio.create_task(image.pread(40_000, 1000))
        await reading.wait()
        await image.pwrite(0, b"n" * CLUSTER)  # covers all of the cluster, so it does not read the old stream
        await image.flush()
        for number in range(1, 16):
            await image.pwrite(number * CLUSTER, b"o" * CLUSTER)
        assert not any(record.offset <= stream < record.end for record in disk.changes()[-15:])
        gate.set()
        assert await reader == text(1)[40_000:41_000]
        await image.flush()  # something to commit is there: the last fifteen clusters
        disk.records.clear()
        await image.pwrite_zeroes(0, CLUSTER, aioblock.REQ_MAY_UNMAP)
        await image.flush()
        await image.pwrite(0, b"p" * CLUSTER)
        assert disk.changes()[-1].offset <= stream < disk.changes()[-1].end


@pytest.mark.parametrize("damage", ["cut", "noise"])
async def test_a_damaged_stream_is_an_error_and_nothing_else(damage: str) -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, text(1), REQ_COMPRESSED)
        await image.pwrite(CLUSTER, b"x" * CLUSTER)
    (entry,) = host_entries(disk.content())[0]
    stream, nbytes = compressed_extent(entry, 16)
    disk.write(stream, memoryview(bytes(nbytes) if damage == "cut" else b"\xff" * nbytes))
    async with await open_disk(disk) as image:
        with pytest.raises(OSError):
            await image.pread(0, 1)
        with pytest.raises(OSError):
            await image.pwrite(5, b"x")  # the rest of the cluster cannot be copied
        assert await image.pread(CLUSTER, 10) == b"x" * 10
        await image.pwrite(0, b"y" * CLUSTER)
        assert await image.pread(0, CLUSTER) == b"y" * CLUSTER


async def test_a_cluster_is_decompressed_once_for_its_readers() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, text(1), REQ_COMPRESSED)
    async with await open_disk(disk, writable=False) as image:
        await image.pread(0, 1)
        disk.records.clear()
        for offset in range(0, CLUSTER, 4096):
            assert await image.pread(offset, 4096) == text(1)[offset : offset + 4096]
        assert disk.records == []


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster", [512, 4096, 65536])
async def test_many_clusters_in_one_request(tmp_path: Path, kind: str, cluster: int) -> None:
    """Compressible, not compressible, and such with a host cluster already; the streams go to the file together."""
    size = 40 * cluster
    disk = RecordedDisk(await new_image(size, cluster_size=cluster, compression_type=kind))
    model = bytearray()
    for number in range(40):
        model += os.urandom(cluster) if number % 7 == 3 else text(number, cluster)
    async with await open_disk(disk) as image:
        await image.pwrite(5 * cluster, b"x" * cluster)
        await image.flush()
        disk.records.clear()
        await image.pwrite(0, bytes(model), REQ_COMPRESSED)
        assert len(disk.changes()) < 30  # one for each row of those that are alike
        assert await image.pread(0, size) == model
        assert await image.pread(cluster - 100, 9 * cluster) == model[cluster - 100 : 10 * cluster - 100]
        await image.pwrite(0, b"", REQ_COMPRESSED)
    assert_image(tmp_path, disk.content(), model)


async def test_streams_that_lie_together_are_read_together() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        for number in range(16):
            await image.pwrite(number * CLUSTER, text(number), REQ_COMPRESSED)
    async with await open_disk(disk, writable=False) as image:
        await image.pread(0, 1)  # the table, and the first cluster
        disk.records.clear()
        assert await image.pread(0, 1 << 20) == b"".join(text(number) for number in range(16))
        assert len(disk.records) == 1


async def test_a_damaged_stream_among_others() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        for number in range(4):
            await image.pwrite(number * CLUSTER, text(number), REQ_COMPRESSED)
    (entry,) = host_entries(disk.content())[2]
    stream, _ = compressed_extent(entry, 16)
    disk.write(stream, memoryview(b"\xff" * 20))
    async with await open_disk(disk) as image:
        with pytest.raises(OSError, match="damaged") as caught:
            await image.pread(0, 4 * CLUSTER)
        assert caught.value.errno == errno.EIO
        assert await image.pread(0, 2 * CLUSTER) == text(0) + text(1)
        assert await image.pread(3 * CLUSTER, CLUSTER) == text(3)


async def test_a_failed_write_of_streams_gives_their_room_back(tmp_path: Path) -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:

        async def before(verb: str, offset: int, nbytes: int) -> None:
            if verb == "write":
                raise OSError(errno.ENOSPC, "No space left on device")

        disk.before = before
        with pytest.raises(OSError) as caught:
            await image.pwrite(0, b"".join(text(number) for number in range(8)), REQ_COMPRESSED)
        assert caught.value.errno == errno.ENOSPC
        disk.before = None
        assert await image.pread(0, 1 << 20) == bytes(1 << 20)
        await image.pwrite(0, text(1), REQ_COMPRESSED)
    assert_image(tmp_path, disk.content(), text(1) + bytes((1 << 20) - CLUSTER))


@pytest.mark.parametrize(("kind", "level"), [("zlib", 0), ("zlib", 10), ("zstd", 23)])
async def test_levels_that_there_are_not(kind: str, level: int) -> None:
    disk = RecordedDisk(await new_image(1 << 20, compression_type=kind))
    with pytest.raises(aioblock.OptionError, match="compression-level must be between 1 and"):
        await open_disk(disk, options={"compression-level": level})


async def test_the_level_says_how_hard_it_is_tried() -> None:
    data = b"".join(text(number * number, 37) for number in range(1 << 15))[: 1 << 20]
    sizes = []
    for level in (1, 19):
        disk = RecordedDisk(await new_image(1 << 20, compression_type="zstd"))
        async with await open_disk(disk, options={"compression-level": level}) as image:
            await image.pwrite(0, data, REQ_COMPRESSED)
            assert await image.pread(0, 1 << 20) == data
        sizes.append(disk.size)
    assert sizes[1] < sizes[0]
