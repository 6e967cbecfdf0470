"""The VM state area: read and written by offset, kept by snapshots, gone when the disk grows over it."""

import errno
from pathlib import Path

import pytest

import aioblock
from aioblock import NotSupported
from tests.kit.oracle import assert_clean, qemu_img, qemu_io
from tests.kit.qcow2_images import new_image, open_disk, qemu_image
from tests.kit.recorded_disk import RecordedDisk

SIZE = 1 << 20


async def test_what_was_written_is_read_and_the_rest_is_zero() -> None:
    disk = RecordedDisk(await new_image(SIZE, cluster_size=512))
    below = RecordedDisk(b"b" * (4 * SIZE))
    image = await open_disk(disk, backing=below)
    assert await image.vm_state_read(5, 100) == bytes(100)
    await image.vm_state_write(1000, b"v" * 100_000)
    assert await image.vm_state_read(999, 3) == b"\0vv"
    assert await image.vm_state_read(100_999, 3) == b"v\0\0"
    assert await image.vm_state_read(1 << 40, 3) == bytes(3)
    assert image.length == SIZE
    assert await image.pread(SIZE - 9, 9) == b"b" * 9
    await image.vm_state_write(1001, b"w")
    await image.flush()
    await image.close()
    image = await open_disk(disk, backing=below)
    assert await image.vm_state_read(998, 5) == b"\0\0vwv"
    result = await image.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    await image.close()


async def test_a_flush_makes_it_stable() -> None:
    disk = RecordedDisk(await new_image(SIZE))
    image = await open_disk(disk)
    await image.vm_state_write(0, b"v" * 512)
    await image.flush()
    copy = await open_disk(RecordedDisk(disk.content()), writable=False)
    assert await copy.vm_state_read(0, 512) == b"v" * 512
    await copy.close()
    await image.close()


async def test_a_snapshot_keeps_it_and_the_disk_has_it_no_more() -> None:
    disk = RecordedDisk(await new_image(SIZE, cluster_size=512))
    image = await open_disk(disk)
    await image.pwrite(0, b"d" * 5000)
    await image.vm_state_write(0, b"one" * 10_000)
    await image.snapshot_create("one", vm_state_size=30_000)
    assert await image.vm_state_read(0, 30_000) == bytes(30_000)
    await image.vm_state_write(0, b"two")
    await image.snapshot_create("two", vm_state_size=3)
    await image.snapshot_apply("one")
    assert await image.vm_state_read(0, 30_000) == b"one" * 10_000
    await image.vm_state_write(5, b"x")
    await image.snapshot_delete("one")
    await image.snapshot_apply("two")
    assert await image.vm_state_read(0, 5) == b"two\0\0"
    result = await image.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    await image.close()
    image = await open_disk(disk, {"snapshot": "two"}, writable=False)
    assert await image.vm_state_read(0, 5) == b"two\0\0"
    assert (image.snapshots()[0].vm_state_size, image.length) == (3, SIZE)
    await image.close()


async def test_a_snapshot_without_a_vm_state_leaves_the_area_alone() -> None:
    image = await open_disk(RecordedDisk(await new_image(SIZE)))
    await image.vm_state_write(0, b"old")
    await image.snapshot_create("one")
    assert await image.vm_state_read(0, 3) == b"old"
    await image.close()


@pytest.mark.parametrize("length", [4 * SIZE, SIZE + 512, SIZE // 2])
async def test_a_disk_of_another_size_shows_nothing_of_it(length: int) -> None:
    disk = RecordedDisk(await new_image(SIZE, cluster_size=512))
    image = await open_disk(disk)
    await image.vm_state_write(0, b"v" * 100_000)
    await image.truncate(length)
    if length > SIZE:
        assert await image.pread(SIZE, length - SIZE) == bytes(length - SIZE)
    assert await image.vm_state_read(0, 200_000) == bytes(200_000)
    result = await image.check()
    assert (result.corruptions, result.leaks) == (0, 0)
    await image.close()


async def test_ranges_that_are_none() -> None:
    image = await open_disk(RecordedDisk(await new_image(SIZE, cluster_size=512)))
    with pytest.raises(OSError, match="before its area"):
        await image.vm_state_write(-1, b"x")
    with pytest.raises(OSError, match="before its area"):
        await image.vm_state_read(-1, 1)
    with pytest.raises(OSError, match="too large") as caught:
        await image.vm_state_write(1 << 50, b"x")
    assert caught.value.errno == errno.EFBIG
    await image.vm_state_write(1 << 50, b"")
    await image.close()
    image = await open_disk(RecordedDisk(await new_image(SIZE)), writable=False)
    with pytest.raises(OSError) as caught:
        await image.vm_state_write(0, b"x")
    assert caught.value.errno == errno.EACCES
    await image.close()


async def test_a_driver_without_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.raw"
    path.write_bytes(bytes(512))
    async with await aioblock.open(path, format="raw", writable=True) as disk:
        with pytest.raises(NotSupported, match="no room for a VM state"):
            await disk.vm_state_read(0, 1)
        with pytest.raises(NotSupported, match="no room for a VM state"):
            await disk.vm_state_write(0, b"x")


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("options", [(), ("-o", "cluster_size=512"), ("-o", "extended_l2=on"), ("-o", "compat=0.10")])
async def test_next_to_qemu(options: tuple[str, ...], tmp_path: Path) -> None:
    path = qemu_image(tmp_path / "image.qcow2", SIZE, *options)
    qemu_io(path, "write -b -P 7 4k 64k", fmt="qcow2")
    async with await aioblock.open(path, format="qcow2", writable=True) as disk:
        assert await disk.vm_state_read(4095, 65_538) == b"\0" + b"\7" * 65_536 + b"\0"
        await disk.vm_state_write(100 << 10, b"\x08" * 1024)
        await disk.snapshot_create("one")
    assert_clean(path, "qcow2")
    qemu_io(path, "read -b -P 8 100k 1k", "read -b -P 7 4k 64k", "write -b -P 9 0 200k", fmt="qcow2")
    qemu_img("snapshot", "-a", "one", path)
    qemu_io(path, "read -b -P 8 100k 1k", "read -b -P 7 4k 64k", "read -b -P 0 0 4k", fmt="qcow2")
    assert_clean(path, "qcow2")
