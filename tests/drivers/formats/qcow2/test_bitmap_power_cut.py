"""Bitmaps and power cuts: what is found afterwards is exact, or is said to be inconsistent, or is not there."""

import random

import pytest

from aioblock.drivers.formats.qcow2.extensions import BITMAPS, Extension, find
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_BITMAPS
from aioblock.drivers.formats.qcow2.header import serialise
from tests.kit.power_cut import after_power_cut, assert_sound
from tests.kit.qcow2_images import header_of, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

SIZE = 1 << 20


SHAPES = {"small": (512, 0), "head across": (65536, 0), "value across": (4096, 368)}
"""The size of clusters; and of an extension, so that the one of the bitmaps lies across the end of the first sector."""


def filled(content, nbytes):
    """An image with one more extension of so many bytes."""
    if not nbytes:
        return content
    header = header_of(content)
    header.extensions.append(Extension(0x12345678, bytes(nbytes)))
    first = serialise(header)
    return first + content[len(first) :]


def content_of(disk):
    """Each bitmap that may be trusted: its runs, and whether it records."""
    return {
        name: (tuple(bitmap.ranges()), bitmap.enabled)
        for name, bitmap in disk.bitmaps().items()
        if not bitmap.inconsistent
    }


class Sessions:
    """Opens the image again and again, and knows what may be found after a power cut at any record."""

    def __init__(self, disk, chance):
        self.disk, self.chance = disk, chance
        self.states = [(0, {})]
        """When the close that stored this began; and the bitmaps."""
        self.first_writes = []
        """When the first guest write after that came."""

    async def run(self, count):
        for _ in range(count):
            image = await open_disk(self.disk)
            self.first_writes.append(len(self.disk.records))
            for _ in range(self.chance.randrange(8)):
                await self.step(image)
            self.states.append((len(self.disk.records), content_of(image)))
            if self.chance.random() < 0.3:
                await image.reopen(writable=False)
            await image.close()

    async def step(self, image):
        chance = self.chance
        kind = chance.choice(("write", "write", "zero", "flush", "add", "add", "remove", "switch", "clear", "merge"))
        offset = chance.randrange(SIZE // 512) * 512
        names = list(image.bitmaps())
        if kind == "write":
            await image.pwrite(offset, b"x" * min(SIZE - offset, 512 * chance.randrange(1, 100)))
        elif kind == "zero":
            await image.pwrite_zeroes(offset, min(SIZE - offset, 65536))
        elif kind == "flush":
            await image.flush()
        elif kind == "add" and len(names) < 4:
            await image.bitmap_add(f"b{len(self.disk.records)}.{chance.random()}", 512 << chance.randrange(4))
        elif not names:
            return
        elif kind == "remove" and chance.random() < 0.7:
            await image.bitmap_remove(chance.choice(names))
        elif kind == "switch":
            name = chance.choice(names)
            await (image.bitmap_disable(name) if image.bitmaps()[name].enabled else image.bitmap_enable(name))
        elif kind == "clear":
            await image.bitmap_clear(chance.choice(names))
        elif kind == "merge":
            await image.bitmap_merge(chance.choice(names), chance.choice(names))

    def allowed(self, point):
        """What a bitmap that says it is consistent may be like when the power fails before that record."""
        found = {}
        for number, (begin, bitmaps) in enumerate(self.states):
            outdated = number < len(self.first_writes) and self.first_writes[number] < point
            if begin <= point and not outdated:
                for name, content in bitmaps.items():
                    found.setdefault(name, []).append(content)
        return found


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES)
async def test_power_cut(shape, seed):
    chance = random.Random(seed)
    cluster_size, fill = SHAPES[shape]
    disk = RecordedDisk(filled(await new_image(SIZE, cluster_size=cluster_size), fill))
    sessions = Sessions(disk, chance)
    await sessions.run(9)
    records = disk.records
    small = [number for number, record in enumerate(records, 1) if record.verb == "write" and record.offset < 1024]
    kept = 0
    for point in [*chance.sample(range(len(records) + 1), min(30, len(records))), *small, len(records)]:
        content = after_power_cut(disk, point, chance)
        assert_sound(content)
        header = header_of(content)
        assert find(header.extensions, BITMAPS) or not header.autoclear_features & AUTOCLEAR_BITMAPS
        again = RecordedDisk(content)
        image = await open_disk(again, writable=False)
        result = await image.check()
        assert (result.corruptions, result.check_errors) == (0, 0), result.findings
        allowed = sessions.allowed(point)
        for name, bitmap in image.bitmaps().items():
            if not bitmap.inconsistent:
                await image.bitmap(name)
        for name, found in content_of(image).items():
            assert found in allowed.get(name, ()), f"bitmap {name} when the power fails at record {point}"
            kept += 1
        await image.close()
        if chance.random() < 0.3:
            await go_on(again, chance)
    assert kept > 10
    assert content_of(await closed(disk)) == sessions.states[-1][1]


async def closed(disk):
    image = await open_disk(disk, writable=False)
    for name, bitmap in image.bitmaps().items():
        if not bitmap.inconsistent:
            await image.bitmap(name)
    await image.close()
    return image


async def go_on(disk, chance):
    """The image that a power cut left serves as any other."""
    image = await open_disk(disk)
    before = content_of(image)
    await image.bitmap_add("new", 4096)
    offset = chance.randrange(SIZE // 65536) * 65536
    await image.pwrite(offset, b"y" * 65536)
    for name, bitmap in image.bitmaps().items():
        if bitmap.inconsistent:
            await image.bitmap_remove(name)
    await image.close()
    image = await closed(disk)
    assert set(image.bitmaps()) == {*before, "new"}
    assert content_of(image)["new"] == (((offset, 65536),), True)
    header = header_of(disk.content())
    assert header.autoclear_features & AUTOCLEAR_BITMAPS
    assert_sound(disk.content())
    check = await open_disk(disk, writable=False)
    result = await check.check()
    await check.close()
    assert (result.corruptions, result.check_errors) == (0, 0), result.findings
