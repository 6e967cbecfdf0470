"""Persistent bitmaps: stored, found again, in use, inconsistent, removed; faults on the way."""

import errno
import struct

import pytest

import aioblock
from aioblock import BitmapError, BlockError
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.bitmaps import bitmaps_size
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_BITMAPS
from tests.kit.power_cut import assert_sound
from tests.kit.qcow2_images import header_of, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk, fail_nth

SIZE = 1 << 20


async def bitmaps_of(disk):
    """What a read-only user finds: runs, whether it records; None for an inconsistent one."""
    async with await open_disk(disk, writable=False) as image:
        found = {}
        for name, bitmap in image.bitmaps().items():
            if bitmap.inconsistent:
                found[name] = None
            else:
                found[name] = list((await image.bitmap(name)).ranges()), bitmap.enabled
        return found


async def leaks_of(disk):
    async with await open_disk(disk, writable=False) as image:
        result = await image.check()
        assert (result.corruptions, result.check_errors) == (0, 0), result.findings
        return result.leaks


async def with_bitmaps(**options):
    """An image with a bitmap that records and one that does not."""
    disk = RecordedDisk(await new_image(SIZE, **options))
    async with await open_disk(disk) as image:
        await image.bitmap_add("on", 4096)
        await image.bitmap_add("off", 512, disabled=True)
        await image.pwrite(8192, b"x" * 5000)
    return RecordedDisk(disk.content())


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
async def test_stored_at_close_and_found_again(cluster_size):
    disk = await with_bitmaps(cluster_size=cluster_size)
    assert await bitmaps_of(disk) == {"on": ([(8192, 8192)], True), "off": ([], False)}
    assert await leaks_of(disk) == 0
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x")
        await image.bitmap_disable("on")
        await image.bitmap_enable("off")
        await image.pwrite_zeroes(65536, 65536)
    assert await bitmaps_of(disk) == {"on": ([(0, 4096), (8192, 8192)], False), "off": ([(65536, 65536)], True)}
    assert await leaks_of(disk) == 0
    assert_sound(disk.content())


async def test_what_is_all_dirty_or_all_clean_takes_no_data_cluster():
    disk = RecordedDisk(await new_image(4 << 20, cluster_size=512))
    async with await open_disk(disk) as image:
        await image.bitmap_add("all", 512)
        await image.bitmap_add("none", 512)
        await image.truncate((4 << 20) + 512)
        for name in ("all", "none"):
            image.bitmaps()[name].set(0, 4 << 20)
        await image.bitmap_clear("none")
        await image.reopen(writable=False)
        for name, expected in (("all", (1, 1, 0)), ("none", (0, 0, 0))):
            entry = image.node.driver.image.stored_bitmaps[name]
            assert entry.table_size == 3
            assert struct.unpack_from(">3Q", disk.content(), entry.table_offset) == expected
    assert await bitmaps_of(disk) == {"all": ([(0, 4 << 20)], True), "none": ([], True)}


async def test_opening_to_write_says_in_use_before_the_first_write():
    disk = await with_bitmaps()
    image = await open_disk(disk)
    assert [record.verb for record in disk.changes()] == ["write", "flush"] * 3
    assert await bitmaps_of(RecordedDisk(disk.content())) == {"on": None, "off": None}
    assert header_of(disk.content()).autoclear_features == AUTOCLEAR_BITMAPS
    await image.pwrite(0, b"x")
    await image.close()
    assert await bitmaps_of(disk) == {"on": ([(0, 4096), (8192, 8192)], True), "off": ([], False)}


async def test_reading_writes_nothing():
    disk = await with_bitmaps()
    await bitmaps_of(disk)
    assert disk.changes() == []


async def test_bitmaps_that_did_not_change_are_not_written_again():
    disk = await with_bitmaps()
    before = bytearray(disk.content())
    async with await open_disk(disk) as image:
        assert await image.pread(0, 512)
    assert disk.content() == before
    assert [len(record.data) for record in disk.changes() if record.verb == "write"] == [24, 64, 24] * 2


