"""Metadata is not written over: which parts, by which options, what is said, and what it costs."""

import random
import struct
import tracemalloc
from array import array
from typing import Any

import pytest

from aioblock.base.errors import OptionError
from aioblock.drivers.formats.qcow2 import overlap
from aioblock.drivers.formats.qcow2.entries import OFLAG_COPIED, table_to_bytes
from aioblock.drivers.formats.qcow2.header import Header, serialise
from aioblock.drivers.formats.qcow2.overlap import ManyClusters
from tests.kit.qcow2_images import header_of, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

C = OFLAG_COPIED
CLUSTER = 65536


async def with_snapshot() -> bytes:
    """An image with one cluster of data, a snapshot of it, and other data since."""
    disk = RecordedDisk(await new_image(8 << 20))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"a" * CLUSTER)
        await image.snapshot_create("kept")
        await image.pwrite(0, b"b" * CLUSTER)
    return bytes(disk.content())


def l2_of(content: bytes, l1_offset: int) -> int:
    (entry,) = struct.unpack_from(">Q", content, l1_offset)
    return int(entry) & 0xFFFFFFFFFFFE00


async def parts_of(content: bytes) -> dict[str, tuple[str, int]]:
    """For each part its name in messages, and its host offset."""
    header = header_of(content)
    (block,) = struct.unpack_from(">Q", content, header.refcount_table_offset)
    (inactive,) = struct.unpack_from(">Q", content, header.snapshots_offset)
    return {
        "active-l1": ("active L1 table", header.l1_table_offset),
        "active-l2": ("active L2 table", l2_of(content, header.l1_table_offset)),
        "refcount-table": ("refcount table", header.refcount_table_offset),
        "refcount-block": ("refcount block", block),
        "snapshot-table": ("snapshot table", header.snapshots_offset),
        "inactive-l1": ("inactive L1 table", inactive),
        "inactive-l2": ("inactive L2 table", l2_of(content, inactive)),
    }


PROTECTED = {
    "none": {"active-l1", "active-l2", "refcount-table", "refcount-block"},
    "constant": {"active-l1", "active-l2", "refcount-table", "refcount-block", "snapshot-table"},
    "cached": {"active-l1", "active-l2", "refcount-table", "refcount-block", "snapshot-table", "inactive-l1"},
    "all": set(overlap.PARTS) - {"main-header", "bitmap-directory"},
}


async def write_over(content: bytes, place: int, options: dict[str, Any]) -> str:
    """Write into a cluster whose L2 entry says that it lies at `place`; what was said, or nothing."""
    data = bytearray(content)
    table = l2_of(content, header_of(content).l1_table_offset)
    struct.pack_into(">Q", data, table, C | place)
    disk = RecordedDisk(bytes(data))
    said = ""
    image = await open_disk(disk, options)
    try:
        await image.pwrite(100, b"x" * 500)
    except OSError as error:
        said = str(error.strerror)
        assert header_of(bytes(disk.content())).corrupt
    finally:
        await image.close()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("template", [None, "none", "constant", "cached", "all"])
async def test_templates(template: str | None) -> None:
    content = await with_snapshot()
    options = {} if template is None else {"overlap-check": template}
    for part, (name, place) in (await parts_of(content)).items():
        said = await write_over(content, place, options)
        if part in PROTECTED[template or "cached"]:
            assert said == f"Preventing invalid write on metadata (overlaps with {name})"
        else:
            assert said == ""


@pytest.mark.slow
async def test_single_parts() -> None:
    content = await with_snapshot()
    parts = await parts_of(content)
    name, place = parts["inactive-l2"]
    assert name in await write_over(content, place, {"overlap-check": {"template": "none", "inactive-l2": True}})
    assert name in await write_over(content, place, {"overlap-check": {"inactive-l2": "on"}})
    assert await write_over(content, place, {"overlap-check": {"template": "all", "inactive-l2": False}}) == ""
    _, place = parts["inactive-l1"]
    assert await write_over(content, place, {"overlap-check": {"inactive-l1": False}}) == ""
    for options in ({"overlap-check": "some"}, {"overlap-check": {"l3": True}}, {"overlap-check": {"active-l1": 7}}):
        with pytest.raises(OptionError):
            await open_disk(RecordedDisk(content), options)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["cached", "all"])
