"""What an image tells about itself, next to what qemu-img says of it."""

import json

import pytest

import aioblock
from aioblock.base.errors import CorruptImage
from aioblock.core.images import InnerName
from aioblock.drivers.formats.qcow2.bitmap_directory import read_bitmap_directory
from aioblock.drivers.formats.qcow2.header import Header, parse_header
from aioblock.drivers.formats.qcow2.info import describe
from tests.kit.memory_io import MemoryIO
from tests.kit.oracle import qemu_img, require


async def described(path):
    data = path.read_bytes()
    header = parse_header(data[: 2 << 20], str(path), len(data))
    return describe(header)


def said(path):
    """The lines and the JSON data of qemu-img."""
    text = qemu_img("info", path).stdout
    lines = text.partition("Format specific information:\n")[2].splitlines()
    data = json.loads(qemu_img("info", "--output=json", path).stdout)["format-specific"]["data"]
    return [line[4:] for line in lines], data


@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [
        "compat=1.1",
        "compat=0.10",
        "extended_l2=on,lazy_refcounts=on",
        "compression_type=zstd,refcount_bits=64,cluster_size=4k",
        "data_file=data",
        "data_file=data,data_file_raw=on",
    ],
)
async def test_as_qemu_says_it(tmp_path, monkeypatch, options):
    require("qemu-img")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "1M")
    info = await described(path)
    lines, data = said(path)
    assert list(info.lines) == lines
    assert json.dumps(info.specific) == json.dumps(data)


@pytest.mark.oracle
async def test_bitmaps(tmp_path):
    require("qemu-img")
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("bitmap", "--add", path, "first")
    qemu_img("bitmap", "--add", "--disable", "-g", "4096", path, "second")
    async with await aioblock.open(path, format="qcow2") as disk:
        info = disk.info()
    lines, data = said(path)
    assert list(info.lines) == lines
    assert info.specific == data
    assert [entry["name"] for entry in info.specific["bitmaps"]] == ["first", "second"]


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0x50000, bytes(8), "doesn't satisfy the constraints"),
        (0x50008, b"\xff\xff\xff\xff", "doesn't satisfy the constraints"),
        (0x5000C, b"\0\0\0\x80", "doesn't satisfy the constraints"),
        (0x50011, b"\x08", "doesn't satisfy the constraints"),
        (0x50012, b"\0\0", "doesn't satisfy the constraints"),
        (0x50012, b"\x04\0", "Broken bitmap directory"),
        (0x50014, b"\0\0\0\x08", "Broken bitmap directory"),
        (0x200, b"\0\0\0\x02", "Less bitmaps found"),
    ],
)
async def test_damaged_bitmap_directory(tmp_path, offset, value, message):
    require("qemu-img")
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("bitmap", "--add", path, "first")
    data = bytearray(path.read_bytes())
    assert data[0x50018:0x5001D] == b"first"
    data[offset : offset + len(value)] = value
    header = parse_header(bytes(data), "x", len(data))
    with pytest.raises(CorruptImage, match=message):
        await read_bitmap_directory(MemoryIO(data), header)


def test_facts_beside_the_lines():
    header = Header(3, 16, 1 << 20, 1, 0x30000, 0x10000, 1, backing_file="below", incompatible_features=3)
    info = describe(header)
    assert info.cluster_size == 65536
    assert info.dirty
    assert not info.encrypted
    assert info.backing == InnerName("below", None)
    assert "corrupt: true" in info.lines
    assert describe(Header(3, 16, 0, 0, 0, 0, 1, crypt_method=1)).encrypted
    assert describe(Header(3, 16, 0, 0, 0, 0, 1)).backing is None