async def test_only_bitmaps_that_changed_get_new_clusters():
    disk = await with_bitmaps()
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x")
        before = dict(image.node.driver.image.stored_bitmaps)
        await image.reopen(writable=False)
        after = image.node.driver.image.stored_bitmaps
        assert before["on"].table_offset != after["on"].table_offset
        assert before["off"].table_offset == after["off"].table_offset


async def test_reopening_read_only_stores_and_reopening_to_write_takes_into_use():
    disk = await with_bitmaps()
    image = await open_disk(disk)
    await image.pwrite(65536, b"x")
    await image.reopen(writable=False)
    assert await bitmaps_of(RecordedDisk(disk.content())) == {
        "on": ([(8192, 8192), (65536, 4096)], True),
        "off": ([], False),
    }
    with pytest.raises(OSError, match="read-only"):
        await image.bitmap_clear("on")
    await image.reopen(writable=True)
    assert await bitmaps_of(RecordedDisk(disk.content())) == {"on": None, "off": None}
    await image.pwrite(0, b"x")
    await image.bitmap_remove("off")
    await image.close()
    assert await bitmaps_of(disk) == {"on": ([(0, 4096), (8192, 8192), (65536, 4096)], True)}
    assert await leaks_of(disk) == 0


async def test_opened_read_only_and_then_to_write():
    disk = await with_bitmaps()
    image = await open_disk(disk, writable=False)
    await image.reopen(writable=True)
    await image.pwrite(0, b"x")
    await image.close()
    assert await bitmaps_of(disk) == {"on": ([(0, 4096), (8192, 8192)], True), "off": ([], False)}


async def test_inconsistent_bitmaps_stay_so_and_can_only_be_removed():
    disk = await with_bitmaps()
    image = await open_disk(disk)
    crashed = RecordedDisk(disk.content())
    await image.close()
    async with await open_disk(crashed) as image:
        for verb in (image.bitmap_clear, image.bitmap_enable, image.bitmap_disable, image.bitmap):
            with pytest.raises(BitmapError, match="Bitmap 'on' is inconsistent and cannot be used\nTry") as caught:
                await verb("on")
            assert caught.value.name == "on"
        await image.bitmap_add("new")
        for target, source in (("on", "new"), ("new", "on")):
            with pytest.raises(BitmapError, match="Bitmap 'on' is inconsistent"):
                await image.bitmap_merge(target, source)
        with pytest.raises(BitmapError, match="Bitmap already exists: on"):
            await image.bitmap_add("on")
        with pytest.raises(BitmapError, match="inconsistent"):
            await image.truncate(2 * SIZE)
        await image.pwrite(0, b"x")
    assert await bitmaps_of(crashed) == {"on": None, "off": None, "new": ([(0, 65536)], True)}
    async with await open_disk(crashed) as image:
        await image.bitmap_remove("on")
        await image.bitmap_remove("off")
    assert await bitmaps_of(crashed) == {"new": ([(0, 65536)], True)}
    assert await leaks_of(crashed) == 0


async def test_removing_is_stable_when_done():
    disk = await with_bitmaps()
    image = await open_disk(disk)
    await image.bitmap_remove("on")
    assert await bitmaps_of(RecordedDisk(disk.content())) == {"off": None}
    await image.bitmap_remove("off")
    assert await bitmaps_of(RecordedDisk(disk.content())) == {}
    header = header_of(disk.content())
    assert ext.find(header.extensions, ext.BITMAPS) is None
    assert header.autoclear_features == 0
    assert disk.records[-1].verb == "flush"
    await image.close()
    assert await leaks_of(disk) == 0
    assert header_of(disk.content()) == header_of(await new_image(SIZE))


async def test_bitmaps_of_memory_only_are_not_stored():
    disk = await with_bitmaps()
    async with await open_disk(disk) as image:
        await image.bitmap_add("here", persistent=False)
    assert set(await bitmaps_of(disk)) == {"on", "off"}


async def test_an_extension_that_does_not_count_is_passed_over_and_used_again():
    disk = await with_bitmaps()
    content = bytearray(disk.content())
    content[88:96] = bytes(8)
    disk = RecordedDisk(bytes(content))
    assert await bitmaps_of(disk) == {}
    async with await open_disk(disk) as image:
        assert image.bitmaps() == {}
        await image.bitmap_add("new")
    assert await bitmaps_of(disk) == {"new": ([], True)}
    assert len(header_of(disk.content()).extensions) == len(header_of(bytes(content)).extensions)