async def test_snapshots_come_and_go(level: str) -> None:
    """What is protected follows them: nothing is taken for metadata that no longer is."""
    disk = RecordedDisk(await new_image(4 << 20, cluster_size=4096))
    async with await open_disk(disk, {"overlap-check": level}) as image:
        for number in range(4):
            await image.pwrite(number * 8192, bytes([number]) * 30000)
            await image.snapshot_create(f"s{number}")
        await image.pwrite(0, b"x" * 200000)
        for number in (1, 0, 3):
            await image.snapshot_delete(f"s{number}")
            await image.pwrite(300000 + 150000 * number, b"y" * 150000)
        await image.snapshot_apply("s2")
        await image.pwrite(0, b"z" * 400000)
        assert (await image.check()).findings == []


def test_many_clusters_are_a_set() -> None:
    chance = random.Random(1)
    first = sorted(chance.sample(range(3000), 500))
    many, model = ManyClusters(array("Q", first)), set(first)
    for _ in range(2000):
        start = chance.randrange(3000)
        some = range(start, start + chance.randrange(4))
        if chance.random() < 0.5:
            many.update(some)
            model.update(some)
        else:
            many.difference_update(some)
            model.difference_update(some)
        if chance.random() < 0.1:
            many.add(start)
            model.add(start)
        assert len(many) == len(model)
    assert [cluster for cluster in range(3010) if cluster in many] == sorted(model)


@pytest.mark.parametrize("repeats", [False, True])
def test_large_tables_are_collected_as_small_ones(monkeypatch: pytest.MonkeyPatch, repeats: bool) -> None:
    chance = random.Random(2)
    l1 = array("Q", [0, C | 5 << 16, 9 << 16 | 1, 5 << 16])
    l1.extend(C | chance.randrange(1, 400 if repeats else 1 << 30) << 16 for _ in range(900))
    found, twice = overlap._tables_of(l1, 16)
    assert isinstance(found, set) and isinstance(twice, set)
    monkeypatch.setattr(overlap, "MANY", 10)
    many, many_twice = overlap._tables_of(l1, 16)
    assert isinstance(many, ManyClusters) and isinstance(many_twice, ManyClusters)
    assert (len(many), len(many_twice)) == (len(found), len(twice))
    assert all(cluster in many for cluster in found)
    assert all(cluster in many_twice for cluster in twice)
    assert len(twice) > (100 if repeats else 0)


@pytest.mark.slow
async def test_a_large_l1_table_takes_little_memory() -> None:
    """32 MiB that name four million L2 tables."""
    entries = 4 << 20
    header = Header(3, 16, entries << 29, entries, 4 * CLUSTER, CLUSTER, 1)
    content = bytearray(serialise(header)).ljust(4 * CLUSTER, b"\0")
    struct.pack_into(">Q", content, CLUSTER, 2 * CLUSTER)
    struct.pack_into(">600H", content, 2 * CLUSTER, *[1] * 600)
    content += table_to_bytes(array("Q", range(C | 1000 << 16, (C | 1000 << 16) + (entries << 16), 1 << 16)))
    disk = RecordedDisk(bytes(content))
    image = await open_disk(disk, {"l2-cache-size": 0})
    driver: Any = image.node.driver
    try:
        tracemalloc.start()
        metadata = driver.image.metadata()
        kept, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(metadata) > entries
        assert 1000 in metadata
        assert 999 not in metadata
        assert kept < 40 << 20
        assert highest < 160 << 20
    finally:
        tracemalloc.stop()
        await image.close()
