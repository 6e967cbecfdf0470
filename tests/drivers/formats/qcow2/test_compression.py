"""Compressed clusters: both ways, QEMU's streams, and streams made to hurt."""

import errno
import random
import tracemalloc
import zlib

import pytest
import zstandard

from aioblock.drivers.formats.qcow2 import compression, entries
from aioblock.drivers.formats.qcow2.compression import (
    COMPRESSION_LEVELS,
    compress,
    compress_all,
    compression_name,
    decompress,
    decompress_all,
)
from aioblock.drivers.formats.qcow2.features import COMPRESSION_ZLIB, COMPRESSION_ZSTD
from aioblock.drivers.formats.qcow2.header import parse_header
from tests.kit.oracle import assert_same, qemu_img, require

BOTH = [COMPRESSION_ZLIB, COMPRESSION_ZSTD]
SIZE = 65536
TEXT = (b"all work and no play makes jack a dull boy\n" * 2000)[:SIZE]


def raw_deflate(data, window=-12):
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("size", [512, SIZE, 2 << 20])
def test_round_trip(kind, size):
    data = (TEXT * 33)[:size]
    packed = compress(data, kind)
    assert packed is not None
    assert len(packed) < size
    assert decompress(packed, size, kind) == data
    assert decompress(memoryview(packed + b"the next stream" * 30), size, kind) == data
    assert decompress(bytearray(packed), size, kind) == data


@pytest.fixture(params=["isal", "zlib"])
def library(request, monkeypatch):
    """With and without the package that does it faster."""
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(compression, "_isal", lambda: None)
    return request.param


def inflate_slowly(stream):
    """The data of a stream, by zlib with a window of 4 KiB: all that it knows from one call to the next."""
    unpacker = zlib.decompressobj(-12)
    found, rest = b"", stream
    while not unpacker.eof:
        found += unpacker.decompress(rest, 777)
        rest = unpacker.unconsumed_tail
    return found


@pytest.mark.parametrize("level", [None, 1, 2, 3, 4, 9])
def test_every_level_keeps_to_the_window_of_4_kib(library, level):
    rng = random.Random(level)
    words = [rng.randbytes(rng.randrange(2, 30)) for _ in range(3000)]
    data = b"".join(rng.choices(words, k=6000))[:SIZE]
    stream = compress(data, COMPRESSION_ZLIB, level)
    assert inflate_slowly(stream) == data
    assert decompress(stream, SIZE, COMPRESSION_ZLIB) == data
    with pytest.raises(zlib.error):
        inflate_slowly(raw_deflate(data, -15))  # so the test does find one that reaches further


def test_both_libraries_refuse_a_stream_that_reaches_too_far(library):
    block = random.Random(2).randbytes(16000)
    with pytest.raises(OSError, match="compressed cluster is damaged"):
        decompress(raw_deflate((block * 5)[:SIZE], -15), SIZE, COMPRESSION_ZLIB)


@pytest.mark.parametrize("kind", BOTH)
def test_many_clusters_at_a_time(kind):
    rng = random.Random(4)
    data = TEXT + rng.randbytes(SIZE) + TEXT[:5000]
    first, none, last = compress_all(memoryview(data), SIZE, kind)
    assert none is None
    assert decompress_all([first, last + b"more"], SIZE, kind) == [TEXT, TEXT[:5000] + bytes(SIZE - 5000)]


@pytest.mark.parametrize("kind", BOTH)
def test_a_higher_level_makes_it_smaller(kind):
    rng = random.Random(6)
    words = [rng.randbytes(rng.randrange(2, 12)) for _ in range(500)]
    data = b"".join(rng.choices(words, k=20000))[:SIZE]
    levels = COMPRESSION_LEVELS[kind]
    assert len(compress(data, kind, levels[-1])) < len(compress(data, kind, levels[0]))


@pytest.mark.parametrize("kind", BOTH)
def test_what_gets_no_smaller_is_not_compressed(kind):
    assert compress(random.Random(1).randbytes(SIZE), kind) is None


