"""Repairing: the lines and numbers of qemu-img check -r, the same images afterwards, and a cut at every write of it."""

import errno
import json
import random
import struct
from collections import Counter
from typing import Any

import pytest

import aioblock
from aioblock.core.images import CheckResult
from aioblock.drivers.formats.qcow2.check import check_image
from aioblock.drivers.formats.qcow2.entries import OFLAG_COPIED
from aioblock.drivers.formats.qcow2.header import parse_header
from tests.drivers.formats.qcow2.test_check import BITMAPS, DAMAGE, TABLE, images, poked
from tests.kit.memory_io import MemoryIO
from tests.kit.oracle import qemu_img
from tests.kit.power_cut import after_power_cut, assert_sound
from tests.kit.qcow2_images import header_of, host_entries, new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk, fail_nth

__all__ = ["images"]

C = OFLAG_COPIED
KIB = 1024


class ShortFile(MemoryIO):
    """It cannot grow beyond 1 GiB."""

    async def truncate(self, length: int, **kwargs: Any) -> None:
        if length > 1 << 30:
            raise OSError(errno.EFBIG, "File too large")
        await super().truncate(length, **kwargs)


async def repaired(data: bytes, *, leaks: bool = True, errors: bool = True) -> tuple[CheckResult, bytes]:
    file = ShortFile(data)
    header = parse_header(bytes(data[: 2 << 20]), "x", len(data), for_check=True)
    result = await check_image(file, header, fix_leaks=leaks, fix_errors=errors)
    assert header == header_of_any(file.data)
    return result, bytes(file.data)


def header_of_any(data: bytes | bytearray) -> Any:
    return parse_header(bytes(data[: 2 << 20]), "x", len(data), for_check=True)


async def check(data: bytes) -> CheckResult:
    return await check_image(MemoryIO(data), header_of_any(data))


def lines_of(result: CheckResult) -> list[str]:
    return [line for finding in result.findings for line in finding.message.split("\n")]


# -- as QEMU ---------------------------------------------------------------------------------------------------------

# Where QEMU gives up, or keeps writing into an image that it has just found to be corrupt.
UNLIKE_QEMU = {
    "l1 to header",
    "l1 to l1",
    "l1 is the refcount table",
    "block misaligned",
    "block reserved",
    "second block far",
    "table long",
    "snapshots in the table",
    "snapshots behind the file",
}
MORE_DAMAGE = [
    ("second block near", (TABLE + 8, "Q", 1 << 24)),
    ("second block ends behind all", (TABLE + 8, "Q", 0x7FFF_FFFF_FFFF_0000)),
    ("second block starts behind all", (TABLE + 8, "Q", 0xFFFF_FFFF_FFFF_0000)),
]
CASES = [case for case in DAMAGE + MORE_DAMAGE if case[0] not in UNLIKE_QEMU]


async def assert_as_qemu(data: bytes, path: Any, level: str) -> None:
    path.write_bytes(data)
    done = qemu_img("check", "-f", "qcow2", "--output=json", "-r", level, path, check=False)
    told = [line for line in done.stderr.split("\n") if line and not line.startswith("qemu-img:")]
    result, after = await repaired(data, errors=level == "all")
    lines = lines_of(result)
    if result.leaks_fixed or result.corruptions_fixed:
        again = await check(after)
        lines += lines_of(again)
        # What a repair says is left is what a check finds then.
        assert (again.corruptions > 0) == (result.corruptions > 0)
        assert again.leaks == result.leaks
    else:
        again = result
    assert lines == told
    if done.stdout:
        numbers = json.loads(done.stdout)
        assert result.leaks_fixed == numbers.get("leaks-fixed", 0)
        assert result.corruptions_fixed == numbers.get("corruptions-fixed", 0)
        assert again.corruptions == numbers.get("corruptions", 0)
        assert again.image_end_offset == numbers["image-end-offset"]
    else:
        assert result.check_errors  # qemu-img has failed
    path.write_bytes(after)
    left = qemu_img("check", "-f", "qcow2", path, check=False)
    assert left.returncode == (1 if again.check_errors else 2 if again.corruptions else 3 if again.leaks else 0) or (
        again.check_errors
    )


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("level", ["leaks", "all"])
@pytest.mark.parametrize("poke", [poke for _, poke in CASES], ids=[name for name, _ in CASES])
async def test_damaged(images: Any, tmp_path: Any, poke: Any, level: str) -> None:
    await assert_as_qemu(poked(images("cluster_size=64k"), poke), tmp_path / "x", level)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("poke", [poke for _, poke in BITMAPS], ids=[name for name, _ in BITMAPS])
