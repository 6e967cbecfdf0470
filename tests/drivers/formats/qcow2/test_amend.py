"""Amend: every change against QEMU's check and content, through power cuts, and what is refused."""

import random
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock import NotSupported, OptionError
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from aioblock.drivers.formats.qcow2.snapshot_table import read_snapshot_table
from tests.kit.memory_io import MemoryIO
from tests.kit.oracle import assert_clean, qemu_img, qemu_io, qemu_map
from tests.kit.power_cut import after_power_cut, assert_sound
from tests.kit.qcow2_images import assert_image, header_of, host_entries, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

MIB = 1 << 20


async def fill(image: aioblock.BlockBackend, seed: int, rounds: int = 40) -> bytearray:
    """Some of everything, on a disk of zeroes; what it must hold then."""
    chance = random.Random(seed)
    model = bytearray(image.length)
    unit = image.node.driver.cluster_size
    assert unit
    for number in range(rounds):
        kind = chance.choice(("write", "write", "zero", "unmap", "discard", "compress"))
        first = chance.randrange(image.length // unit)
        offset, nbytes = first * unit, min(chance.randrange(1, 6), image.length // unit - first) * unit
        data = bytes([number + 1]) * nbytes if kind in ("write", "compress") else bytes(nbytes)
        if kind in ("write", "compress"):
            await image.pwrite(offset, data, aioblock.REQ_COMPRESSED if kind == "compress" else 0)
        elif kind == "discard":
            await image.pdiscard(offset, nbytes)
        else:
            await image.pwrite_zeroes(offset, nbytes, aioblock.REQ_MAY_UNMAP if kind == "unmap" else 0)
        model[offset : offset + nbytes] = data
    return model


# -- version ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
async def test_down_and_up_again(tmp_path: Path, cluster_size: int) -> None:
    disk = RecordedDisk(await new_image(200 * cluster_size, cluster_size=cluster_size))
    async with await open_disk(disk) as image:
        model = await fill(image, cluster_size)
        await image.amend({"compat": "0.10"})
        assert header_of(disk.content()).version == 2
        assert not any(entry[0] & 1 for entry in host_entries(disk.content()).values() if not entry[0] >> 62 & 1)
        assert await image.pread(0, image.length) == model
        await image.pwrite(0, b"x" * 100)
        model[:100] = b"x" * 100
        await image.flush()
        assert_image(tmp_path, disk.content(), model)
        await image.amend({"compat": "1.1", "lazy_refcounts": "on"})
        header = header_of(disk.content())
        assert (header.version, header.lazy_refcounts, header.header_length) == (3, True, 112)
        await image.pwrite_zeroes(0, cluster_size)
        model[:cluster_size] = bytes(cluster_size)
        await image.amend({"lazy_refcounts": "off"})
    assert not header_of(disk.content()).lazy_refcounts
    assert_image(tmp_path, disk.content(), model)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("backing", [False, True])
async def test_zero_clusters_of_snapshots(tmp_path: Path, backing: bool) -> None:
    """QEMU 7.2 fills clusters with zeroes here that a snapshot still shows; the snapshots must stay what they are."""
    path, base = tmp_path / "image", tmp_path / "base"
    qemu_img("create", "-q", "-f", "raw", base, "1M")
    qemu_io(base, "write -P 9 0 1M", fmt="raw")
    qemu_img("create", "-q", "-f", "qcow2", *(["-b", str(base), "-F", "raw"] if backing else []), path, "1M")
    below = 9 if backing else 0
    qemu_io(path, "write -P 1 0 256k", "write -z 64k 64k", "write -zu 128k 64k", "write -z 512k 64k", fmt="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    qemu_img("snapshot", "-c", "two", path)
    qemu_io(path, "write -P 1 256k 64k", "write -z 0 64k", fmt="qcow2")
    now = [0, 0, 0, 1, 1, below, below, below, 0, below]
    then = [1, 0, 0, 1, below, below, below, below, 0, below]

    def verify(expected: list[int]) -> None:
        qemu_io(path, *(f"read -P {value} {64 * number}k 64k" for number, value in enumerate(expected)), fmt="qcow2")
        assert_clean(path, "qcow2")

    verify(now)
    progress: list[tuple[int, int]] = []
    async with await aioblock.open(path, format="qcow2", writable=True, trust=aioblock.TRUST_ALL) as image:
        await image.amend({"compat": "0.10"}, progress=lambda done, total: progress.append((done, total)))
    assert progress[-1] == (3, 3)
    assert progress == sorted(progress)
    verify(now)
    assert not any(run["zero"] and not run["data"] for run in qemu_map(path) if run["present"])
    for name in ("one", "two"):
        qemu_img("snapshot", "-a", name, path)
        verify(then)
        qemu_img("snapshot", "-d", name, path)
    verify(then)


async def test_version_3_needs_the_sizes_of_snapshots() -> None:
    disk = RecordedDisk(await new_image(MIB, compat="0.10"))
    async with await open_disk(disk) as image:
        await image.snapshot_create("one")
        driver = image.node.driver
        assert isinstance(driver, Qcow2Driver)
        header = driver.image.header
        header.snapshots[0].extra_data = b""  # as old programs have written it
        before = header.snapshots_offset
        await image.amend({"compat": "1.1"})
        assert header.snapshots_offset != before
    content = disk.content()
    (entry,), _ = await read_snapshot_table(MemoryIO(content), header_of(content))
    assert (entry.name, entry.disk_size) == (b"one", MIB)


# -- refcounts -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("cluster_size", [512, 65536])
async def test_every_refcount_width(tmp_path: Path, cluster_size: int) -> None:
    disk = RecordedDisk(await new_image(600 * cluster_size, cluster_size=cluster_size))
    async with await open_disk(disk) as image:
        model = await fill(image, 1, 100)
        for number, bits in enumerate((64, 1, 32, 2, 8, 4, 16, 64)):
            if bits < 8:  # streams share clusters
                await image.pwrite(0, model)
            await image.amend({"refcount_bits": bits})
            assert header_of(disk.content()).refcount_bits == bits
            await image.pwrite(number * 3 * cluster_size, bytes([200 + number]) * cluster_size)
            model[number * 3 * cluster_size : (number * 3 + 1) * cluster_size] = bytes([200 + number]) * cluster_size
            await image.flush()
            assert_image(tmp_path, disk.content(), model)


async def test_a_count_that_does_not_fit() -> None:
    disk = RecordedDisk(await new_image(MIB))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 65536)
        for name in "abc":
            await image.snapshot_create(name)
        before = disk.content()
        with pytest.raises(NotSupported, match=r"width to 2 bits: Cluster at offset 0x\w+ has a refcount of 4"):
            await image.amend({"refcount_bits": 2})
        assert disk.content() == before
        await image.amend({"refcount_bits": 4})


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "wish", "message"),
    [
        ({}, {"compat": "3"}, "Unknown compatibility level 3"),
        ({}, {"refcount_bits": 7}, "Refcount width must be a power of two"),
        ({}, {"compat": "0.10", "refcount_bits": 8}, "Refcount widths other than 16 bits require"),
        ({"refcount_bits": 8}, {"compat": "0.10"}, "compat=0.10 requires refcount_bits=16"),
        ({"compat": "0.10"}, {"lazy_refcounts": True}, "Lazy refcounts only supported with"),
        ({"extended_l2": True}, {"compat": "0.10"}, "incompatible features 0x10 set"),
        ({"compression_type": "zstd"}, {"compat": "0.10"}, "incompatible features 0x8 set"),
        ({}, {"data_file": "x"}, "data-file can only be set"),
        ({}, {"data_file_raw": True}, "data-file-raw cannot be set"),
        ({}, {"size": 1000}, "multiple of 512"),
        ({}, {"backing_file": "x"}, "Cannot amend the backing file"),
        ({}, {"encrypt.state": "active"}, "encryption not present"),
        ({}, {"cluster_size": 4096}, "Invalid parameter 'cluster_size'"),
    ],
)
async def test_what_cannot_be_changed_is_named_before_anything_is_written(
    made: dict[str, Any], wish: dict[str, Any], message: str
) -> None:
    disk = RecordedDisk(await new_image(MIB, **made))
    before = disk.content()
    async with await open_disk(disk) as image:
        with pytest.raises((OptionError, NotSupported), match=message):
            await image.amend({"size": 2 * MIB, **wish})
    assert disk.content() == before


