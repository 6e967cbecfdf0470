"""Discard: clusters are given back, and read as zeroes. What QEMU makes of the entries: see test_zeroes."""

from pathlib import Path

import pytest

import aioblock
from tests.kit.oracle import assert_clean
from tests.kit.qcow2_images import host_entries, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk


async def test_parts_of_clusters_are_left_alone() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 262_144)
        await image.pdiscard(1, 196_607)
        assert await image.pread(0, 262_144) == b"x" * 65536 + bytes(131_072) + b"x" * 65536


async def test_the_short_last_cluster_is_discarded() -> None:
    disk = RecordedDisk(await new_image(66_048))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"x" * 66_048)
        await image.pdiscard(0, 66_048)
        assert await image.pread(0, 66_048) == bytes(66_048)
    assert set(host_entries(disk.content()).values()) == {(1,)}


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
async def test_a_backing_file_never_shows_through(compat: str) -> None:
    disk, below = RecordedDisk(await new_image(1 << 20, compat=compat)), RecordedDisk(b"b" * (1 << 20))
    async with await open_disk(disk, backing=below) as image:
        await image.pwrite(0, b"x" * 131_072)
        await image.pdiscard(65536, 131_072)
        expected = b"x" * 131_072 + b"b" * 65536 if compat == "0.10" else b"x" * 65536 + bytes(131_072)
        assert await image.pread(0, 196_608) == expected


async def test_nothing_is_written_for_what_is_not_there() -> None:
    disk = RecordedDisk(await new_image(1 << 30))
    async with await open_disk(disk) as image:
        await image.pdiscard(0, 1 << 30)
        disk.records.clear()
    assert [record for record in disk.changes() if record.data] == []


@pytest.mark.oracle
async def test_discarded_room_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(await new_image(4 << 20))
    async with await aioblock.open(path, format="qcow2", writable=True, discard="unmap") as image:
        for _ in range(5):
            await image.pwrite(0, b"x" * (4 << 20))
            await image.pdiscard(0, 4 << 20)
            await image.flush()
    assert path.stat().st_size <= 5 << 20
    assert path.stat().st_blocks * 512 < 1 << 20
    assert_clean(path, "qcow2")


@pytest.mark.parametrize(
    ("option", "by_guest", "by_snapshot", "by_other"),
    [
        (None, True, True, False),
        ("pass-discard-request", False, True, False),
        ("pass-discard-snapshot", True, False, False),
        ("pass-discard-other", True, True, True),
    ],
)
async def test_which_clusters_are_discarded_in_the_file(
    option: str | None, by_guest: bool, by_snapshot: bool, by_other: bool
) -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    options = {} if option is None else {option: option == "pass-discard-other"}

    def discarded() -> bool:
        found = any(record.verb == "discard" for record in disk.records)
        disk.records.clear()
        return found

    async with await open_disk(disk, options) as image:
        await image.pwrite(0, b"x" * 262_144)
        await image.pdiscard(0, 65536)
        await image.flush()
        await image.flush()
        assert discarded() == by_guest
        await image.snapshot_create("one")
        await image.pwrite(65536, b"y" * 65536)
        await image.flush()
        discarded()
        await image.snapshot_delete("one")
        assert discarded() == (by_snapshot or by_other)
        await image.pwrite(131_072, b"z" * 65536, aioblock.REQ_COMPRESSED)
        await image.pwrite(983_040, b"z" * 65536, aioblock.REQ_COMPRESSED)
        await image.flush()
        discarded()
        await image.pwrite(983_040, b"w" * 65536)  # in place of a stream, whose cluster nobody needs any more
        await image.flush()
        assert discarded() == by_other