async def test_damaged_extended_entries(images: Any, tmp_path: Any, poke: Any) -> None:
    await assert_as_qemu(poked(images("cluster_size=16k,extended_l2=on"), poke), tmp_path / "x", "all")


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        ("cluster_size=64k", 2, 0),
        ("cluster_size=512", 1, 0),
        ("cluster_size=4k,refcount_bits=1", 0, 0),
        ("cluster_size=4k,refcount_bits=64", 2, 0),
        ("cluster_size=4k,compat=0.10", 2, 0),
        ("cluster_size=4k", 0, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("damage", ["no header count", "no counts", "wrong counts", "no table"])
async def test_refcounts_of_images_of_all_kinds(images: Any, tmp_path: Any, kind: Any, damage: str) -> None:
    data = bytearray(images(*kind))
    header = header_of_any(data)
    (block,) = struct.unpack_from(">Q", data, header.refcount_table_offset)
    if damage == "no header count":
        data[block : block + 8] = bytes(8)
    elif damage == "no counts":
        data[block : block + header.cluster_size] = bytes(header.cluster_size)
    elif damage == "wrong counts":
        data[block + 64 : block + 128] = random.Random(1).randbytes(64)
    else:
        data[header.refcount_table_offset : header.refcount_table_offset + header.cluster_size] = bytes(
            header.cluster_size
        )
    await assert_as_qemu(bytes(data), tmp_path / "x", "all")


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("name", ["block misaligned", "block reserved"])
async def test_qemu_gives_up_and_we_do_not(images: Any, tmp_path: Any, name: str) -> None:
    result, after = await repaired(poked(images("cluster_size=64k"), dict(DAMAGE)[name]))
    assert result.corruptions == result.leaks == result.check_errors == 0
    path = tmp_path / "x"
    path.write_bytes(after)
    qemu_img("check", "-f", "qcow2", path)


# -- images of our own -----------------------------------------------------------------------------------------------

SHAPES: list[dict[str, Any]] = [
    {"cluster_size": 512},
    {"cluster_size": 4096, "refcount_bits": 64},
    {"cluster_size": 16384, "extended_l2": True},
]


async def filled(shape: dict[str, Any]) -> tuple[bytes, bytes]:
    """An image with something in it, and what the guest reads there."""
    size = 300 * KIB
    disk = RecordedDisk(await new_image(size, **shape))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"a" * 20 * KIB)
        await image.pwrite(100 * KIB, b"b" * 60 * KIB)
        await image.pwrite_zeroes(110 * KIB, 8 * KIB)
        await image.pdiscard(128 * KIB, 16 * KIB)
        await image.pwrite(280 * KIB, b"c" * 20 * KIB)
        content = bytes(await image.pread(0, size))
    return bytes(disk.content()), content


def first_l2(data: bytes) -> int:
    (entry,) = struct.unpack_from(">Q", data, header_of(data).l1_table_offset)
    return int(entry) & 0xFFFFFFFFFFFE00


