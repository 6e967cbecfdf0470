"""Resize: grow and shrink against a model and QEMU, in any order, through failures and power cuts."""

import asyncio
import errno
import random
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock import Prealloc
from tests.kit.oracle import assert_clean, qemu_img, qemu_io, qemu_map
from tests.kit.power_cut import after_power_cut, assert_sound
from tests.kit.qcow2_images import assert_image, header_of, host_entries, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk, fail_nth

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"cluster_size": 512},
    "wide counts": {"cluster_size": 1024, "refcount_bits": 64},
    "v2": {"cluster_size": 1024, "compat": "0.10"},
    "extended": {"cluster_size": 16384, "extended_l2": True},
    "usual": {},
}


async def random_resizes(image: aioblock.BlockBackend, chance: random.Random, rounds: int, most: int) -> bytearray:
    """Writes and resizes on a disk of zeroes; what it must hold then."""
    model = bytearray(image.length)
    for number in range(rounds):
        if chance.random() < 0.4:
            length = chance.randrange(1, most // 512) * 512
            await image.truncate(length)
            del model[length:]
            model.extend(bytes(length - len(model)))
        else:
            offset = chance.randrange(len(model))
            nbytes = min(chance.choice((100, 5000, 70_000)), len(model) - offset)
            if chance.random() < 0.2:
                await image.pwrite_zeroes(offset, nbytes)
                model[offset : offset + nbytes] = bytes(nbytes)
            else:
                await image.pwrite(offset, bytes([number % 255 + 1]) * nbytes)
                model[offset : offset + nbytes] = bytes([number % 255 + 1]) * nbytes
        if chance.random() < 0.2:
            await image.flush()
    return model


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES)
async def test_resizes_among_writes_agree_with_the_model(tmp_path: Path, shape: str) -> None:
    for seed in range(4):
        disk = RecordedDisk(await new_image(300_032, **SHAPES[shape]))
        async with await open_disk(disk) as image:
            model = await random_resizes(image, random.Random(seed), 60, 600_000)
            assert await image.pread(0, image.length) == model
        assert header_of(disk.content()).size == len(model)
        assert_image(tmp_path, disk.content(), model)


async def test_what_is_cut_off_is_given_back() -> None:
    disk = RecordedDisk(await new_image(64 << 20, cluster_size=4096))
    empty = len(disk.content())
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 8192)
        kept = image.node.file
        assert kept is not None
        await image.flush()
        small = kept.length
        await image.pwrite(1 << 20, b"y" * (40 << 20))
        await image.flush()
        assert kept.length > 40 << 20
        await image.truncate(8192)
        assert small <= kept.length < small + 16 * 4096
        await image.truncate(64 << 20)
        assert await image.pread(0, 64 << 20) == b"x" * 8192 + bytes((64 << 20) - 8192)
    assert empty <= len(disk.content()) < small + 16 * 4096
    assert len(host_entries(disk.content())) == 2


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
async def test_a_longer_backing_file_does_not_come_back(compat: str) -> None:
    disk, below = RecordedDisk(await new_image(1 << 20, compat=compat)), RecordedDisk(b"b" * (1 << 20))
    async with await open_disk(disk, backing=below) as image:
        await image.pwrite(700_000, b"x" * 1000)
        await image.truncate(500_224)
        await image.truncate(1 << 20)
        assert await image.pread(0, 1 << 20) == b"b" * 500_224 + bytes((1 << 20) - 500_224)


async def test_what_a_resize_refuses() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        for length, prealloc, message in (
            (1000, Prealloc.OFF, "The new size must be a multiple of 512"),
            (512, Prealloc.METADATA, "Preallocation can't be used for shrinking an image"),
            (1 << 60, Prealloc.OFF, "Failed to grow the L1 table"),
        ):
            with pytest.raises(OSError, match=message):
                await image.truncate(length, prealloc=prealloc)
        assert image.length == 1 << 20
        assert [record for record in disk.changes() if record.data] == []


async def test_requests_wait_for_a_shrink() -> None:
    """What comes after it finds the new end; what came before is done, and gone where it lay behind that."""
    disk = RecordedDisk(await new_image(1 << 20, cluster_size=4096))
    async with await open_disk(disk) as image:

        async def jitter(verb: str, offset: int, nbytes: int) -> None:
            await asyncio.sleep(0)

        disk.before = jitter
        before = [asyncio.create_task(image.pwrite(at, b"a" * 4096)) for at in range(0, 1 << 20, 65536)]
        await asyncio.sleep(0)
        cut = asyncio.create_task(image.truncate(512 << 10))
        await asyncio.gather(*before)
        await asyncio.sleep(0)
        assert not cut.done()  # it runs: what comes while it still waits may pass it
        after = [asyncio.create_task(image.pwrite(at, b"b" * 4096)) for at in range(4096, 1 << 20, 65536)]
        results = await asyncio.gather(*before, cut, *after, return_exceptions=True)
        failed = [result for result in results if result is not None]
        assert all(isinstance(result, OSError) and result.errno == errno.EIO for result in failed)
        assert len(failed) == 8  # those behind the new end
        disk.before = None
        assert await image.pread(0, 512 << 10) == (b"a" * 4096 + b"b" * 4096 + bytes(57344)) * 8
    assert_sound(disk.content())


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("shape", ["small", "wide counts", "v2", "extended"])
async def test_power_cuts_leave_a_sound_image_of_some_size(shape: str) -> None:
    for seed in range(3):
        chance = random.Random(seed)
        disk = RecordedDisk(await new_image(200_192, **SHAPES[shape]))
        async with await open_disk(disk) as image:
            await random_resizes(image, chance, 40, 300_000)
        points = chance.sample(range(len(disk.records) + 1), min(80, len(disk.records)))
        points += 3 * [number for number, record in enumerate(disk.records) if record.offset == 24]
        for point in points:
            content = after_power_cut(disk, point, chance)
            assert_sound(content)
            # It goes on without a repair: what comes behind the end reads as zeroes.
            again = RecordedDisk(content)
            async with await open_disk(again) as image:
                old = image.length
                data = bytes(await image.pread(0, old))
                await image.truncate(old + 100_352)
                assert await image.pread(0, old + 100_352) == data + bytes(100_352)
            assert_sound(again.content())


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("cluster_size", [512, 4096])
async def test_a_power_cut_in_a_shrink_leaves_all_of_the_old_size_or_of_the_new(cluster_size: int) -> None:
    disk = RecordedDisk(await new_image(300_032, cluster_size=cluster_size))
    image = await open_disk(disk)
    await image.pwrite(0, b"x" * 300_032)
    await image.flush()
    begun = len(disk.records)
    await image.truncate(100_352)
    await image.close()
    chance = random.Random(cluster_size)
    lengths = set()
    for point in range(begun, len(disk.records) + 1):
        for _ in range(4):
            content = after_power_cut(disk, point, chance)
            assert_sound(content)
            async with await open_disk(RecordedDisk(content), writable=False) as found:
                lengths.add(found.length)
                assert await found.pread(0, found.length) == b"x" * found.length
    assert lengths == {300_032, 100_352}


