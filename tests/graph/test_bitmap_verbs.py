"""The verbs of dirty bitmaps on a backend."""

import asyncio
import errno

import pytest

import aioblock
from aioblock import BitmapError, NotSupported
from tests.kit.qcow2_images import new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

SIZE = 1 << 20


async def an_image(size=SIZE, **options):
    return await open_disk(RecordedDisk(await new_image(size, **options)))


async def runs(disk, name):
    return list((await disk.bitmap(name)).ranges())


async def test_added_bitmaps_are_told_in_order():
    async with await an_image(cluster_size=4096) as disk:
        assert disk.stores_bitmaps
        added = await disk.bitmap_add("z")
        await disk.bitmap_add("a", 1 << 31, False, True)
        assert list(disk.bitmaps()) == ["z", "a"]
        assert disk.bitmaps()["z"] is added
        assert (added.granularity, added.enabled, added.persistent, added.length) == (4096, True, True, SIZE)
        other = disk.bitmaps()["a"]
        assert (other.granularity, other.enabled, other.persistent) == (1 << 31, False, False)
        disk.bitmaps().clear()
        assert list(disk.bitmaps()) == ["z", "a"]
        await disk.bitmap_remove("z")
        assert list(disk.bitmaps()) == ["a"]


async def test_enable_disable_clear():
    async with await an_image() as disk:
        await disk.bitmap_add("b", 512, disabled=True)
        await disk.pwrite(0, b"x")
        assert await runs(disk, "b") == []
        await disk.bitmap_enable("b")
        await disk.pwrite(0, b"x")
        await disk.bitmap_disable("b")
        await disk.pwrite(512, b"x")
        assert await runs(disk, "b") == [(0, 512)]
        await disk.bitmap_clear("b")
        assert await runs(disk, "b") == []


@pytest.mark.parametrize("verb", ["remove", "clear", "enable", "disable"])
async def test_what_is_not_there(verb):
    async with await an_image() as disk:
        with pytest.raises(BitmapError, match="Dirty bitmap 'b' not found") as caught:
            await getattr(disk, f"bitmap_{verb}")("b")
        assert caught.value.name == "b"


async def test_merge():
    async with await an_image() as disk:
        await disk.bitmap_add("fine", 512)
        await disk.pwrite(70000, b"x")
        await disk.bitmap_add("coarse", 65536, disabled=True)
        await disk.bitmap_merge("coarse", "fine")
        assert await runs(disk, "coarse") == [(65536, 65536)]
        await disk.bitmap_merge("fine", "coarse")
        assert await runs(disk, "fine") == [(65536, 65536)]
        await disk.bitmap_merge("fine", "fine")
        for target, source in (("fine", "none"), ("none", "fine")):
            with pytest.raises(BitmapError, match="Dirty bitmap 'none' not found"):
                await disk.bitmap_merge(target, source)


async def test_merge_from_another_image():
    recorded = RecordedDisk(await new_image(SIZE))
    async with await open_disk(recorded) as disk:
        await disk.bitmap_add("b", 512)
        await disk.pwrite(70000, b"x")
    async with await open_disk(recorded, writable=False) as source, await an_image() as target:
        assert not source.bitmaps()["b"].loaded
        await target.bitmap_add("t", 4096)
        await target.bitmap_merge("t", "b", source)
        assert await runs(target, "t") == [(69632, 4096)]
        with pytest.raises(BitmapError, match="Dirty bitmap 't' not found"):
            await target.bitmap_merge("t", "t", source)
        await target.bitmap_merge("t", "t", target)
    async with await open_disk(recorded, writable=False) as source, await an_image(2 * SIZE) as target:
        await target.bitmap_add("t", 4096)
        with pytest.raises(BitmapError, match="Bitmaps are of different sizes"):
            await target.bitmap_merge("t", "b", source)


async def test_two_that_want_the_content_load_it_once():
    recorded = RecordedDisk(await new_image(SIZE))
    async with await open_disk(recorded) as disk:
        await disk.bitmap_add("b", 512)
        await disk.pwrite(70000, b"x")
    async with await open_disk(recorded, writable=False) as disk:
        recorded.records.clear()
        first, second = await asyncio.gather(disk.bitmap("b"), disk.bitmap("b"))
        assert first is second
        assert len(recorded.records) == 2
        assert list(first.ranges()) == [(69632, 512)]