def damages(data: bytes) -> dict[str, bytes]:
    """The image, damaged so that no data is lost."""
    header = header_of(data)
    table, l1, l2 = header.refcount_table_offset, header.l1_table_offset, first_l2(data)
    step = header.l2_entry_size
    (block,) = struct.unpack_from(">Q", data, table)
    (entry,) = struct.unpack_from(">Q", data, l2)
    width = header.refcount_bits // 8
    cluster = (entry & 0xFFFFFFFFFFFE00) >> header.cluster_bits

    def count(number: int, value: int) -> tuple[int, str, int]:
        return block + number * width, {2: "H", 8: "Q"}[width], value

    return {
        "block misaligned": poked(data, (table, "Q", block + 256)),
        "no table": poked(data, (56, "I", 0)),
        "no blocks": poked(data, (table, "Q", 0)),
        "counts are lost": data[:block] + bytes(header.cluster_size) + data[block + header.cluster_size :],
        "one count is lost": poked(data, count(cluster, 0)),
        "leaks": poked(data, count(cluster, 3), count(cluster + 1, 2), count(header.refcount_block_entries - 1, 1)),
        "leaks, and flags that fit": poked(
            data, count(cluster, 2), (l2, "Q", entry & ~C), (l1, "Q", l2), count(l2 >> header.cluster_bits, 2)
        ),
        "shared": poked(data, (l2 + 150 * KIB // header.cluster_size * step, "Q", entry)),
        "dirty": poked(data, count(cluster, 0), count(cluster + 1, 0), (72, "Q", 1 | header.incompatible_features)),
        "corrupt": poked(data, (72, "Q", 2 | header.incompatible_features), count(cluster, 2)),
    }


NAMES = [
    "block misaligned",
    "no table",
    "no blocks",
    "counts are lost",
    "one count is lost",
    "leaks",
    "leaks, and flags that fit",
    "shared",
    "dirty",
    "corrupt",
]


async def read_all(data: bytes) -> bytes:
    described = {"driver": "qcow2", "file": RecordedDisk(data).options()}
    async with await aioblock.open(described, for_check=True, trust=aioblock.TRUST_ALL) as image:
        return bytes(await image.pread(0, image.length))


async def repair_recorded(data: bytes, disk: RecordedDisk | None = None) -> RecordedDisk:
    """Repair as a program does; the records of all requests."""
    disk = RecordedDisk(data) if disk is None else disk
    described = {"driver": "qcow2", "file": disk.options()}
    async with await aioblock.open(described, writable=True, for_check=True, trust=aioblock.TRUST_ALL) as image:
        await image.check(fix_leaks=True, fix_errors=True)
    return disk


async def harm(data: bytes) -> Counter[str]:
    """What could do harm: refcounts that are too low, and COPIED flags of clusters that are not alone."""
    found: Counter[str] = Counter()
    for finding in (await check(data)).findings:
        if finding.message.startswith("ERROR cluster"):
            found["too low"] += 1
        elif finding.kind != "leak" and "OFLAG_COPIED" not in finding.message:
            found["other"] += 1
    entries = [words[0] for words in host_entries(data).values()]
    references = Counter(entry & 0xFFFFFFFFFFFE00 for entry in entries)
    found["promises"] = sum(entry & C != 0 and references[entry & 0xFFFFFFFFFFFE00] > 1 for entry in entries)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
async def test_cut_at_every_write(shape: dict[str, Any], name: str) -> None:
    sound, _ = await filled(shape)
    data = damages(sound)[name]
    content = await read_all(data)
    before = await harm(data)
    disk = await repair_recorded(data)
    assert_sound(bytes(disk.content()))
    assert (await check(bytes(disk.content()))).findings == []
    assert header_of(bytes(disk.content())).incompatible_features & 3 == 0
    changes = disk.changes()
    for number, record in enumerate(changes):
        if (record.offset, len(record.data)) == (48, 12):  # the new structure, before and behind which all is stable
            assert changes[number - 1].verb == changes[number + 1].verb == "flush"
    assert await read_all(bytes(disk.content())) == content
    chance = random.Random(name)
    seen: set[bytes] = set()
    for point in range(len(disk.records) + 1):
        for _ in range(3):
            state = after_power_cut(disk, point, chance)
            if state in seen:
                continue
            seen.add(state)
            after = await harm(state)
            assert all(after[kind] <= before[kind] for kind in after)
            assert await read_all(state) == content
            header = header_of(state)
            if header.refcount_table_offset != header_of(data).refcount_table_offset:
                assert after["too low"] == 0  # who believes the new structure is not misled
            again = await repair_recorded(state)
            assert_sound(bytes(again.content()))
            assert await read_all(bytes(again.content())) == content
    assert seen


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no blocks", "shared", "leaks, and flags that fit"])
async def test_every_request_of_a_repair_fails_once(name: str) -> None:
    sound, _ = await filled(SHAPES[1])
    data = damages(sound)[name]
    content = await read_all(data)
    number, failed = 0, True
    while failed:
        number += 1
        disk = RecordedDisk(data)
        disk.before = fail_nth(number, OSError(errno.ENOSPC, "No space left on device"))
        failed = False
        try:
            await repair_recorded(data, disk)
        except OSError:
            failed = True
        disk.before = None
        again = await repair_recorded(bytes(disk.content()))
        assert_sound(bytes(again.content()))
        assert await read_all(bytes(again.content())) == content
    assert number > 3


@pytest.mark.slow
async def test_leaks_alone() -> None:
    """What is no leak stays as it is, also the flags."""
    sound, _ = await filled(SHAPES[1])
    data = damages(sound)["shared"]
    header = header_of(data)
    (block,) = struct.unpack_from(">Q", data, header.refcount_table_offset)
    data = poked(data, (block + 8 * (header.refcount_block_entries - 1), "Q", 5))
    data += bytes(header.cluster_size * header.refcount_block_entries - len(data))
    result, after = await repaired(data, errors=False)
    assert (result.leaks, result.leaks_fixed) == (0, 2)  # the last one, and what the entry referred to before
    assert result.corruptions == 1
    changed = [at for at in range(len(data)) if data[at] != after[at]]
    assert len(changed) == 2
    assert all(block <= at < block + header.cluster_size for at in changed)


# -- references behind the end of the file ---------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [0, 1, 3, 40])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
async def test_nothing_is_allocated_over_what_a_power_cut_took(shape: dict[str, Any], distance: int) -> None:
    """L2 entries were written and the data was not: the new refcount structure keeps away from it."""
    sound, content = await filled(shape)
    header = header_of(sound)
    size = header.cluster_size
    l2 = first_l2(sound)
    end = -(-len(sound) // size)
    free = [number for number in range(20 * KIB // size, 100 * KIB // size) if number < header.l2_entries][:5]
    pokes = [
        (l2 + 8 * number, "Q", C | end + distance + place << header.cluster_bits) for place, number in enumerate(free)
    ]
    data = poked(sound, *pokes, (header.refcount_table_offset, "Q", 0))
    _, after = await repaired(data)
    assert_sound(after)
    assert (await check(after)).findings == []
    assert await read_all(after) == content  # what was lost reads as zeroes, as the hole did before
    disk = RecordedDisk(after)
    async with await open_disk(disk) as image:
        await image.pwrite(200 * KIB, b"n" * 70 * KIB)
    assert_sound(bytes(disk.content()))
    assert (await read_all(bytes(disk.content())))[20 * KIB : 100 * KIB] == bytes(80 * KIB)


async def test_entries_far_away_are_counted_or_kept_away_from() -> None:
    sound, _ = await filled(SHAPES[0])
    header = header_of(sound)
    l2 = first_l2(sound)
    far = [1 << 22, (1 << 22) + 1, 1 << 40]
    pokes = [(l2 + 8 * (41 + place), "Q", C | cluster << header.cluster_bits) for place, cluster in enumerate(far)]
    data = poked(sound, *pokes, (header.refcount_table_offset, "Q", 0))
    result, after = await repaired(data)
    assert result.corruptions == 3  # the entries make no sense, and nobody knows what they should be
    assert len(after) < len(data) + 200 * KIB
    new = header_of(after)
    (block,) = struct.unpack_from(">Q", after, new.refcount_table_offset + 8 * (far[0] >> new.refcount_block_bits))
    assert after[block : block + 4] == b"\0\1\0\1"


class FixedFile(MemoryIO):
    """It can be written behind its end, but not be made longer."""

    async def truncate(self, length: int, **kwargs: Any) -> None:
        raise OSError(errno.EFBIG, "File too large")


@pytest.mark.parametrize("distance", [0, 1, 3, 40])
async def test_a_file_that_stays_short_is_not_allocated_where_its_end_was(distance: int) -> None:
    sound, _ = await filled(SHAPES[0])
    header = header_of(sound)
    l2 = first_l2(sound)
    lost = [-(-len(sound) // 512) + 1 + distance + place for place in range(5)]
    pokes = [(l2 + 8 * (41 + place), "Q", C | cluster * 512) for place, cluster in enumerate(lost)]
    data = poked(sound, *pokes, (header.refcount_table_offset, "Q", 0))
    file = FixedFile(data)
    await check_image(file, header_of_any(data), fix_leaks=True, fix_errors=True)
    after = bytes(file.data)
    assert header_of(after).refcount_table_offset not in {512 * cluster for cluster in lost}
    assert all(not any(after[512 * cluster : 512 * cluster + 512]) for cluster in lost)
    assert_sound(after)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
async def test_random_refcounts(seed: int) -> None:
    """Whatever the refcount structure says, the data stays, and the image is sound afterwards."""
    chance = random.Random(seed)
    sound, content = await filled(SHAPES[seed % 3])
    header = header_of(sound)
    data = bytearray(sound)
    (block,) = struct.unpack_from(">Q", data, header.refcount_table_offset)
    for _ in range(chance.randrange(1, 40)):
        data[block + chance.randrange(min(header.cluster_size, 1024))] = chance.randrange(4)
    if chance.random() < 0.5:
        at = header.refcount_table_offset + 8 * chance.randrange(4)
        value = chance.choice([0, 1, 7, block, 1 << 40, len(data) - 512, first_l2(sound), 2**64 - 1])
        struct.pack_into(">Q", data, at, value)
    result, after = await repaired(bytes(data))
    assert result.corruptions == result.leaks == result.check_errors == 0
    assert_sound(after)
    assert (await check(after)).findings == []
    assert await read_all(after) == content
