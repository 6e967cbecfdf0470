"""The order of writes: whenever the power fails, a sound image is left, with old or new data in every sector."""

import asyncio
import random
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from aioblock import REQ_COMPRESSED, REQ_MAY_UNMAP
from aioblock.graph.backend import BlockBackend
from tests.kit.power_cut import after_power_cut, assert_sound
from tests.kit.qcow2_images import header_of, host_entries, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

SECTOR = 512
OFFSET = 0x00FF_FFFF_FFFF_FE00


@dataclass
class Op:
    """What the guest did to one sector; begin and end are numbers of disk records."""

    begin: int
    value: bytes
    end: int = 1 << 62
    keeps_old: bool = False
    """It may leave the sector as it was (a discard)."""


class Guest:
    """Does sector-aligned operations, and knows what each sector may hold after a power cut at any record."""

    def __init__(self, disk: RecordedDisk, image: BlockBackend, size: int, cluster: int, seed: int) -> None:
        self.disk, self.image, self.size, self.cluster = disk, image, size, cluster
        self.longest = size // 15 // SECTOR
        self.chance = random.Random(seed)
        self.tag = 0
        self.sectors: list[list[Op]] = [[Op(-1, bytes(SECTOR), -1)] for _ in range(size // SECTOR)]
        self.flushes: list[tuple[int, int]] = [(0, 0)]

    async def some(self, count: int, kinds: tuple[str, ...]) -> None:
        """Some operations at a time, on ranges that do not overlap; sometimes a flush among them."""
        cuts = sorted(self.chance.sample(range(self.size // SECTOR + 1), count + 1))
        jobs = [
            self.op(self.chance.choice(kinds), low * SECTOR, min(high, low + self.longest) * SECTOR)
            for low, high in pairwise(cuts)
        ]
        if self.chance.random() < 0.5:
            jobs.append(self.flush())
        await asyncio.gather(*jobs)

    async def flush(self) -> None:
        begin = len(self.disk.records)
        await self.image.flush()
        self.flushes.append((begin, len(self.disk.records)))

    async def op(self, kind: str, low: int, high: int) -> None:
        if kind in ("discard", "compress"):
            low, high = -(-low // self.cluster) * self.cluster, high // self.cluster * self.cluster
        if low >= high:
            return
        begin = len(self.disk.records)
        values = []
        for number in range(low // SECTOR, high // SECTOR):
            self.tag += 1
            tagged = struct.pack(">QQ", self.tag, number) * (SECTOR // 16)
            values.append(bytes(SECTOR) if kind in ("zero", "unmap", "discard") else tagged)
        ops = [Op(begin, value, keeps_old=kind == "discard") for value in values]
        for number, op in enumerate(ops, low // SECTOR):
            self.sectors[number].append(op)
        if kind == "discard":
            await self.image.pdiscard(low, high - low)
        elif kind in ("zero", "unmap"):
            await self.image.pwrite_zeroes(low, high - low, REQ_MAY_UNMAP if kind == "unmap" else 0)
        else:
            await self.image.pwrite(low, b"".join(values), REQ_COMPRESSED if kind == "compress" else 0)
        for op in ops:
            op.end = len(self.disk.records)

    def allowed(self, number: int, point: int) -> set[bytes]:
        """What sector `number` may hold when the power fails before record `point`."""
        durable = max(begin for begin, end in self.flushes if end <= point)
        history = self.sectors[number]
        last = max(place for place, op in enumerate(history) if op.end <= durable)
        while history[last].keeps_old and last:
            last -= 1
        return {op.value for op in history[last:] if op.begin < point}


SHAPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "writes": ({"cluster_size": 1024}, ("write",)),
    "all": ({"cluster_size": 1024}, ("write", "write", "zero", "unmap", "discard")),
    "compressed": ({"cluster_size": 2048, "refcount_bits": 8}, ("write", "compress", "compress", "unmap")),
    "wide": ({"cluster_size": 512, "refcount_bits": 64}, ("write", "write", "unmap", "discard")),
    "narrow": ({"cluster_size": 512, "refcount_bits": 1}, ("write", "write", "unmap", "discard", "compress")),
    "growing": ({"cluster_size": 512, "refcount_bits": 64}, ("write",)),
    "v2": ({"cluster_size": 512, "compat": "0.10"}, ("write", "write", "unmap", "discard", "compress")),
    "extended": ({"cluster_size": 16384, "extended_l2": True}, ("write", "write", "zero", "unmap", "discard")),
}


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])  # nothing here depends on the loop, and it is long enough once
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES)
async def test_power_cut(shape: str, seed: int) -> None:
    options, kinds = SHAPES[shape]
    cluster = options["cluster_size"]
    size = {"growing": 5000, "extended": 40}.get(shape, 400) * cluster
    disk = RecordedDisk(await new_image(size, **options))
    chance = random.Random(seed)

    async def jitter(verb: str, offset: int, nbytes: int) -> None:
        for _ in range(chance.randrange(2)):
            await asyncio.sleep(0)

    disk.before = jitter
    image = await open_disk(disk, {"l2-cache-size": 512})
    guest = Guest(disk, image, size, cluster, seed)
    for _ in range(12):
        await guest.some(6, kinds)
    await image.close()
    guest.flushes.append((len(disk.records), len(disk.records)))

    assert shape != "growing" or header_of(disk.content()).refcount_table_clusters > 1
    # Any moment, and the moments right behind the writes that switch something: entries, and above all the header.
    points = chance.sample(range(len(disk.records) + 1), min(30, len(disk.records)))
    small = [number for number, record in enumerate(disk.records, 1) if 0 < len(record.data) <= 64]
    points += 2 * chance.sample(small, min(10, len(small)))
    points += 6 * [number for number in small if disk.records[number - 1].offset < SECTOR]
    for point in [*points, len(disk.records)]:
        content = after_power_cut(disk, point, chance)
        assert_sound(content)
        found = await open_disk(RecordedDisk(content), writable=False)
        data = bytes(await found.pread(0, size))
        await found.close()
        for number in range(size // SECTOR):
            sector = data[number * SECTOR : (number + 1) * SECTOR]
            assert sector in guest.allowed(number, point), f"sector {number} when the power fails at record {point}"


def flushes_between(disk: RecordedDisk, first: int, last: int) -> int:
    """How many flushes began after record `first` and were done before record `last`."""
    return sum(1 for record in disk.records[first + 1 : last] if record.verb == "flush" and record.offset > first)


def the_write_over(disk: RecordedDisk, offset: int, nbytes: int = 1) -> int:
    """The number of the one write record that touches a range of the file."""
    found = [
        number
        for number, record in enumerate(disk.records)
        if record.verb == "write" and record.offset < offset + nbytes and record.end > offset
    ]
    assert len(found) == 1
    return found[0]


async def test_data_and_refcounts_then_l2_then_l1() -> None:
    disk = RecordedDisk(await new_image(1 << 20, cluster_size=65536))
    image = await open_disk(disk)
    disk.records.clear()
    await image.pwrite(65536, b"x" * 65536)
    assert [record.verb for record in disk.changes()] == ["write"]  # nothing but the data goes to the file
    await image.flush()
    content = disk.content()
    header = header_of(content)
    (host,) = (entry[0] & OFFSET for entry in host_entries(content).values())
    (l1,) = struct.unpack_from(">Q", content, header.l1_table_offset)
    (block,) = struct.unpack_from(">Q", content, header.refcount_table_offset)
    data = the_write_over(disk, host)
    counts = the_write_over(disk, block, 65536)
    l2 = the_write_over(disk, (l1 & OFFSET) + 8, 8)
    top = the_write_over(disk, header.l1_table_offset, 8)
    assert flushes_between(disk, data, l2) >= 1
    assert flushes_between(disk, counts, l2) >= 1
    assert flushes_between(disk, l2, top) >= 1
    assert flushes_between(disk, top, len(disk.records)) == 1
    await image.close()


async def test_a_second_write_in_place_needs_no_metadata() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    image = await open_disk(disk)
    await image.pwrite(0, b"x" * 65536)
    await image.flush()
    disk.records.clear()
    await image.pwrite(4096, b"y" * 4096)
    await image.flush()
    assert [(record.verb, len(record.data)) for record in disk.changes()] == [("write", 4096), ("flush", 0)]
    await image.close()


async def test_a_freed_cluster_is_not_used_before_the_change_is_stable() -> None:
    disk = RecordedDisk(await new_image(8 << 20))
    image = await open_disk(disk)
    await image.pwrite(0, b"x" * (4 << 20))  # so many clusters that one which is free soon is not worth a flush
    await image.flush()
    before = host_entries(disk.content())[0][0] & OFFSET
    await image.pdiscard(0, 65536)
    disk.records.clear()
    await image.pwrite(5 << 20, b"y" * 65536)
    assert disk.changes()[0].offset != before
    await image.flush()
    disk.records.clear()
    await image.pwrite(6 << 20, b"z" * 65536)
    assert disk.changes()[0].offset == before
    await image.close()


async def test_a_freed_cluster_is_discarded_in_the_file_when_the_change_is_stable() -> None:
    disk = RecordedDisk(await new_image(1 << 20))
    image = await open_disk(disk, {"pass-discard-request": True})
    await image.pwrite(0, b"x" * 65536)
    await image.flush()
    disk.records.clear()
    await image.pdiscard(0, 65536)
    assert disk.changes() == []
    await image.flush()
    verbs = [record.verb for record in disk.changes()]
    assert verbs.count("discard") == 1
    assert verbs.index("discard") > verbs.index("flush") > verbs.index("write")
    await image.close()


async def test_autoclear_bits_are_cleared_before_anything_else_and_not_when_read_only() -> None:
    content = bytearray(await new_image(1 << 20))
    content[88:96] = struct.pack(">Q", 1 << 0 | 1 << 17)
    disk = RecordedDisk(bytes(content))
    image = await open_disk(disk, writable=False)
    await image.close()
    assert disk.changes() == []
    image = await open_disk(disk)
    assert [record.verb for record in disk.changes()] == ["write", "flush"]
    assert header_of(disk.content()).autoclear_features == 0
    await image.close()
