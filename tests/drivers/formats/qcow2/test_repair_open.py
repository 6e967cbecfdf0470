"""Repairing images that are open, or about to be: at a writable open, and by `check` on a backend."""

import errno
import struct

import pytest

from tests.drivers.formats.qcow2.test_check import poked
from tests.drivers.formats.qcow2.test_repair import (
    KIB,
    SHAPES,
    C,
    damages,
    filled,
    first_l2,
    read_all,
)
from tests.kit.power_cut import assert_sound
from tests.kit.qcow2_images import header_of, open_disk
from tests.kit.recorded_disk import RecordedDisk, fail_nth


async def test_a_dirty_image_is_repaired_when_it_is_opened_for_writing(caplog: pytest.LogCaptureFixture) -> None:
    sound, content = await filled(SHAPES[1])
    data = damages(sound)["dirty"]
    assert await read_all(data) == content
    disk = RecordedDisk(data)
    async with await open_disk(disk) as image:
        assert header_of(bytes(disk.content())).incompatible_features & 1 == 0
        assert "Rebuilding refcount structure" in caplog.messages
        await image.pwrite(30 * KIB, b"n" * 50 * KIB)
    assert_sound(bytes(disk.content()))
    assert await read_all(bytes(disk.content())) == content[: 30 * KIB] + b"n" * 50 * KIB + content[80 * KIB :]


async def test_a_dirty_image_that_cannot_be_repaired_is_not_opened() -> None:
    sound, _ = await filled(SHAPES[1])
    disk = RecordedDisk(damages(sound)["dirty"])
    disk.before = fail_nth(1, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="Could not repair dirty image: No space left on device"):
        await open_disk(disk)
    assert header_of(bytes(disk.content())).incompatible_features & 1


async def test_a_dirty_image_is_repaired_when_it_is_reopened_for_writing() -> None:
    sound, content = await filled(SHAPES[1])
    disk = RecordedDisk(damages(sound)["dirty"])
    async with await open_disk(disk, writable=False) as image:
        assert bytes(await image.pread(0, image.length)) == content
        assert disk.changes() == []
        await image.reopen(writable=True)
        assert header_of(bytes(disk.content())).incompatible_features & 1 == 0
        await image.pwrite(0, b"n" * 100)
        assert bytes(await image.pread(0, image.length)) == b"n" * 100 + content[100:]
    assert_sound(bytes(disk.content()))


async def test_an_open_image_is_repaired_and_goes_on() -> None:
    sound, content = await filled(SHAPES[1])
    disk = RecordedDisk(damages(sound)["leaks"])
    progress: list[tuple[int, int]] = []
    async with await open_disk(disk) as image:
        await image.pwrite(50 * KIB, b"w" * 4 * KIB)
        assert (await image.check()).leaks == 2
        result = await image.check(fix_leaks=True, fix_errors=True, progress=lambda *now: progress.append(now))
        assert (result.leaks, result.leaks_fixed) == (0, 2)
        await image.pwrite(60 * KIB, b"v" * 30 * KIB)
        assert (await image.check(fix_leaks=True, fix_errors=True)).findings == []
        await image.pwrite(0, b"u" * 100)
        after = bytes(await image.pread(0, image.length))
    assert after[50 * KIB : 54 * KIB] == b"w" * 4 * KIB
    assert after[60 * KIB : 90 * KIB] == b"v" * 30 * KIB
    assert after[90 * KIB :] == content[90 * KIB :]
    assert progress[-1][0] == progress[-1][1] > 0
    assert all(0 <= done <= total for done, total in progress)
    assert_sound(bytes(disk.content()))
    assert await read_all(bytes(disk.content())) == after


async def test_a_corruption_met_while_open_is_repaired_and_the_image_written_again() -> None:
    sound, _ = await filled(SHAPES[1])
    header = header_of(sound)
    (l2_entry,) = struct.unpack_from(">Q", sound, first_l2(sound))
    disk = RecordedDisk(poked(sound, (first_l2(sound), "Q", C | header.refcount_table_offset)))
    async with await open_disk(disk) as image:
        with pytest.raises(OSError, match="overlaps with refcount table"):
            await image.pwrite(0, b"x" * 4096)
        assert header_of(bytes(disk.content())).corrupt
        with pytest.raises(OSError, match="corrupt"):
            await image.pwrite(200 * KIB, b"x" * 4096)
        result = await image.check(fix_leaks=True, fix_errors=True)
        assert result.corruptions == 0
        assert not header_of(bytes(disk.content())).corrupt
        await image.pwrite(0, b"x" * 4096)
        assert bytes(await image.pread(0, 4096)) == b"x" * 4096
    assert_sound(bytes(disk.content()))
    assert l2_entry


async def test_a_read_only_image_is_not_repaired() -> None:
    sound, _ = await filled(SHAPES[1])
    async with await open_disk(RecordedDisk(sound), writable=False) as image:
        with pytest.raises(OSError) as caught:
            await image.check(fix_leaks=True)
    assert caught.value.errno == errno.EROFS