async def test_version_2_keeps_no_bitmaps() -> None:
    disk = RecordedDisk(await new_image(MIB))
    async with await open_disk(disk) as image:
        await image.bitmap_add("one")
    async with await open_disk(disk) as image:
        with pytest.raises(NotSupported, match="persistent bitmaps"):
            await image.amend({"compat": "0.10"})
        await image.amend({"refcount_bits": 64, "size": 2 * MIB})
        assert list(image.bitmaps()) == ["one"]
    async with await open_disk(disk) as image:
        assert list(image.bitmaps()) == ["one"]


async def test_a_read_only_image_is_not_amended() -> None:
    async with await open_disk(RecordedDisk(await new_image(MIB)), writable=False) as image:
        with pytest.raises(OSError):
            await image.amend({"compat": "0.10"})
        with pytest.raises(OSError):
            await image.change_backing_file("x")


async def test_the_size_is_an_option_too() -> None:
    disk = RecordedDisk(await new_image(MIB))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * MIB)
        await image.amend({"size": "512k", "compat": "0.10"})
        assert image.length == 512 << 10
        assert await image.pread(0, 512 << 10) == b"x" * (512 << 10)
    assert_sound(disk.content())


# -- power cuts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("cluster_size", [512, 8192])
async def test_power_cuts_never_show(cluster_size: int) -> None:
    """Whatever is left reads as before, is sound, and can be written on."""
    below = RecordedDisk(b"b" * 100 * cluster_size)
    wishes = (
        {"compat": "0.10"},
        {"compat": "1.1"},
        {"refcount_bits": 64},
        {"refcount_bits": 16, "lazy_refcounts": True},
        {"compat": "0.10", "lazy_refcounts": False},
    )
    made = {"cluster_size": cluster_size, "backing_file": "below", "backing_fmt": "raw"}
    for seed in range(3):
        chance = random.Random(seed)
        start = RecordedDisk(await new_image(100 * cluster_size, **made))
        async with await open_disk(start, backing=below) as image:
            await fill(image, seed, 25)
            model = bytes(await image.pread(0, image.length))
        disk = RecordedDisk(start.content())
        async with await open_disk(disk, backing=below) as image:
            for wish in wishes:
                await image.amend(wish)
        changed = [number for number, record in enumerate(disk.records, 1) if record.data]
        for point in [*chance.sample(changed, min(50, len(changed))), len(disk.records)]:
            content = after_power_cut(disk, point, chance)
            assert_sound(content)
            header = header_of(content)
            assert (header.backing_file, header.backing_format) == ("below", "raw")
            again = RecordedDisk(content)
            async with await open_disk(again, backing=below) as image:
                assert await image.pread(0, image.length) == model
                await image.pwrite(0, b"n" * 3 * cluster_size)
            assert_sound(again.content())