def test_deflate_reaches_back_4_kib_at_most():
    block = random.Random(2).randbytes(5000)
    packed = compress(block * 2, COMPRESSION_ZLIB)  # a wider window would halve it
    assert packed is None
    assert len(raw_deflate(block * 2, -15)) < 6000


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("damage", ["empty", "cut", "short", "garbage"])
def test_damaged(kind, damage):
    packed = compress(TEXT, kind)
    data = {
        "empty": b"",
        "cut": packed[: len(packed) // 2],
        "short": compress(TEXT[: SIZE // 2], kind),
        "garbage": b"\xff" * 4096,
    }[damage]
    with pytest.raises(OSError, match="compressed cluster") as caught:
        decompress(data, SIZE, kind)
    assert caught.value.errno == errno.EIO


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOTH)
def test_bomb_gives_one_cluster_and_no_more(kind):
    bomb = raw_deflate(bytes(16 << 20)) if kind == COMPRESSION_ZLIB else zstandard.compress(bytes(16 << 20))
    tracemalloc.start()
    try:
        assert decompress(bomb, SIZE, kind) == bytes(SIZE)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_zstd_window_is_capped():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = packer.compress(TEXT) + packer.flush()
    with pytest.raises(OSError, match="compressed cluster is damaged") as caught:
        decompress(frame, SIZE, COMPRESSION_ZSTD)
    assert caught.value.errno == errno.EIO


def test_names():
    assert [compression_name(kind) for kind in BOTH] == ["zlib", "zstd"]


def guest_bytes(data):
    """The disk in an image with nothing but compressed clusters and clusters that are not there."""
    header = parse_header(data[: 2 << 20], "x", len(data))
    size = header.cluster_size
    disk = bytearray()
    for l1_entry in entries.table_from_bytes(data[header.l1_table_offset :][: 8 * header.l1_size]):
        offset = l1_entry & entries.OFFSET_MASK
        table = data[offset : offset + size] if offset else bytes(size)
        for entry in entries.table_from_bytes(table):
            cluster = bytes(size)
            if entry:
                assert entries.cluster_type(entry) == entries.COMPRESSED
                start, nbytes = entries.compressed_extent(entry, header.cluster_bits)
                cluster = decompress(data[start : start + nbytes], size, header.compression_type)
            disk += cluster
            if len(disk) >= header.size:
                return disk[: header.size]
    return disk


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", ["512", "64k", "2M"])
def test_streams_of_qemu(tmp_path, kind, cluster_size):
    require("qemu-img")
    rng = random.Random(3)
    pieces = [bytes(512), b"abcdefgh" * 64, rng.randbytes(64) * 8]
    content = b"".join(rng.choice(pieces) for _ in range(2048))
    source = tmp_path / "raw"
    source.write_bytes(content)
    image = tmp_path / "packed"
    options = f"compression_type={kind},cluster_size={cluster_size}"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, source, image)
    assert guest_bytes(image.read_bytes()) == content


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_qemu_reads_our_streams(tmp_path, kind):
    """Our stream takes the place of QEMU's in an image of one cluster."""
    require("qemu-img")
    source, image = tmp_path / "raw", tmp_path / "packed"
    source.write_bytes(bytes(range(1, 129)) * 512)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}", source, image)
    data = bytearray(image.read_bytes())
    header = parse_header(bytes(data), "x", len(data))
    (l1_entry,) = entries.table_from_bytes(data[header.l1_table_offset :][:8])
    place = l1_entry & entries.OFFSET_MASK
    (entry,) = entries.table_from_bytes(data[place : place + 8])
    start, _ = entries.compressed_extent(entry, header.cluster_bits)
    stream = compress(TEXT, header.compression_type)
    data[start:] = stream
    data[place : place + 8] = entries.table_to_bytes([entries.compressed_entry(start, len(stream), 16)])
    image.write_bytes(data)
    source.write_bytes(TEXT)
    assert_same(source, image, ("raw", "qcow2"))