async def test_unknown_autoclear_bits_go_and_bitmaps_stay():
    disk = await with_bitmaps()
    content = bytearray(disk.content())
    content[88:96] = struct.pack(">Q", 1 << 40 | AUTOCLEAR_BITMAPS)
    disk = RecordedDisk(bytes(content))
    async with await open_disk(disk) as image:
        assert header_of(disk.content()).autoclear_features == AUTOCLEAR_BITMAPS
        assert set(image.bitmaps()) == {"on", "off"}
    assert await bitmaps_of(disk) == {"on": ([(8192, 8192)], True), "off": ([], False)}


async def test_bitmaps_follow_the_size():
    disk = await with_bitmaps()
    async with await open_disk(disk) as image:
        await image.truncate(3 * SIZE)
        await image.pwrite(2 * SIZE, b"x")
    assert await bitmaps_of(disk) == {"on": ([(8192, 8192), (2 * SIZE, 4096)], True), "off": ([], False)}
    assert await leaks_of(disk) == 0


async def test_marks_behind_the_new_end_are_gone():
    disk = await with_bitmaps(cluster_size=4096)
    async with await open_disk(disk) as image:
        await image.pwrite(SIZE - 4096, b"x" * 4096)
        await image.truncate(10240)
        await image.truncate(SIZE)
    assert await bitmaps_of(disk) == {"on": ([(8192, 4096)], True), "off": ([], False)}
    assert await leaks_of(disk) == 0


async def test_a_snapshot_is_not_applied_under_bitmaps():
    disk = await with_bitmaps()
    async with await open_disk(disk) as image:
        await image.snapshot_create("s")
        with pytest.raises(aioblock.NotSupported, match="Device has active dirty bitmaps"):
            await image.snapshot_apply("s")
        await image.pwrite(0, b"x")
    assert await bitmaps_of(disk) == {"on": ([(0, 4096), (8192, 8192)], True), "off": ([], False)}
    assert await leaks_of(disk) == 0


async def test_limits():
    disk = RecordedDisk(await new_image(1 << 40))
    async with await open_disk(disk) as image:
        for name, granularity, message in (
            ("", 512, "Bitmap name cannot be empty"),
            ("n" * 1024, 65536, r"Can't make bitmap 'n+' persistent in '#block\d+': Name length exceeds maximum"),
            ("b", 128, "Granularity must be power of 2 and at least 512"),
        ):
            with pytest.raises(BitmapError, match=message):
                await image.bitmap_add(name, granularity)
        await image.bitmap_add("n" * 1023, 1 << 31)
        await image.truncate(8 << 40)
        with pytest.raises(BitmapError, match="Too much space will be occupied by the bitmap"):
            await image.bitmap_add("b", 1024)
        await image.bitmap_add("b", 2048)
    assert set(await bitmaps_of(disk)) == {"n" * 1023, "b"}


async def test_old_images_and_empty_disks_keep_none():
    async with await open_disk(RecordedDisk(await new_image(SIZE, compat="0.10"))) as image:
        assert not image.stores_bitmaps
        with pytest.raises(BitmapError, match="Cannot store dirty bitmaps in qcow2 v2 files"):
            await image.bitmap_add("b")
        await image.bitmap_add("b", persistent=False)
    async with await open_disk(RecordedDisk(await new_image(0))) as image:
        assert image.stores_bitmaps
        with pytest.raises(BitmapError, match="A disk without any bytes"):
            await image.bitmap_add("b")


async def test_the_directory_is_no_place_for_data():
    """An L2 entry that points to the directory is met by a write."""
    disk = await with_bitmaps()
    content = bytearray(disk.content())
    header = header_of(bytes(content))
    place = ext.parse_bitmaps(ext.find(header.extensions, ext.BITMAPS), header.cluster_size)
    (table,) = struct.unpack_from(">Q", content, header.l1_table_offset)
    table &= 0x00FFFFFFFFFFFE00
    struct.pack_into(">Q", content, table + 8, 1 << 63 | place.directory_offset)
    disk = RecordedDisk(bytes(content))
    image = await open_disk(disk)
    with pytest.raises(OSError, match="overlaps with bitmap directory"):
        await image.pwrite(65536, b"x" * 512)
    await image.close()
    assert await bitmaps_of(disk) == {"on": None, "off": None}