@pytest.mark.slow
@pytest.mark.parametrize("larger", [False, True])
async def test_a_failure_anywhere_is_told_and_survived(larger: bool) -> None:
    content = await new_image(300_032, cluster_size=1024)
    failed = 0
    for number in range(1, 1000):
        disk = RecordedDisk(content)
        image = await open_disk(disk)
        await image.pwrite(0, b"x" * 300_032)
        await image.flush()
        disk.before = fail_nth(number, OSError(errno.EIO, "Input/output error"))
        length, prealloc = (900_096, Prealloc.METADATA) if larger else (100_352, Prealloc.OFF)
        (result,) = await asyncio.gather(image.truncate(length, prealloc=prealloc), return_exceptions=True)
        passed = result is None
        if not passed:
            assert isinstance(result, OSError)
            assert result.errno == errno.EIO
            failed += 1
        disk.before = None
        length = image.length
        assert length in ((300_032, 900_096) if larger else (300_032, 100_352))
        kept = min(length, 300_032)
        assert await image.pread(0, length) == b"x" * kept + bytes(length - kept)
        try:
            await image.close()
        except OSError:
            assert not passed  # a write-back that failed is told as long as the image is open
        assert_sound(disk.content())
        assert header_of(disk.content()).size == length or not passed
        if passed and number > failed + 1:
            break
    assert failed > 5


# -- QEMU ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("prealloc", [Prealloc.METADATA, Prealloc.FALLOC, Prealloc.FULL])
@pytest.mark.parametrize(
    "options", ["compat=1.1", "compat=0.10", "extended_l2=on", "cluster_size=4096", "backing", "data_file"]
)
async def test_preallocation_agrees_with_qemu(tmp_path: Path, options: str, prealloc: Prealloc) -> None:
    args = ["-o", options]
    if options == "backing":
        qemu_img("create", "-q", "-f", "raw", tmp_path / "base", "1M")
        qemu_io(tmp_path / "base", "write -P 9 0 1M", fmt="raw")
        args = ["-b", str(tmp_path / "base"), "-F", "raw"]
    maps = []
    for which in ("qemu", "ours"):
        path = tmp_path / which
        mine = ["-o", f"data_file={path}.data"] if options == "data_file" else args
        qemu_img("create", "-q", "-f", "qcow2", *mine, path, "512k")
        qemu_io(path, "write -P 5 0 1k", fmt="qcow2")
        if which == "qemu":
            qemu_img("resize", "-q", f"--preallocation={prealloc}", path, "1M")
        else:
            async with await aioblock.open(path, format="qcow2", writable=True, trust=aioblock.TRUST_ALL) as image:
                await image.truncate(1 << 20, prealloc=prealloc)
        qemu_io(path, "read -P 0 512k 512k", fmt="qcow2")
        assert_clean(path, "qcow2")
        runs = [{**run, "offset": None, "length": None} for run in qemu_map(path)]
        maps.append([run for number, run in enumerate(runs) if not number or run != runs[number - 1]])
    assert maps[0] == maps[1]


@pytest.mark.oracle
async def test_a_shrink_with_snapshots_leaves_them_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "2M")
    qemu_io(path, "write -P 1 0 2M", fmt="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 2 1M 64k", fmt="qcow2")
    async with await aioblock.open(path, format="qcow2", writable=True) as image:
        await image.truncate(512 << 10)
        await image.truncate(4 << 20)
    assert_clean(path, "qcow2")
    qemu_io(path, "read -P 1 0 512k", "read -P 0 512k 3584k", fmt="qcow2")
    qemu_img("snapshot", "-a", "one", path)
    qemu_io(path, "read -P 1 0 2M", fmt="qcow2")
    assert_clean(path, "qcow2")


@pytest.mark.oracle
async def test_version_2_with_snapshots_has_one_size(tmp_path: Path) -> None:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "2M")
    qemu_img("snapshot", "-c", "one", path)
    async with await aioblock.open(path, format="qcow2", writable=True) as image:
        for length in (1 << 20, 4 << 20):
            with pytest.raises(aioblock.NotSupported, match="Can't resize a v2 image which has snapshots"):
                await image.truncate(length)
