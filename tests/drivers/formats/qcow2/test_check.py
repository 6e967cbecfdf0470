"""The check: the findings of qemu-img check, line for line, on images that are damaged in many ways."""

import asyncio
import errno
import json
import random
import struct
import time

import pytest

from aioblock.core.images import CheckResult
from aioblock.drivers.formats.qcow2 import references as references_module
from aioblock.drivers.formats.qcow2 import table_runs
from aioblock.drivers.formats.qcow2.check import check_image
from aioblock.drivers.formats.qcow2.create import create
from aioblock.drivers.formats.qcow2.entries import OFLAG_COPIED, table_to_bytes
from aioblock.drivers.formats.qcow2.header import Header, parse_header, serialise
from tests.kit.memory_io import MemoryIO, fail_nth
from tests.kit.oracle import qemu_img, qemu_io, require

C = OFLAG_COPIED
ZIP = 1 << 62


async def checked(data) -> CheckResult:
    file = MemoryIO(data)
    header = parse_header(bytes(data[: 2 << 20]), "x", len(data), for_check=True)
    result = await check_image(file, header)
    assert bytes(file.data) == bytes(data)
    assert {call.verb for call in file.log} <= {"pread"}
    return result


def lines_of(result):
    return [line for finding in result.findings for line in finding.message.split("\n")]


def numbers_of(result):
    return {
        "corruptions": result.corruptions,
        "leaks": result.leaks,
        "check-errors": result.check_errors,
        "image-end-offset": result.image_end_offset,
        "total-clusters": result.total_clusters,
        "allocated-clusters": result.allocated_clusters,
        "fragmented-clusters": result.fragmented_clusters,
        "compressed-clusters": result.compressed_clusters,
    }


def qemu_checked(path):
    """The lines and numbers of qemu-img."""
    done = qemu_img("check", "-f", "qcow2", "--output=json", path, check=False)
    data = json.loads(done.stdout)
    lines = [line for line in done.stderr.split("\n") if line and not line.startswith(("qemu-img:", "qcow2:"))]
    return lines, {name: data.get(name, 0) for name in numbers_of(CheckResult())}


async def assert_as_qemu(data, path):
    path.write_bytes(data)
    result = await checked(data)
    lines, numbers = qemu_checked(path)
    assert lines_of(result) == lines
    assert numbers_of(result) == numbers
    return result


# -- images ----------------------------------------------------------------------------------------------------------

