"""Headers that lie: each is refused with a typed error, in the words of qemu-img where it has the same check."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.errors import BlockError, CorruptImage, InvalidImage, UnsupportedFeature
from aioblock.drivers.formats.qcow2.extensions import BACKING_FORMAT, CRYPTO, FEATURE_NAMES
from aioblock.drivers.formats.qcow2.header import Header, parse_header, read_header, serialise
from aioblock.drivers.formats.qcow2.snapshot_table import read_snapshot_table
from tests.kit.memory_io import MemoryIO
from tests.kit.oracle import qemu_img, require

KIB64 = 65536
FILE_LENGTH = 0x40000
GOOD = serialise(Header(3, 16, 64 << 20, 1, 0x30000, 0x10000, 1))


def poked(*pokes, base=GOOD):
    data = bytearray(base)
    for offset, form, *values in pokes:
        struct.pack_into(">" + form, data, offset, *values)
    return bytes(data)


# What is damaged, the kind of error, its message; the messages marked True are those of qemu-img.
CASES = [
    ("magic", [(0, "I", 0x51464900)], InvalidImage, "Image is not in qcow2 format", True),
    ("version 0", [(4, "I", 0)], UnsupportedFeature, "Unsupported qcow2 version 0", True),
    ("version 1", [(4, "I", 1)], UnsupportedFeature, "Unsupported qcow2 version 1", True),
    ("version 4", [(4, "I", 4)], UnsupportedFeature, "Unsupported qcow2 version 4", True),
    ("version max", [(4, "I", 2**32 - 1)], UnsupportedFeature, "Unsupported qcow2 version 4294967295", True),
    *(
        (f"cluster_bits {bits}", [(20, "I", bits)], InvalidImage, f"Unsupported cluster size: 2^{bits}", True)
        for bits in (0, 8, 22, 63, 2**32 - 1)
    ),
    ("header_length 0", [(100, "I", 0)], InvalidImage, "qcow2 header too short", True),
    ("header_length 103", [(100, "I", 103)], InvalidImage, "qcow2 header too short", True),
    ("header_length 105", [(100, "I", 105)], InvalidImage, "qcow2 header length is not a multiple of 8", False),
    ("header_length over", [(100, "I", 65544)], InvalidImage, "qcow2 header exceeds cluster size", True),
    ("header_length max", [(100, "I", 2**31 - 1)], InvalidImage, "qcow2 header exceeds cluster size", True),
    ("size 2^62", [(24, "Q", 1 << 62)], InvalidImage, "Image is too big", True),
    ("size 2^63", [(24, "Q", 1 << 63)], InvalidImage, "Image is too big", True),
    ("size 2^64-1", [(24, "Q", 2**64 - 1)], InvalidImage, "Image is too big", False),
    ("size odd", [(24, "Q", (64 << 20) + 1)], InvalidImage, "Image size is not a multiple of 512", False),
    ("size over L1", [(24, "Q", (512 << 20) + 512)], CorruptImage, "L1 table is too small", True),
    ("l1_size 0", [(36, "I", 0)], CorruptImage, "L1 table is too small", True),
    ("l1_size big", [(36, "I", (4 << 20) + 1)], InvalidImage, "Active L1 table too large", True),
    ("l1_size 2^31", [(36, "I", 1 << 31)], InvalidImage, "Active L1 table too large", True),
    ("l1 odd", [(40, "Q", 0x30200)], InvalidImage, "Active L1 table offset invalid", True),
    ("l1 2^63", [(40, "Q", 1 << 63)], InvalidImage, "Active L1 table offset invalid", True),
    ("l1 2^64", [(40, "Q", 2**64 - KIB64)], InvalidImage, "Active L1 table offset invalid", True),
    ("l1 behind", [(40, "Q", 1 << 40)], CorruptImage, "Active L1 table lies behind the end of the file", False),
    ("rt clusters 0", [(56, "I", 0)], InvalidImage, "Image does not contain a reference count table", True),
    ("rt clusters 129", [(56, "I", 129)], InvalidImage, "Reference count table too large", True),
    ("rt clusters wrap", [(56, "I", 0x20001)], InvalidImage, "Reference count table too large", True),
    ("rt odd", [(48, "Q", 0x10200)], InvalidImage, "Reference count table offset invalid", True),
    ("rt 2^63", [(48, "Q", 2**63 - KIB64)], InvalidImage, "Reference count table offset invalid", True),
    *(
        (
            f"refcount_order {order}",
            [(96, "I", order)],
            InvalidImage,
            "Reference count entry width too large; may not exceed 64 bits",
            True,
        )
        for order in (7, 31, 2**32 - 1)
    ),
    ("snapshots 65537", [(60, "IQ", 65537, 0)], InvalidImage, "Snapshot table too large", True),
    ("snapshots 2^31", [(60, "IQ", 2**31 - 1, 0x10000)], InvalidImage, "Snapshot table too large", True),
    ("snapshots offset", [(60, "IQ", 1, 2**64 - KIB64)], InvalidImage, "Snapshot table offset invalid", True),
    ("no snapshots, odd", [(60, "IQ", 0, 0x10001)], InvalidImage, "Snapshot table offset invalid", True),
    (
        "backing name in an extension",
        [(8, "QI", 116, 0), (112, "I", 5)],
        InvalidImage,
        "Header extension too large",
        True,
    ),
    ("snapshots odd", [(60, "IQ", 1, 0x10001)], InvalidImage, "Snapshot table offset invalid", True),
    (
        "no L1 but snapshots",
        [(24, "Q", 0), (36, "I", 0), (60, "IQ", 1, 0x10000)],
        CorruptImage,
        "L1 table is too small",
        False,
    ),
    ("crypt 3", [(32, "I", 3)], UnsupportedFeature, "Unsupported encryption method 3", True),
    ("crypt max", [(32, "I", 2**32 - 1)], UnsupportedFeature, "Unsupported encryption method -1", True),
    ("luks without extension", [(32, "I", 2)], CorruptImage, "CRYPTO header extension is missing", False),
    (
        "luks offset",
        [(32, "I", 2), (112, "IIQQ", CRYPTO, 16, 0x30200, 1 << 20)],
        InvalidImage,
        "Encryption header offset '197120' is not a multiple of cluster size '65536'",
        True,
    ),
    (
        "luks length",
        [(32, "I", 2), (112, "IIQQ", CRYPTO, 16, 0x30000, 1 << 63)],
        InvalidImage,
        "Encryption header lies outside of the image",
        False,
    ),
    (
        "crypto extension",
        [(112, "IIQQ", CRYPTO, 16, 0x30000, 1 << 20)],
        CorruptImage,
        "CRYPTO header extension only expected with LUKS encryption method",
        True,
    ),
    *(
        (
            f"compression {kind} {bit}",
            [(104, "B", kind), (72, "Q", bit)],
            UnsupportedFeature,
            f"qcow2: unknown compression type: {kind}",
            True,
        )
        for kind in (2, 255)
        for bit in (0, 8)
    ),
    (
        "zstd without bit",
        [(104, "B", 1)],
        CorruptImage,
        "qcow2: Compression type incompatible feature bit must be set",
        True,
    ),
    (
        "zlib with bit",
        [(72, "Q", 8)],
        CorruptImage,
        "qcow2: Compression type incompatible feature bit must not be set",
        True,
    ),
    ("extended L2, 512", [(72, "Q", 16), (20, "I", 9)], InvalidImage, "Unsupported subcluster size: 16", True),
    ("extended L2, 8k", [(72, "Q", 16), (20, "I", 13)], InvalidImage, "Unsupported subcluster size: 256", True),
    (
        "unknown features",
        [(72, "Q", 0x8000000000000060)],
        UnsupportedFeature,
        "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000060",
        True,
    ),
    ("backing offset", [(8, "QI", 1 << 63, 4)], InvalidImage, "Invalid backing file offset", True),
    ("backing in the fields", [(8, "QI", 40, 4)], InvalidImage, "Invalid backing file offset", False),
    ("backing size", [(8, "QI", 0x200, 1024)], InvalidImage, "Backing file name too long", True),
    ("backing size max", [(8, "QI", 0x200, 2**32 - 1)], InvalidImage, "Backing file name too long", True),
    ("backing over the end", [(8, "QI", 65535, 2)], InvalidImage, "Backing file name too long", True),
    ("backing NUL", [(8, "QI", 0x200, 3)], InvalidImage, "Backing file name contains a NUL or a line break", False),
    (
        "backing newline",
        [(8, "QI", 0x200, 3), (0x200, "3s", b"a\nb")],
        InvalidImage,
        "Backing file name contains a NUL or a line break",
        False,
    ),
    ("extension 2^31", [(112, "II", 0x12345678, 2**31 - 1)], InvalidImage, "Header extension too large", True),
    ("extension over", [(112, "II", 0x12345678, 0xFF89)], InvalidImage, "Header extension too large", True),
    (
        "backing format",
        [(112, "II", BACKING_FORMAT, 16)],
        InvalidImage,
        "ERROR: ext_backing_format: len=16 too large (>=16)",
        True,
    ),
]


@pytest.mark.parametrize(("pokes", "kind", "message"), [case[1:4] for case in CASES], ids=[case[0] for case in CASES])
def test_refused(pokes, kind, message):
    with pytest.raises(BlockError) as caught:
        parse_header(poked(*pokes), "x.qcow2", FILE_LENGTH)
    assert type(caught.value) is kind
    assert str(caught.value) == message
    assert caught.value.filename == "x.qcow2"


@pytest.mark.oracle
@pytest.mark.slow
def test_the_words_are_qemus(tmp_path):
    require("qemu-img")
    path = tmp_path / "x.qcow2"
    for name, pokes, _, message, as_qemu in CASES:
        if not as_qemu:
            continue
        path.write_bytes(poked(*pokes).ljust(FILE_LENGTH, b"\0"))
        done = qemu_img("info", "-f", "qcow2", path, check=False)
        assert done.stderr == f"qemu-img: Could not open '{path}': {message}\n", name


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("length", [0, 3, 4, 8, 23, 24, 71, 72, 99, 103])
def test_too_short(version, length):
    data = serialise(Header(version, 16, 0, 0, 0, 0x10000, 1))[:length]
    with pytest.raises((InvalidImage, UnsupportedFeature)):
        parse_header(data, "x", length)


@pytest.mark.parametrize("length", [104, 112, 511, 512])
def test_short_file_is_padded(length):
    empty = serialise(Header(3, 16, 0, 0, 0, 0x10000, 1))[:length]
    assert parse_header(empty, "x", length).size == 0


def test_l1_may_end_in_the_cluster_at_the_end_of_the_file():
    assert parse_header(GOOD, "x", 0x30000).l1_table_offset == 0x30000
    assert parse_header(GOOD, "x", 0x20009).l1_table_offset == 0x30000
    with pytest.raises(CorruptImage):
        parse_header(GOOD, "x", 0x20000)


def test_a_check_sees_more():
    assert parse_header(poked((56, "I", 0)), "x", FILE_LENGTH, True).refcount_table_clusters == 0
    assert parse_header(poked((40, "Q", 1 << 40)), "x", FILE_LENGTH, True).l1_table_offset == 1 << 40


def test_tables_over_the_header_can_be_opened():
    assert parse_header(poked((40, "Q", 0)), "x", FILE_LENGTH).l1_table_offset == 0
    assert parse_header(poked((40, "Q", 0x10000)), "x", FILE_LENGTH).l1_table_offset == 0x10000


def test_unknown_feature_is_named_by_the_image():
    table = struct.pack(">BB46s", 0, 5, b"quantum \x07clusters") + struct.pack(">BB46s", 1, 6, b"not this kind")
    data = poked((72, "Q", 0x60), (112, f"II{len(table)}s", FEATURE_NAMES, len(table), table))
    with pytest.raises(UnsupportedFeature) as caught:
        parse_header(data, "x", FILE_LENGTH)
    assert caught.value.features == ("quantum \\x07clusters", "Unknown incompatible feature: 40")


def test_known_flags_are_not_refused():
    header = parse_header(poked((72, "Q", 3), (80, "QQ", 2**64 - 1, 2**64 - 1)), "x", FILE_LENGTH)
    assert header.dirty
    assert header.corrupt
    assert header.lazy_refcounts


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from("BHIQ"), st.integers(0, 2**64 - 1)), max_size=6))
def test_any_bytes_give_a_header_or_a_typed_error(pokes):
    data = poked(*((offset, form, value % (1 << (8 * struct.calcsize(">" + form)))) for offset, form, value in pokes))
    try:
        header = parse_header(data, "x", FILE_LENGTH)
    except (InvalidImage, CorruptImage, UnsupportedFeature):
        return
    assert header.l1_entries_needed <= header.l1_size <= header.max_l1_size
    assert header.cluster_size <= 2 << 20


def snapshot(extra_size=16, id_size=1, name_size=2, extra=b"", name=b""):
    """An entry of the snapshot table."""
    return struct.pack(">QIHHIIQII", 0, 0, id_size, name_size, 0, 0, 0, 0, extra_size) + extra + name


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (snapshot(extra_size=1025), "Too much extra metadata in snapshot table entry 0"),
        (snapshot(extra_size=2**32 - 1), "Too much extra metadata in snapshot table entry 0"),
        (snapshot(0, 0, 0) + snapshot(extra_size=1 << 20), "Too much extra metadata in snapshot table entry 1"),
    ],
)
async def test_damaged_snapshot_table(entries, message):
    data = poked((60, "IQ", 2, 0x30000)).ljust(0x30000, b"\0") + entries
    with pytest.raises(CorruptImage, match=message) as caught:
        await read_header(MemoryIO(data), "x.qcow2")
    assert caught.value.filename == "x.qcow2"
    assert (await read_header(MemoryIO(data), "x.qcow2", for_check=True)).nb_snapshots == 2


async def test_snapshot_names_are_bytes():
    data = poked((60, "IQ", 2, 0x30000)).ljust(0x30000, b"\0")
    data += snapshot(24, 1, 2, struct.pack(">QQQ", 1 << 40, 512, 0), b"7\xff\n").ljust(72, b"\0") + snapshot(0, 0, 0)
    file = MemoryIO(data)
    entries, nbytes = await read_snapshot_table(file, await read_header(file, "x"))
    assert (entries[0].id, entries[0].name) == (b"7", b"\xff\n")
    assert (entries[0].vm_state_size, entries[0].disk_size, entries[1].disk_size) == (1 << 40, 512, None)
    assert nbytes == 72 + 40


@pytest.mark.slow
async def test_as_many_snapshots_as_there_may_be():
    """Names that go on behind the end of the file, 65,536 times: bounded by the size of a table."""
    data = poked((60, "IQ", 65536, 0x30000)).ljust(0x30000, b"\0")
    data += snapshot(0, 65535, 65535).ljust(131112, b"\0") * 520
    with pytest.raises(CorruptImage, match="Snapshot table is too big"):
        await read_header(MemoryIO(data), "x")