@pytest.mark.slow
@pytest.mark.parametrize("cluster_size", [512, 65536])
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_each_request_fails_once(cluster_size):
    """Whatever fails while bitmaps are taken into use, stored or removed is told, and costs bitmaps at most."""
    first = (await with_bitmaps(cluster_size=cluster_size)).content()
    number = 0
    failed = True
    while failed:
        number += 1
        disk = RecordedDisk(first)
        disk.before = fail_nth(number, OSError(errno.ENOSPC, "No space left on device"), ("write", "flush", "read"))
        failed = False
        try:
            image = await open_disk(disk)
        except (OSError, BlockError):
            failed = True
        else:
            try:
                await image.pwrite(65536, b"x" * 4096)
                await image.bitmap_remove("off")
                await image.bitmap_add("new", 512)
                await image.bitmap_merge("new", "on")
            except (OSError, BlockError):
                failed = True
            try:
                await image.close()
            except (OSError, BlockError):
                failed = True
        disk.before = None
        expected = {"on": ([(8192, 8192), (65536, 4096)], True), "new": ([(8192, 8192), (65536, 4096)], True)}
        found = await bitmaps_of(disk)
        await leaks_of(disk)
        if not failed:
            assert found == expected
            break
        for name, content in found.items():
            allowed = [None, expected.get(name)]
            if name in ("on", "off"):
                allowed.append({"on": ([(8192, 8192)], True), "off": ([], False)}[name])
            assert content in allowed or content == ([(8192, 8192)], True)
        async with await open_disk(disk) as image:
            await image.pwrite(0, b"y" * 512)
            await image.bitmap_add("later")
        assert (await bitmaps_of(disk))["later"] == ([], True)
        await leaks_of(disk)
    assert number > 30


async def test_clusters_for_bitmaps_that_could_not_be_stored_are_given_back():
    disk = await with_bitmaps()
    image = await open_disk(disk)
    await image.pwrite(0, b"y")

    async def before(verb, offset, nbytes):
        if verb == "write" and nbytes == 65536:
            raise OSError(errno.ENOSPC, "No space left on device")

    disk.before = before
    with pytest.raises(OSError, match="No space left on device"):
        await image.reopen(writable=False)
    disk.before = None
    assert image.writable
    await image.pwrite(4096, b"y")
    await image.close()
    assert await bitmaps_of(disk) == {"on": ([(0, 16384)], True), "off": ([], False)}
    assert await leaks_of(disk) == 0


async def test_closing_reports_bitmaps_that_could_not_be_stored():
    disk = await with_bitmaps()
    image = await open_disk(disk)
    await image.pwrite(8192, b"y")
    await image.bitmap_clear("off")
    await image.flush()

    async def before(verb, offset, nbytes):
        if verb == "write":
            raise OSError(errno.ENOSPC, "No space left on device")

    disk.before = before
    with pytest.raises(OSError, match="No space left on device"):
        await image.close()
    disk.before = None
    assert await bitmaps_of(disk) == {"on": None, "off": None}
    assert_sound(disk.content())


async def test_size_for_measure():
    disk = RecordedDisk(await new_image(SIZE))
    async with await open_disk(disk) as image:
        assert bitmaps_size(image.bitmaps().values(), 65536) == 0
        await image.bitmap_add("a")
        await image.bitmap_add("b", 512)
        await image.bitmap_add("memory", persistent=False)
        assert bitmaps_size(image.bitmaps().values(), 65536) == 5 * 65536
        assert bitmaps_size(image.bitmaps().values(), 512) == (1 + 1 + 1 + 1 + 1) * 512
        image.bitmaps()["a"].inconsistent = True
        assert bitmaps_size(image.bitmaps().values(), 65536) == 3 * 65536
