"""The oracle of the power-cut simulator sees damage, and agrees with the package and with QEMU on what is sound."""

import asyncio
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.faults.powercut.contents import GARBLED, bytes_of, tags_of, tags_of_bytes
from tests.faults.powercut.explore import start_of
from tests.faults.powercut.fsck import Damage, Image
from tests.faults.powercut.layouts import LAYOUTS
from tests.faults.powercut.model import Expectation, Model, Op
from tests.faults.powercut.recorder import Timeline
from tests.faults.powercut.states import Effort, states
from tests.kit.oracle import qemu_img, require

COPIED = 1 << 63


def image_of(name: str) -> bytearray:
    return bytearray(start_of(name).contents[0])


def first_l2(content: bytearray) -> int:
    (l1,) = struct.unpack_from(">Q", content, 40)
    (entry,) = struct.unpack_from(">Q", content, l1)
    return int(entry) & (1 << 56) - 512


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_what_it_reads_is_what_was_written(name: str) -> None:
    start = start_of(name)
    image = Image(bytearray(start.contents[0]))
    image.check()
    data_file = bytearray(start.contents[1]) if len(start.contents) > 1 else None
    tags = tags_of(image, image.active, LAYOUTS[name].below, data_file)
    assert (tags == start.tags)[: LAYOUTS[name].sectors].all()

    async def read() -> bytes:
        timeline = Timeline("read")
        async with await LAYOUTS[name].open([timeline.file(each) for each in start.contents], writable=False) as disk:
            return bytes(await disk.pread(0, disk.length))

    assert (tags_of_bytes(asyncio.run(read())) == tags[: start.size // 512]).all()


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["c512", "c4k", "c64k", "ext", "packed", "v2", "rc1", "edge"])
def test_qemu_agrees_that_the_beginning_is_sound(name: str, tmp_path: Path) -> None:
    require("qemu-img")
    path = tmp_path / "image.qcow2"
    path.write_bytes(start_of(name).contents[0])
    qemu_img("check", "-f", "qcow2", path)


def test_a_count_too_low_is_damage() -> None:
    content = image_of("c4k")
    (reftable,) = struct.unpack_from(">Q", content, 48)
    (block,) = struct.unpack_from(">Q", content, reftable)
    content[block + 2 * 5 : block + 2 * 6] = b"\0\0"
    with pytest.raises(Damage, match=r"host cluster 0x5 .* has 1 references"):
        Image(content).check()


def test_a_count_too_low_is_none_while_the_image_is_dirty() -> None:
    content = image_of("lazy4k")
    (reftable,) = struct.unpack_from(">Q", content, 48)
    (block,) = struct.unpack_from(">Q", content, reftable)
    content[block + 2 * 5 : block + 2 * 6] = b"\0\0"
    content[79] |= 1
    Image(content).check()


def test_one_host_cluster_for_two_guest_clusters_is_damage() -> None:
    content = image_of("c4k")
    l2 = first_l2(content)
    content[l2 + 16 : l2 + 24] = content[l2 + 8 : l2 + 16]
    with pytest.raises(Damage, match="is data twice"):
        Image(content).check()


def test_data_over_metadata_is_damage() -> None:
    content = image_of("c4k")
    struct.pack_into(">Q", content, first_l2(content) + 8, first_l2(content) | COPIED)
    with pytest.raises(Damage, match="is L2 table and data"):
        Image(content).check()


def test_copied_with_two_references_is_damage() -> None:
    async def snapshot() -> bytearray:
        timeline = Timeline("snapshot")
        files = [timeline.file(start_of("c4k").contents[0])]
        async with await LAYOUTS["c4k"].open(files) as disk:
            await disk.snapshot_create("one")
        return bytearray(files[0].content())

    content = asyncio.run(snapshot())
    Image(content).check()
    l2 = first_l2(content)
    content[l2 + 8] |= 0x80
    with pytest.raises(Damage, match="is COPIED, 2 references"):
        Image(content).check()


def test_what_a_sector_may_hold() -> None:
    def tags(serial: int, count: int = 4) -> np.ndarray:
        return (np.arange(count) << 24) + serial

    model = Model(tags(1), 2048)
    model.ops = [
        Op(0, 0, tags(2, 2), end=1),
        Op(2, flushes=True, end=3),
        Op(4, 0, tags(3, 1), end=5),
    ]

    def allowed(point: int, *found: int) -> bool:
        expected, _, _ = model.at(point)
        values = np.array([(sector << 24) + serial for sector, serial in enumerate(found)])
        try:
            expected.check(values, 2048, "the disk")
        except Damage:
            return False
        return True

    assert allowed(0, 1, 1, 1, 1) and allowed(1, 2, 1, 1, 1) and allowed(2, 1, 2, 1, 1)
    assert allowed(3, 2, 2, 1, 1) and not allowed(3, 1, 2, 1, 1)
    assert allowed(9, 3, 2, 1, 1) and allowed(9, 2, 2, 1, 1) and not allowed(9, 1, 2, 1, 1)
    assert not allowed(9, 2, 2, 2, 1)


@pytest.mark.parametrize(
    ("found", "kind"), [(GARBLED, "neither"), ((7 << 24) + 1, "foreign"), (0, "lost"), ((1 << 24) + 9, "lost")]
)
def test_what_is_wrong_has_a_name(found: int, kind: str) -> None:
    expected = Expectation((np.arange(4) << 24) + 1, [], {2048})
    values = expected.exact.copy()
    values[1] = found
    with pytest.raises(Damage) as caught:
        expected.check(values, 2048, "the disk")
    assert caught.value.kind == kind


def test_all_subsets_of_the_open_writes_come_and_no_state_twice() -> None:
    async def play() -> Timeline:
        timeline = Timeline("subsets")
        file = timeline.file(bytes(4096))
        async with await _raw(file) as disk:
            await disk.pwrite(0, b"a" * 512)
            await disk.flush()
            for sector in range(1, 5):
                await disk.pwrite(512 * sector, b"b" * 512)
        return timeline

    found = [bytes(state.contents[0]) for state in states(asyncio.run(play()), "seed", Effort())]
    assert len(found) == len(set(found)) == 2 + (2**4 - 1)
    assert all(each[:512] == b"a" * 512 for each in found[2:])


def test_a_torn_write_and_a_lost_length() -> None:
    async def play() -> Timeline:
        timeline = Timeline("torn")
        async with await _raw(timeline.file(bytes(512))) as disk:
            await disk.truncate(4096)
            await disk.pwrite(0, b"".join(bytes([number + 1]) * 512 for number in range(8)))
        return timeline

    found = [bytes(state.contents[0]) for state in states(asyncio.run(play()), "seed", Effort(torn=20))]
    assert {len(each) for each in found} >= {512, 4096}
    seen = {tuple(each.ljust(4096, b"\0")[at] for at in range(0, 4096, 512)) for each in found}
    assert (0,) * 8 in seen and tuple(range(1, 9)) in seen
    assert any(0 in each[:-1] and each[-1] == 8 for each in seen)
    assert all(value in (0, number + 1) for each in seen for number, value in enumerate(each))


async def _raw(file):
    import aioblock

    return await aioblock.open({"driver": "raw", "file": file.options()}, writable=True, resize=True)


def test_tags_and_bytes_are_the_same_thing() -> None:
    tags = np.array([random.Random(1).getrandbits(40) for _ in range(9)])
    assert (tags_of_bytes(bytes_of(tags)) == tags).all()
    data = bytearray(bytes_of(tags))
    data[512 + 300] ^= 1
    assert tags_of_bytes(data)[1] == GARBLED
