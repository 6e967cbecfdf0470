"""The order of writes of the snapshot verbs: a power cut leaves the image before the header's switch or behind it."""

import random
import struct
from collections.abc import Awaitable, Callable

import pytest

from aioblock.graph.backend import BlockBackend
from tests.kit.power_cut import after_power_cut
from tests.kit.qcow2_images import header_of, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

SIZE = 200 * 512
COPIED = 1 << 63
Verb = Callable[[BlockBackend], Awaitable[object]]
VERBS: dict[str, tuple[Verb, int]] = {
    "create": (lambda image: image.snapshot_create("two"), 60),
    "apply": (lambda image: image.snapshot_apply("one"), 24),
    "delete": (lambda image: image.snapshot_delete("one"), 60),
}


async def prepared() -> tuple[RecordedDisk, bytes, bytes]:
    """An image with one snapshot, what that holds, and what the disk holds: some of it the same, some not."""
    disk = RecordedDisk(await new_image(SIZE, cluster_size=512))
    image = await open_disk(disk)
    await image.pwrite(0, b"then" * 10_000)
    await image.snapshot_create("one")
    then = bytes(await image.pread(0, SIZE))
    await image.pwrite(512 * 3 + 100, b"now!" * 2000)
    await image.pwrite_zeroes(512 * 40, 512 * 20)
    now = bytes(await image.pread(0, SIZE))
    await image.close()
    return RecordedDisk(disk.content()), then, now


@pytest.mark.parametrize("verb", VERBS)
async def test_everything_before_the_switch_is_stable_and_the_switch_before_everything_behind(verb: str) -> None:
    disk, _, _ = await prepared()
    image = await open_disk(disk)
    disk.records.clear()
    action, field = VERBS[verb]
    await action(image)
    records = disk.changes()
    (switch,) = (number for number, record in enumerate(records) if record.verb == "write" and record.offset == field)
    assert len(records[switch].data) == {60: 12, 24: 24}[field]
    kinds = ["flush" if record.verb == "flush" else "change" for record in records]
    assert kinds[switch - 1] == kinds[switch + 1] == kinds[-1] == "flush"
    assert "change" in kinds[switch + 1 :]
    assert "change" in kinds[:switch] or verb == "delete"  # of the only one: there is no new table
    await image.close()


@pytest.mark.parametrize("verb", ["apply", "delete"])
async def test_copied_comes_back_last_and_alone(verb: str) -> None:
    disk, _, _ = await prepared()
    image = await open_disk(disk)
    await VERBS[verb][0](image)
    records = disk.changes()
    flushes = [number for number, record in enumerate(records) if record.verb == "flush"]
    (switch,) = (number for number, record in enumerate(records) if record.offset == VERBS[verb][1] and record.data)
    header = header_of(disk.content())
    tables = struct.unpack_from(f">{header.l1_size}Q", disk.content(), header.l1_table_offset)
    assert all(entry & COPIED for entry in tables if entry) is (verb == "delete")
    flagged = [
        number
        for number, record in enumerate(records)
        if record.verb == "write" and record.offset in {entry & ~COPIED for entry in tables if entry & COPIED}
    ]
    assert all(sum(switch < flush < number for flush in flushes) >= 2 for number in flagged)
    assert bool(flagged) is (verb == "delete")
    await image.close()


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("verb", VERBS)
async def test_power_cut_and_then_writes_without_a_repair(verb: str) -> None:
    disk, then, now = await prepared()
    image = await open_disk(disk)
    await VERBS[verb][0](image)
    await image.close()
    chance = random.Random(verb)
    for point in range(len(disk.records) + 1):
        cut = RecordedDisk(after_power_cut(disk, point, chance))
        image = await open_disk(cut)
        found = bytes(await image.pread(0, SIZE))
        assert found in ((now, then) if verb == "apply" else (now,))
        saved = {each.name: each.id for each in image.snapshots()}
        assert set(saved) <= {"one", "two"} and ("one" in saved or verb == "delete")
        for low in range(0, SIZE - 700, 5120):
            await image.pwrite(low, b"later" * 140)
        await image.flush()
        for name, number in saved.items():
            old = await open_disk(cut, {"snapshot": number}, writable=False)
            assert bytes(await old.pread(0, SIZE)) == {"one": then, "two": now}[name], f"cut before record {point}"
            await old.close()
        await image.close()