WRITES = (
    "write -P 1 0 256k",
    "write -P 2 1M 64k",
    "write -z 2M 128k",
    "write -c -P 3 3M 64k",
    "write -c -P 3 3136k 64k",
    "write -z 1M 64k",
    "write -P 5 5M 20k",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images by name, made by QEMU when they are first asked for."""
    require("qemu-img", "qemu-io")
    made = {}
    folder = tmp_path_factory.mktemp("images")

    def get(options, snapshots=0, bitmaps=0):
        key = (options, snapshots, bitmaps)
        if key not in made:
            path = folder / str(len(made))
            qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "8M")
            qemu_io(path, *WRITES, fmt="qcow2")
            for number in range(snapshots):
                qemu_img("snapshot", "-c", f"s{number}", path)
                qemu_io(path, f"write -P {number} {64 * number}k 64k", fmt="qcow2")
            for number in range(bitmaps):
                qemu_img("bitmap", "--add", "-g", "4096", path, f"b{number}")
                qemu_io(path, f"write {number}M 64k", fmt="qcow2")
            made[key] = path.read_bytes()
        return made[key]

    return get


KINDS = [
    ("cluster_size=64k", 0, 0),
    ("cluster_size=64k", 2, 0),
    ("cluster_size=4k", 3, 0),
    ("cluster_size=512", 1, 0),
    ("cluster_size=16k,extended_l2=on", 1, 0),
    ("cluster_size=4k,refcount_bits=1", 0, 0),
    ("cluster_size=4k,refcount_bits=8", 1, 0),
    ("cluster_size=4k,refcount_bits=64", 2, 0),
    ("cluster_size=4k,compat=0.10", 2, 0),
    ("cluster_size=4k", 0, 2),
]


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_sound_image(images, tmp_path, kind):
    result = await assert_as_qemu(images(*kind), tmp_path / "x")
    assert result.findings == []
    assert result.allocated_clusters


# The image: header, refcount table, refcount block, L1, L2 at 0x40000, data at 0x50000 to 0x8ffff, zeroed 0x90000,
# two compressed clusters in 0xa0000, data in 0xb0000. The places are those of 64 KiB clusters.
L1, L2, TABLE, BLOCK = 0x30000, 0x40000, 0x10000, 0x20000
DAMAGE = [
    ("l1 misaligned", (L1, "Q", C | 0x40200)),
    ("l1 reserved", (L1, "Q", C | 0x40001 | 1 << 56)),
    ("l1 far", (L1, "Q", C | 1 << 40)),
    ("l1 not copied", (L1, "Q", 0x40000)),
    ("l1 to header", (L1, "Q", C)),
    ("l1 to l1", (L1, "Q", C | 0x30000)),
    ("l1 behind the file", (40, "Q", 1 << 40)),
    ("l1 is the refcount table", (40, "Q", TABLE)),
    ("l1 long", (36, "I", 100)),
    ("misaligned", (L2, "Q", C | 0x50200)),
    ("reserved", (L2, "Q", C | 0x50002 | 1 << 56)),
    ("far", (L2, "Q", C | 1 << 40)),
    ("very far", (L2, "Q", 1 << 55)),
    ("not copied", (L2, "Q", 0x50000)),
    ("to header", (L2, "Q", C)),
    ("to l1", (L2, "Q", C | L1)),
    ("zero, misaligned", (L2, "Q", C | 0x50201)),
    ("zero, not copied", (L2, "Q", 0x50001)),
    ("zero, nothing", (L2, "Q", C | 1)),
    ("compressed, copied", (L2, "Q", C | ZIP | 0x50000)),
    ("compressed", (L2, "Q", ZIP | 0x50000)),
    ("compressed, far", (L2, "Q", ZIP | 1 << 53)),
    ("compressed, long", (L2, "Q", ZIP | 0xFF << 54 | 0x5FFFF)),
    ("all ones", (L2, "Q", 2**64 - 1)),
    ("twice", (L2 + 8, "Q", C | 0x50000)),
    ("refcount 0", (BLOCK + 10, "H", 0)),
    ("refcount 2", (BLOCK + 10, "H", 2)),
    ("refcount of header", (BLOCK, "H", 0)),
    ("refcount of l2", (BLOCK + 8, "H", 0)),
    ("refcount of block", (BLOCK + 4, "H", 2)),
    ("refcount behind the file", (BLOCK + 2000, "H", 3)),
    ("no block", (TABLE, "Q", 0)),
    ("no table", (56, "I", 0)),
    ("block to table", (TABLE, "Q", TABLE)),
    ("block misaligned", (TABLE, "Q", 0x20200)),
    ("block reserved", (TABLE, "Q", 0x20001)),
    ("second block twice", (TABLE + 8, "Q", BLOCK)),
    ("second block far", (TABLE + 8, "Q", 1 << 40)),
    ("second block misaligned", (TABLE + 8, "Q", 0x20200)),
    ("second block is data", (TABLE + 8, "Q", 0x50000)),
    ("table behind the file", (48, "Q", 1 << 40)),
    ("table long", (56, "I", 128)),
    ("snapshots in the table", (60, "IQ", 3, TABLE)),
    ("snapshots behind the file", (60, "IQ", 2, 1 << 40)),
]


def poked(data, *pokes):
    data = bytearray(data)
    for offset, form, *values in pokes:
        struct.pack_into(">" + form, data, offset, *values)
    return bytes(data)


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("poke", [poke for _, poke in DAMAGE], ids=[name for name, _ in DAMAGE])
async def test_damaged(images, tmp_path, poke):
    await assert_as_qemu(poked(images("cluster_size=64k"), poke), tmp_path / "x")


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("length", [0x20000, 0x20010, 0x30000, 0x8FFFF, 0xA0001, 0xC0000, 0x100000])
async def test_file_of_another_length(images, tmp_path, length):
    await assert_as_qemu(images("cluster_size=64k")[:length].ljust(length, b"\0"), tmp_path / "x")


EXTENDED_L2 = 0x10000  # clusters of 16 KiB
BITMAPS = [
    ("compressed with bitmap", (EXTENDED_L2 + 16 * 192, "QQ", ZIP | 0x50000, 5)),
    ("compressed, copied, with bitmap", (EXTENDED_L2 + 16 * 192, "QQ", C | ZIP | 0x50000, 5)),
    ("allocated and zero", (EXTENDED_L2 + 8, "Q", 0x100000001)),
    ("allocated without a cluster", (EXTENDED_L2 + 16 * 400 + 8, "Q", 1)),
    ("zero without a cluster", (EXTENDED_L2 + 16 * 400 + 8, "Q", 1 << 32)),
    ("zero flag", (EXTENDED_L2, "Q", C | 0x14001)),
    ("misaligned data", (EXTENDED_L2, "QQ", C | 0x14200, 1)),
    ("misaligned without data", (EXTENDED_L2, "QQ", C | 0x14200, 1 << 32)),
]


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("poke", [poke for _, poke in BITMAPS], ids=[name for name, _ in BITMAPS])
async def test_damaged_extended_entries(images, tmp_path, poke):
    await assert_as_qemu(poked(images("cluster_size=16k,extended_l2=on"), poke), tmp_path / "x")


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize(
    "poke",
    [
        (0, "Q", 0x200),
        (0, "Q", 1 << 40),
        (0, "Q", L1),
        (8, "I", 0x10000000),
        (8, "I", 0),
        (8, "I", 3),
        (36, "I", 15),
    ],
    ids=str,
)
async def test_damaged_snapshot(images, tmp_path, poke):
    data = images("cluster_size=64k", 2)
    table = parse_header(data[:65536], "x", len(data)).snapshots_offset
    offset, form, value = poke
    await assert_as_qemu(poked(data, (table + offset, form, value)), tmp_path / "x")


@pytest.mark.oracle
@pytest.mark.slow
async def test_damaged_bitmap_tables(images, tmp_path):
    data = images("cluster_size=4k", 0, 2)
    header = parse_header(data[:4096], "x", len(data))
    place = data.index(struct.pack(">II", 0x23852875, 24)) + 8
    _, _, _, directory = struct.unpack_from(">IIQQ", data, place)
    (table,) = struct.unpack_from(">Q", data, directory)
    await assert_as_qemu(poked(data, (table, "Q", 0x5000)), tmp_path / "x")
    await assert_as_qemu(poked(data, (table, "Q", 1 << 40)), tmp_path / "x")
    await assert_as_qemu(poked(data, (directory, "Q", 1 << 40)), tmp_path / "x")
    assert header.autoclear_features == 1
    broken = await checked(poked(data, (table, "Q", 0x5002)))  # QEMU does not open these two
    assert lines_of(broken)[0] == "ERROR bitmap 'b0': invalid bitmap table entry 0: 5002"
    broken = await checked(poked(data, (directory + 16, "B", 7)))
    assert lines_of(broken)[0] == "ERROR Bitmap 'b0' doesn't satisfy the constraints"


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
async def test_random_damage(images, tmp_path, seed):
    """Anything in the metadata may be anything."""
    rng = random.Random(seed)
    data = bytearray(images(*KINDS[seed % 9]))
    header = parse_header(bytes(data[:65536]), "x", len(data))
    clusters = len(data) >> header.cluster_bits
    for _ in range(3):
        (l1_entry,) = struct.unpack_from(">Q", data, header.l1_table_offset)
        l2 = l1_entry & 0xFFFFFFFFFFFE00
        place = rng.choice([l2 + 8 * rng.randrange(60), l2 + 8 * rng.randrange(8)])
        value = rng.choice([0, 1, C, C | 1, 1 << 60, ZIP]) | rng.randrange(clusters + 2) << header.cluster_bits
        struct.pack_into(">Q", data, place, rng.choice([value, rng.getrandbits(64) & ~ZIP]))
        (block,) = struct.unpack_from(">Q", data, header.refcount_table_offset)
        data[block + rng.randrange(16)] = rng.randrange(256)
    path = tmp_path / "x"
    path.write_bytes(data)
    result = await checked(bytes(data))
    lines, numbers = qemu_checked(path)
    # An overflowing refcount and the tables of snapshots are reported in another order.
    assert sorted(lines_of(result)) == sorted(lines)
    assert numbers_of(result) == numbers


# -- images made to hurt ---------------------------------------------------------------------------------------------


def small_image(l1_size, cluster_bits=16):
    """Header, refcount table, refcount block, L2, and an L1 table of that many entries."""
    size = 1 << cluster_bits
    header = Header(3, cluster_bits, l1_size << (2 * cluster_bits - 3), l1_size, 4 * size, size, 1)
    data = bytearray(serialise(header)).ljust(4 * size, b"\0")
    struct.pack_into(">Q", data, size, 2 * size)
    struct.pack_into(">5H", data, 2 * size, 1, 1, 1, 1, 1)
    return data


@pytest.mark.slow
async def test_one_l2_table_under_a_whole_l1_table():
    """448 KiB that say 8 TiB: a walk that follows each entry takes half a minute."""
    data = small_image(16384)
    struct.pack_into(">8192Q", data, 0x30000, *[C | 0x50000] * 8192)
    data += table_to_bytes([C | 0x30000] * 16384)
    data = data.ljust(0x70000, b"\0")
    began = time.process_time()
    result = await checked(data)
    assert time.process_time() - began < 2
    assert result.allocated_clusters == 16384 * 8192
    assert "ERROR cluster 5 refcount=0 reference=65535" in lines_of(result)  # as far as a refcount of 16 bits goes
    assert result.corruptions > 134_000_000
    assert len(result.findings) <= references_module.MAX_FINDINGS


@pytest.mark.slow
async def test_all_entries_are_wrong():
    data = small_image(64, 16)
    data[0x30000:0x40000] = b"\xff" * 0x10000
    data += table_to_bytes([C | 0x30000] * 64)
    result = await checked(data)
    assert result.corruptions >= 8192 * 64
    assert len(result.findings) <= references_module.MAX_FINDINGS


class Sparse(MemoryIO):
    """A small file that says it is a large one."""

    said = 0

    @property
    def length(self):
        return self.said


async def test_a_file_that_is_too_long_to_count():
    data = small_image(1) + table_to_bytes([C | 0x30000])
    file = Sparse(data)
    file.said = (1 << 63) - 65536
    header = parse_header(bytes(data), "x", file.length)
    with pytest.raises(OSError, match="too many clusters") as caught:
        await check_image(file, header)
    assert caught.value.errno == errno.EFBIG


async def test_a_long_sparse_file_takes_little_memory():
    data = small_image(1) + table_to_bytes([C | 0x30000])
    file = Sparse(data)
    file.said = 1 << 40
    result = await check_image(file, parse_header(bytes(data), "x", file.length))
    assert result.findings == []
    assert result.image_end_offset == 0x50000


async def test_what_cannot_be_read_is_a_finding():
    file = MemoryIO()
    await create(file, {"size": 1 << 20, "preallocation": "metadata", "cluster_size": 4096})
    header = parse_header(bytes(file.data[:4096]), "x", file.length)
    assert (await check_image(file, header)).findings == []
    reads = len(file.calls("pread"))
    for number in range(1, reads + 1):
        file.before = fail_nth(number, OSError(errno.EIO, "Input/output error"))
        result = await check_image(file, header)
        assert result.check_errors == 1
        assert result.findings[0].kind == "error" or result.findings[0].message.startswith("ERROR")
        assert any(finding.message.startswith("ERROR: I/O error in check_ref") for finding in result.findings)


async def test_cancelled_at_every_read():
    file = MemoryIO()
    await create(file, {"size": 1 << 20, "preallocation": "metadata", "cluster_size": 4096})
    header = parse_header(bytes(file.data[:4096]), "x", file.length)
    await check_image(file, header)
    reads = len(file.calls("pread"))
    for number in range(1, reads + 1):
        waiting, left = asyncio.Event(), number

        async def hold(call, waiting=waiting):
            nonlocal left
            left -= 1
            if left == 0:
                waiting.set()
                await asyncio.Event().wait()

        file.before = hold
        task = asyncio.create_task(check_image(file, header))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_snapshot_table_with_too_much_in_it():
    data = small_image(1) + table_to_bytes([C | 0x30000])
    data = data.ljust(0x50000, b"\0") + struct.pack(">QIHHIIQII", 0, 0, 1, 1, 0, 0, 0, 0, 1025)
    struct.pack_into(">IQ", data, 60, 1, 0x50000)
    result = await checked(data)
    assert result.check_errors == 1
    assert lines_of(result)[0].endswith("Too much extra metadata in snapshot table entry 0")


DATA_FILE_L2 = 0x40000  # entries: data at 0 to 0x3ffff, zeroes at 0x100000, data at 0x200000
DATA_FILE = [
    ("sound", (DATA_FILE_L2, "Q", C)),
    ("misaligned", (DATA_FILE_L2, "Q", C | 0x200)),
    ("zero, misaligned", (DATA_FILE_L2 + 8 * 16, "Q", C | 0x201)),
    ("far", (DATA_FILE_L2 + 8, "Q", C | 1 << 45)),
    ("not copied", (DATA_FILE_L2 + 8, "Q", 0x10000)),
    ("elsewhere", (DATA_FILE_L2 + 8, "Q", C | 0x90000)),
    ("reserved", (DATA_FILE_L2 + 8, "Q", C | 0x10002)),
    ("compressed", (DATA_FILE_L2 + 8, "Q", ZIP | 0x10000)),
]


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("raw", ["off", "on"])
async def test_external_data_file(tmp_path, raw):
    """Guest data has no refcounts there."""
    path = tmp_path / "x"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw={raw}", path, "8M")
    qemu_io(path, "write 0 256k", "write -z 1M 64k", "write 2M 64k", fmt="qcow2")
    data = path.read_bytes()
    for _, poke in DATA_FILE:
        await assert_as_qemu(poked(data, poke), path)


@pytest.mark.parametrize("seed", range(12))
async def test_runs_are_counted_as_entry_by_entry(monkeypatch, seed):
    """The short way and the long one come to the same."""
    rng = random.Random(seed)
    data = small_image(16, 12)
    l1 = []
    bits = 12
    place = 64
    for number in range(rng.randrange(1, 8)):
        entries = []
        while len(entries) < 512:
            length = min(rng.choice([1, 3, 100, 512]), 512 - len(entries))
            flags = rng.choice([C, C, C, C, 0, C | 1, 1, ZIP if rng.random() < 0.1 else C])
            skip = rng.choice([0, 0, 0, 1, 5])
            if rng.random() < 0.2:
                entries += [0] * length
                continue
            place += skip
            entries += [flags | place + at << bits for at in range(length)]
            place += length - (rng.random() < 0.05)
        l1.append(C | (5 + number) << bits)
        struct.pack_into(">H", data, 2 * 4096 + 2 * (5 + number), 1)
        data = data.ljust((5 + number) << bits, b"\0") + struct.pack(">512Q", *entries)
    struct.pack_into(f">{len(l1)}Q", data, 4 << bits, *l1)
    for cluster in range(64, min(place, 2048)):
        struct.pack_into(">H", data, 2 * 4096 + 2 * cluster, 1 if rng.random() < 0.995 else 2)
    data = data.ljust(rng.choice([place, place - 3, 4000]) << bits, b"\0")
    short = await checked(data)
    monkeypatch.setattr(table_runs, "LEAST_RUN", 1 << 30)
    long = await checked(data)
    assert lines_of(short) == lines_of(long)
    assert numbers_of(short) == numbers_of(long)
    assert short.allocated_clusters


async def test_progress():
    file = MemoryIO()
    await create(file, {"size": 1 << 20, "preallocation": "metadata", "cluster_size": 4096})
    header = parse_header(bytes(file.data[:4096]), "x", file.length)
    told = []
    await check_image(file, header, progress=lambda *now: told.append(now))
    assert told[-1] == (2 * 4096, 2 * 4096)  # a refcount block and an L2 table
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert all(done <= total for done, total in told)
