"""What changes a node marks its dirty bitmaps, before it is begun; nothing else does."""

import asyncio
import errno

import pytest

import aioblock
from aioblock import REQ_COMPRESSED, REQ_MAY_UNMAP
from tests.kit.qcow2_images import new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk, fail_nth

SIZE = 1 << 20


async def open_raw(disk, **how):
    return await aioblock.open({"driver": "raw", "file": disk.options()}, writable=True, **how)


async def marked(disk, name="b"):
    return list((await disk.bitmap(name)).ranges())


async def test_writes_mark_the_units_that_they_touch():
    async with await open_raw(RecordedDisk(bytes(SIZE))) as disk:
        await disk.bitmap_add("b", 512, persistent=False)
        await disk.bitmap_add("coarse", 65536, persistent=False)
        await disk.pwrite(1000, b"x" * 100)
        await disk.pwrite_zeroes(4096, 4096)
        await disk.pwrite_zeroes(10240, 1024, REQ_MAY_UNMAP)
        await disk.pread(100000, 4096)
        await disk.flush()
        await disk.block_status(0, SIZE)
        assert await marked(disk) == [(512, 1024), (4096, 4096), (10240, 1024)]
        assert await marked(disk, "coarse") == [(0, 65536)]
        assert (await disk.bitmap("b")).count() == 6144


async def test_a_discard_marks_unless_discards_are_ignored():
    for mode, expected in (("unmap", [(4096, 8192)]), ("ignore", [])):
        async with await open_raw(RecordedDisk(bytes(SIZE)), discard=mode) as disk:
            await disk.bitmap_add("b", 4096, persistent=False)
            await disk.pdiscard(5000, 5000)
            assert await marked(disk) == expected


async def test_zeroes_found_in_data_mark_too():
    async with await open_raw(RecordedDisk(bytes(SIZE)), detect_zeroes="unmap") as disk:
        await disk.bitmap_add("b", 4096, persistent=False)
        await disk.pwrite(8192, bytes(4096))
        assert await marked(disk) == [(8192, 4096)]


async def test_compressed_writes_mark():
    async with await open_disk(RecordedDisk(await new_image(SIZE))) as disk:
        await disk.bitmap_add("b", 65536, persistent=False)
        await disk.pwrite(131072, b"x" * 65536, REQ_COMPRESSED)
        assert await marked(disk) == [(131072, 65536)]


async def test_a_bitmap_follows_the_length():
    async with await open_disk(RecordedDisk(await new_image(SIZE))) as disk:
        await disk.bitmap_add("b", 65536, persistent=False)
        await disk.truncate(2 * SIZE)
        assert await marked(disk) == []
        await disk.pwrite(2 * SIZE - 1, b"x")
        assert await marked(disk) == [(2 * SIZE - 65536, 65536)]


async def test_a_node_that_grows_by_a_write_marks_what_it_grew_by():
    recorded = RecordedDisk(bytes(SIZE))
    async with await aioblock.open(recorded.options(), writable=True) as disk:
        await disk.bitmap_add("b", 512, persistent=False)
        await disk.truncate(SIZE + 512)
        assert await marked(disk) == []
        await disk.pwrite(SIZE, b"x")
        assert await marked(disk) == [(SIZE, 512)]
        assert disk.bitmaps()["b"].length == disk.length


async def test_a_write_that_fails_is_dirty():
    recorded = RecordedDisk(bytes(SIZE))
    async with await open_raw(recorded) as disk:
        await disk.bitmap_add("b", 4096, persistent=False)
        recorded.before = fail_nth(1, OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError, match="Input/output error"):
            await disk.pwrite(8192, b"x" * 4096)
        assert await marked(disk) == [(8192, 4096)]


async def test_a_write_that_never_begins_is_not():
    async with await open_raw(RecordedDisk(bytes(SIZE))) as disk:
        await disk.bitmap_add("b", 4096, persistent=False)
        with pytest.raises(OSError, match="Input/output error"):
            await disk.pwrite(SIZE - 1, b"xx")
        await disk.pwrite(0, b"")
        assert await marked(disk) == []


async def test_a_write_whose_caller_was_cancelled_is_dirty_before_it_is_done():
    recorded = RecordedDisk(bytes(SIZE))
    gate, reached = asyncio.Event(), asyncio.Event()

    async def before(verb, offset, nbytes):
        if verb == "write":
            reached.set()
            await gate.wait()

    async with await open_raw(recorded) as disk:
        await disk.bitmap_add("b", 4096, persistent=False)
        recorded.before = before
        task = asyncio.create_task(disk.pwrite(8192, b"x" * 4096))
        await reached.wait()
        assert list(disk.bitmaps()["b"].ranges()) == [(8192, 4096)]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(disk.bitmaps()["b"].ranges()) == [(8192, 4096)]
        gate.set()


async def test_no_write_slips_between_clearing_and_the_next_mark():
    """A write in flight is done before the bitmap is cleared, and one that comes later marks it again."""
    recorded = RecordedDisk(bytes(SIZE))
    gate, reached = asyncio.Event(), asyncio.Event()

    async def before(verb, offset, nbytes):
        if verb == "write" and offset == 0:
            reached.set()
            await gate.wait()

    async with await open_raw(recorded) as disk:
        await disk.bitmap_add("b", 4096, persistent=False)
        recorded.before = before
        first = asyncio.create_task(disk.pwrite(0, b"x" * 4096))
        await reached.wait()
        clearing = asyncio.create_task(disk.bitmap_clear("b"))
        await asyncio.sleep(0)
        later = asyncio.create_task(disk.pwrite(65536, b"x" * 4096))
        await asyncio.sleep(0)
        assert list(disk.bitmaps()["b"].ranges()) == [(0, 4096)]
        gate.set()
        await asyncio.gather(first, clearing, later)
        assert await marked(disk) == [(65536, 4096)]


async def test_copying_on_read_changes_nothing_that_can_be_seen():
    backing = RecordedDisk(b"y" * SIZE)
    image = RecordedDisk(await new_image(SIZE))
    described = {"driver": "qcow2", "file": image.options(), "backing": {"driver": "raw", "file": backing.options()}}
    async with await aioblock.open(described, writable=True, copy_on_read=True, trust=aioblock.TRUST_ALL) as disk:
        await disk.bitmap_add("b", 4096, persistent=False)
        assert bytes(await disk.pread(0, 10)) == b"y" * 10
        assert image.changes()
        assert await marked(disk) == []


async def test_a_bitmap_that_cannot_be_used_keeps_the_length():
    async with await open_disk(RecordedDisk(await new_image(SIZE))) as disk:
        bitmap = await disk.bitmap_add("b", persistent=False)
        bitmap.inconsistent = True
        with pytest.raises(aioblock.BitmapError, match="Bitmap 'b' is inconsistent and cannot be used"):
            await disk.truncate(2 * SIZE)
        bitmap.inconsistent, bitmap.busy = False, True
        with pytest.raises(aioblock.BitmapError, match="Bitmap 'b' is currently in use by another operation"):
            await disk.truncate(2 * SIZE)
        assert disk.length == SIZE
        bitmap.busy = False
