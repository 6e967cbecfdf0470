"""Reading images that QEMU wrote: every cluster size, refcount width, kind of cluster."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

import aioblock
from tests.kit.oracle import qemu_img, qemu_io
from tests.kit.qcow2_images import new_image, open_disk, qemu_image
from tests.kit.recorded_disk import RecordedDisk

pytestmark = pytest.mark.oracle

VARIANTS = [
    *[["-o", f"cluster_size={1 << bits}"] for bits in range(9, 22)],
    *[["-o", f"refcount_bits={bits}"] for bits in (1, 2, 4, 8, 32, 64)],
    ["-o", "compat=0.10"],
    ["-o", "compat=0.10,cluster_size=512"],
    ["-o", "extended_l2=on"],
    ["-o", "extended_l2=on,cluster_size=16k"],
    ["-o", "compression_type=zstd"],
    ["-o", "preallocation=metadata"],
    ["-o", "preallocation=falloc"],
]


@pytest.mark.slow
@pytest.mark.parametrize("args", VARIANTS, ids=lambda args: args[1])
async def test_what_qemu_wrote_is_read(tmp_path: Path, args: list[str]) -> None:
    path = qemu_image(tmp_path / "image", 5 << 20, *args)
    qemu_io(
        path,
        "write -P 1 0 3M",
        "write -P 2 100k 7777",
        "write -z 1M 100k",
        "discard 2M 2M",
        "write -P 3 4194304 1M",
        "write -z -u 4200000 70000",
        fmt="qcow2",
    )
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "raw")
    expected = (tmp_path / "raw").read_bytes()
    async with await aioblock.open(path, format="qcow2") as image:
        assert await image.pread(0, 5 << 20) == expected
        for offset, nbytes in ((0, 1), (102399, 7779), (1 << 20, 65537), (4194303, 2), ((5 << 20) - 1, 1)):
            assert await image.pread(offset, nbytes) == expected[offset : offset + nbytes]


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster", ["4k", "64k", "2M"])
async def test_compressed_images_are_read(tmp_path: Path, kind: str, cluster: str) -> None:
    content = b"".join(b"%07d\n" % (number // 3) for number in range(300_000))[: 2 << 20]
    (tmp_path / "raw").write_bytes(content)
    options = f"compression_type={kind},cluster_size={cluster}"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, tmp_path / "raw", tmp_path / "image")
    async with await aioblock.open(tmp_path / "image", format="qcow2") as image:
        assert await image.pread(0, len(content)) == content
        parts = await asyncio.gather(
            *(image.pread(offset, 10_000) for offset in range(0, len(content) - 10_000, 99_991))
        )
        for offset, part in zip(range(0, len(content), 99_991), parts, strict=False):
            assert part == content[offset : offset + 10_000]


async def test_internal_snapshots_do_not_matter_to_a_reader(tmp_path: Path) -> None:
    path = qemu_image(tmp_path / "image", 1 << 20)
    qemu_io(path, "write -P 1 0 256k", fmt="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 2 64k 64k", fmt="qcow2")
    async with await aioblock.open(path, format="qcow2") as image:
        assert await image.pread(0, 1 << 20) == b"\1" * 65536 + b"\2" * 65536 + b"\1" * 131072 + bytes(786432)


async def test_what_lies_behind_the_end_of_the_file_reads_as_zeroes() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 131072)
    disk.resize(disk.size - 65536)
    async with await open_disk(disk, writable=False) as image:
        assert await image.pread(0, 131072) == b"x" * 65536 + bytes(65536)


async def test_a_short_backing_file_reads_as_zeroes_behind_its_end() -> None:
    disk, below = RecordedDisk(await new_image(1 << 20)), RecordedDisk(b"b" * 100_352)
    async with await open_disk(disk, backing=below) as image:
        assert await image.pread(0, 1 << 20) == b"b" * 100_352 + bytes((1 << 20) - 100_352)
        await image.pwrite(99_000, b"x" * 10)
        assert await image.pread(98_000, 8_000) == b"b" * 1000 + b"x" * 10 + b"b" * 1342 + bytes(5648)


async def test_a_cached_read_is_one_request_to_the_file() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * (1 << 20))
    async with await open_disk(disk, writable=False) as image:
        await image.pread(0, 1)
        disk.records.clear()
        assert await image.pread(5000, 900_000) == b"x" * 900_000
        assert [record.verb for record in disk.records] == ["read"]


async def test_readers_of_one_table_load_it_once() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * (1 << 20))
    async with await open_disk(disk, writable=False) as image:
        gate, first, second = asyncio.Event(), asyncio.Event(), asyncio.Event()
        reads: list[int] = []

        async def before(verb: str, offset: int, nbytes: int) -> None:
            (second if reads else first).set()
            reads.append(nbytes)
            await gate.wait()

        disk.before = before
        tasks = [asyncio.create_task(image.pread(place * 4096, 4096)) for place in range(20)]
        await first.wait()
        tasks[0].cancel()  # it is the one that loads
        await second.wait()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert all(data == b"x" * 4096 for data in await asyncio.gather(*tasks[1:]))
        assert reads == [65536, 65536] + [4096] * 19


@pytest.mark.parametrize(
    "options", [{"l2-cache-size": 0}, {"cache-size": "1M"}, {"cache-size": 1 << 20, "l2-cache-size": 4096}]
)
async def test_cache_sizes_bound_the_tables(options: dict[str, Any]) -> None:
    disk = RecordedDisk(await new_image(4 << 20, cluster_size=512))
    async with await open_disk(disk, options) as image:
        for offset in range(0, 4 << 20, 32768):
            await image.pwrite(offset, b"x" * 512)
        driver = image.node.driver
        limit = driver.image.l2.limit  # type: ignore[attr-defined]
        assert len(driver.image.l2.tables) <= limit  # type: ignore[attr-defined]
    async with await open_disk(disk, options, writable=False) as image:
        assert (await image.pread(0, 4 << 20))[::32768] == b"x" * 128
        assert len(image.node.driver.image.l2.tables) <= limit  # type: ignore[attr-defined]
