"""Header extensions: parsing, writing, feature names."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.errors import InvalidImage
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.extensions import Extension
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR, INCOMPATIBLE
from tests.kit.oracle import qemu_img, require


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 0xFFFF), st.binary(max_size=40)).map(lambda pair: Extension(*pair))))
def test_round_trip(extensions):
    area = ext.serialise_extensions(extensions)
    assert len(area) % 8 == 0
    assert ext.parse_extensions(area, 112) == extensions
    assert ext.parse_extensions(area + b"\xff" * 24, 112) == extensions


@pytest.mark.parametrize("area", [b"", bytes(7)])
def test_no_room_for_any(area):
    assert ext.parse_extensions(area, 72) == []


def pack(*pairs):
    return b"".join(struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in pairs)


@pytest.mark.parametrize(
    ("area", "message", "offset"),
    [
        (struct.pack(">II", 5, 0x7FFFFFFF) + bytes(64), "Header extension too large", 112),
        (pack((5, b"x")) + struct.pack(">II", 6, 9) + bytes(8), "Header extension too large", 128),
        (pack((5, b"x")), "Header extensions have no end", 128),
        (b"\x12\x34\x56\x78", "Header extension too large", 112),
        (pack((ext.BACKING_FORMAT, b"raw"), (ext.BACKING_FORMAT, b"raw")), "appears twice", 128),
        (pack((5, b"")) * 8192, "Too many header extensions", 112 + 8 * ext.MAX_EXTENSIONS),
    ],
)
def test_refused(area, message, offset):
    with pytest.raises(InvalidImage, match=message) as caught:
        ext.parse_extensions(area, 112)
    assert caught.value.offset == offset


def test_unknown_types_may_repeat():
    area = pack((7, b"a"), (7, b"b")) + bytes(8)
    assert ext.parse_extensions(area, 112) == [Extension(7, b"a"), Extension(7, b"b")]


def test_find():
    extensions = [Extension(7, b"a"), Extension(8, b"b")]
    assert ext.find(extensions, 8) == b"b"
    assert ext.find(extensions, 9) is None


@pytest.mark.oracle
def test_feature_table_is_qemus(tmp_path):
    require("qemu-img")
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    assert ext.parse_extensions(path.read_bytes()[112:65536], 112) == [ext.feature_table()]


def test_feature_names():
    names = ext.parse_feature_table(ext.feature_table().data)
    assert names[INCOMPATIBLE, 1] == "corrupt bit"
    assert names[AUTOCLEAR, 0] == "bitmaps"
    assert len(names) == 8


def test_feature_names_that_make_no_sense():
    table = struct.pack(">BB46s", 0, 5, b"\x1b[2Jno\nend" + b"x" * 36)  # no NUL
    table += struct.pack(">BB46s", 0, 6, b"\xff\xfe")
    table += struct.pack(">BB46s", 0, 99, b"no such bit")
    table += struct.pack(">BB46s", 0, 5, b"again")
    table += b"\0\7cut short"
    names = ext.parse_feature_table(table)
    assert set(names) == {(0, 5), (0, 6), (0, 7)}
    assert names[0, 7] == "cut short"
    assert names[0, 5].startswith("\\x1b[2Jno\\nend")
    assert all(name.isprintable() for name in names.values())


def bitmaps(count=1, reserved=0, size=24, offset=0x30000):
    return struct.pack(">IIQQ", count, reserved, size, offset)


def test_bitmaps_extension():
    assert ext.parse_bitmaps(bitmaps(), 65536) == (1, 24, 0x30000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bitmaps()[:-1], "Invalid extension length"),
        (bitmaps(reserved=1), "Reserved field is not zero"),
        (bitmaps(count=0), "zero bitmaps"),
        (bitmaps(count=65536), "exceeding the QEMU supported maximum of 65535"),
        (bitmaps(offset=0x30200), "invalid bitmap directory offset"),
        (bitmaps(size=0), "directory size is zero"),
        (bitmaps(size=1 << 40), "exceeds the maximum supported size"),
    ],
)
def test_bitmaps_extension_refused(data, message):
    with pytest.raises(InvalidImage, match=message):
        ext.parse_bitmaps(data, 65536)
