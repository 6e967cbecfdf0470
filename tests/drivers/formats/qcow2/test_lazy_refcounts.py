"""Lazy refcounts: the dirty bit stands in for the counts of data until the image is closed."""

from pathlib import Path

import pytest

import aioblock
from tests.kit.oracle import assert_clean, qemu_img, require
from tests.kit.qcow2_images import header_of, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

SIZE = 1 << 20
CLUSTER = 4096


async def lazy_disk() -> RecordedDisk:
    return RecordedDisk(await new_image(SIZE, cluster_size=CLUSTER, lazy_refcounts=True))


async def test_dirty_from_the_first_allocation_to_the_close() -> None:
    disk = await lazy_disk()
    image = await open_disk(disk)
    assert not header_of(disk.content()).dirty
    await image.pwrite(0, b"data")
    await image.flush()
    assert header_of(disk.content()).dirty
    await image.close()
    assert not header_of(disk.content()).dirty


async def test_counts_of_data_wait_and_those_of_tables_do_not(tmp_path: Path) -> None:
    require("qemu-img")
    disk = await lazy_disk()
    image = await open_disk(disk)
    await image.pwrite(0, b"data")
    await image.flush()
    path = tmp_path / "cut.qcow2"
    path.write_bytes(disk.content())
    said = qemu_img("check", path, check=False).stderr
    assert said.count("refcount=0 reference=1") == 1, said
    await image.close()
    path.write_bytes(disk.content())
    assert_clean(path)


async def test_the_dirty_bit_is_stable_before_an_entry_relies_on_it() -> None:
    disk = await lazy_disk()
    image = await open_disk(disk)
    await image.pwrite(0, b"first")
    await image.flush()
    events: list[tuple[str, int]] = []

    async def before(verb: str, offset: int, nbytes: int) -> None:
        events.append((verb, offset))

    disk.before = before
    await image.pwrite(CLUSTER, b"second")
    await image.flush()
    await image.close()
    writes = [offset for verb, offset in events if verb == "write"]
    assert writes[-1] == 72, "clearing the bit comes last"
    place = max(number for number, (verb, offset) in enumerate(events) if (verb, offset) == ("write", 72))
    assert events[place - 1][0] == "flush"


async def test_the_runtime_option_comes_before_the_header() -> None:
    disk = await lazy_disk()
    image = await open_disk(disk, {"lazy-refcounts": False})
    await image.pwrite(0, b"data")
    await image.flush()
    assert not header_of(disk.content()).dirty
    await image.close()
    plain = RecordedDisk(await new_image(SIZE, cluster_size=CLUSTER))
    image = await open_disk(plain, {"lazy-refcounts": True})
    await image.pwrite(0, b"data")
    await image.flush()
    assert header_of(plain.content()).dirty
    await image.close()
    assert not header_of(plain.content()).dirty
    old = RecordedDisk(await new_image(SIZE, cluster_size=CLUSTER, compat="0.10"))
    with pytest.raises(aioblock.OptionError, match="Lazy refcounts require"):
        await open_disk(old, {"lazy-refcounts": True})


async def test_more_counts_than_there_is_room_for(tmp_path: Path) -> None:
    """With clusters of 512 bytes a block counts 256 of them: many blocks become dirty, and are written meanwhile."""
    disk = RecordedDisk(await new_image(SIZE, cluster_size=512, lazy_refcounts=True))
    image = await open_disk(disk, {"refcount-cache-size": 2048})
    model = bytearray(SIZE)
    for number in range(0, 1500, 2):
        await image.pwrite(number * 512, b"%8d" % number)
        model[number * 512 : number * 512 + 8] = b"%8d" % number
    await image.flush()
    assert header_of(disk.content()).dirty
    assert await image.pread(0, SIZE) == model
    await image.close()
    path = tmp_path / "image.qcow2"
    path.write_bytes(disk.content())
    assert_clean(path)


async def test_a_failed_close_leaves_the_bit() -> None:
    disk = await lazy_disk()
    image = await open_disk(disk)
    await image.pwrite(0, b"data")
    await image.flush()

    async def before(verb: str, offset: int, nbytes: int) -> None:
        if verb == "write":
            raise OSError(5, "no")

    disk.before = before
    with pytest.raises(OSError, match="no"):
        await image.close()
    disk.before = None
    assert header_of(disk.content()).dirty