async def test_a_read_only_image_keeps_its_bitmaps():
    recorded = RecordedDisk(await new_image(SIZE))
    async with await open_disk(recorded) as disk:
        await disk.bitmap_add("b")
    async with await open_disk(recorded, writable=False) as disk:
        for verb in ("remove", "clear", "enable", "disable"):
            with pytest.raises(OSError, match="The image is read-only") as caught:
                await getattr(disk, f"bitmap_{verb}")("b")
            assert caught.value.errno == errno.EACCES
        with pytest.raises(OSError, match="The image is read-only"):
            await disk.bitmap_add("c")
        with pytest.raises(OSError, match="The image is read-only"):
            await disk.bitmap_merge("b", "b")
        await disk.bitmap_add("c", persistent=False)
        await disk.bitmap_merge("c", "b")


async def test_busy():
    async with await an_image() as disk:
        (await disk.bitmap_add("b")).busy = True
        await disk.bitmap_add("c")
        for verb in (disk.bitmap_remove, disk.bitmap_clear, disk.bitmap_enable, disk.bitmap_disable, disk.bitmap):
            with pytest.raises(BitmapError, match="Bitmap 'b' is currently in use by another operation"):
                await verb("b")
        with pytest.raises(BitmapError, match="Bitmap 'b' is currently in use"):
            await disk.bitmap_merge("c", "b")


async def test_formats_that_store_none():
    async with await aioblock.open(
        {"driver": "raw", "file": RecordedDisk(bytes(SIZE)).options()}, writable=True
    ) as disk:
        assert not disk.stores_bitmaps
        with pytest.raises(NotSupported, match=r"Can't store persistent bitmaps to #block\d+: Operation not supported"):
            await disk.bitmap_add("b")
        await disk.bitmap_add("b", persistent=False)
        with pytest.raises(BitmapError, match="Bitmap already exists: b"):
            await disk.bitmap_add("b", persistent=False)
        await disk.bitmap_remove("b")


async def test_a_closed_image():
    disk = await an_image()
    await disk.bitmap_add("b")
    await disk.close()
    for verb in (disk.bitmap_add, disk.bitmap_remove, disk.bitmap_clear, disk.bitmap):
        with pytest.raises(OSError, match="closed"):
            await verb("b")


async def test_verbs_on_the_whole_image_come_one_after_the_other():
    recorded = RecordedDisk(await new_image(SIZE))
    names = [f"b{number}" for number in range(6)]
    async with await open_disk(recorded) as disk:
        await asyncio.gather(*map(disk.bitmap_add, names))
    async with await open_disk(recorded) as disk:
        await asyncio.gather(
            *map(disk.bitmap_remove, names[::2]), disk.check(), disk.snapshot_create("s"), disk.pwrite(0, b"x")
        )
        result = await disk.check()
        assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0)
    async with await open_disk(recorded, writable=False) as disk:
        assert list(disk.bitmaps()) == names[1::2]
        for name in names[1::2]:
            assert await runs(disk, name) == [(0, 65536)]


async def test_a_removal_whose_caller_was_cancelled_goes_on():
    recorded = RecordedDisk(await new_image(SIZE))
    async with await open_disk(recorded) as disk:
        await disk.bitmap_add("b")
        await disk.bitmap_add("c")
    reached, gate = asyncio.Event(), asyncio.Event()

    async def before(verb, offset, nbytes):
        if verb == "write":
            reached.set()
            await gate.wait()

    disk = await open_disk(recorded)
    recorded.before = before
    removal = asyncio.create_task(disk.bitmap_remove("b"))
    await reached.wait()
    removal.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removal
    gate.set()
    await disk.close()
    async with await open_disk(recorded, writable=False) as disk:
        assert list(disk.bitmaps()) == ["c"]
        assert not disk.bitmaps()["c"].inconsistent
