"""The header: what QEMU writes is read, and written again, byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.base.errors import OptionError
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2 import header as hd
from aioblock.drivers.formats.qcow2.extensions import Extension
from aioblock.drivers.formats.qcow2.header import Header, parse_header, serialise
from tests.kit.memory_io import MemoryIO
from tests.kit.oracle import qemu_img, require

KINDS = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M",
    "extended_l2=on",
    "refcount_bits=1",
    "refcount_bits=64",
    "compression_type=zstd",
    "lazy_refcounts=on",
    "compat=0.10,backing_file=below,backing_fmt=raw",
    "backing_file=below,backing_fmt=qcow2",
    "data_file=data.raw",
]


@pytest.mark.oracle
@pytest.mark.parametrize("options", KINDS)
def test_read_and_written_again(tmp_path, options, monkeypatch):
    require("qemu-img")
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-o", options, "a.qcow2", "10M")
    data = (tmp_path / "a.qcow2").read_bytes()
    header = parse_header(data, "a.qcow2", len(data))
    wanted = dict(pair.split("=") for pair in options.split(","))
    assert header.version == (2 if wanted.get("compat") == "0.10" else 3)
    assert header.size == 10 << 20
    assert header.extended_l2 == ("extended_l2" in wanted)
    assert header.refcount_bits == int(wanted.get("refcount_bits", 16))
    assert header.backing_file == wanted.get("backing_file")
    assert header.backing_format == wanted.get("backing_fmt")
    assert header.data_file == wanted.get("data_file")
    assert header.lazy_refcounts == ("lazy_refcounts" in wanted)
    assert header.l1_entries_needed == header.l1_size
    assert serialise(header) == data[: header.cluster_size].ljust(header.cluster_size, b"\0")


def new(**changes):
    fields = {
        "version": 3,
        "cluster_bits": 16,
        "size": 1 << 30,
        "l1_size": 2,
        "l1_table_offset": 0x30000,
        "refcount_table_offset": 0x10000,
        "refcount_table_clusters": 1,
    }
    return Header(**(fields | changes))


def parsed(header):
    return parse_header(serialise(header), "x", 1 << 40)


def test_geometry_of_standard_entries():
    header = new()
    assert (header.cluster_size, header.l2_entry_size, header.l2_bits, header.l2_entries) == (65536, 8, 13, 8192)
    assert (header.subclusters_per_cluster, header.subcluster_size) == (1, 65536)
    assert (header.refcount_bits, header.max_refcount, header.refcount_block_entries) == (16, 65535, 32768)
    assert header.refcount_table_size == 8192
    assert (header.csize_shift, header.csize_mask) == (54, 255)
    assert header.compressed_offset_mask == (1 << 54) - 1
    assert header.max_size == (4 << 20) << 29
    assert header.l1_entries_needed == 2


def test_geometry_of_extended_entries():
    header = new(incompatible_features=hd.INCOMPAT_EXTENDED_L2)
    assert (header.l2_entry_size, header.l2_bits, header.l2_entries) == (16, 12, 4096)
    assert (header.subclusters_per_cluster, header.subcluster_size) == (32, 2048)
    assert header.l1_entries_needed == 4


@given(st.sampled_from([0, 1, 512, (1 << 29) - 512, 1 << 29, (1 << 29) + 512, 1 << 50]))
def test_l1_entries_needed(size):
    assert new(size=size).l1_entries_needed == (size + (1 << 29) - 1) // (1 << 29)


def test_unknown_things_are_kept():
    header = new(
        header_length=128,
        unknown_fields=b"the future......",
        extensions=[Extension(0x12345678, b"abc"), Extension(ext.BACKING_FORMAT, b"raw"), Extension(1, b"")],
        backing_file="base/\udcff.img",
        compatible_features=1 << 40,
        autoclear_features=1 << 41,
    )
    again = parsed(header)
    assert again == header
    assert again.backing_file_size == len(b"base/\xff.img")
    assert serialise(again) == serialise(header)


def test_version_2_has_none_of_the_new_fields():
    header = new(version=2, refcount_order=4)
    again = parsed(header)
    assert again.header_length == 72
    assert again.refcount_order == 4
    assert serialise(again)[72:80] == bytes(8)


def test_header_without_compression_type_stays_short():
    header = new(header_length=104, extensions=[Extension(0x12345678, b"abc")])
    again = parsed(header)
    assert again.header_length == 104
    assert again.extensions == header.extensions


def test_what_does_not_fit_is_refused():
    with pytest.raises(OptionError, match="No space left on device"):
        serialise(new(cluster_bits=9, backing_file="x" * 400))
    for name in ("x" * 1024, "a\nb", "a\0b"):
        with pytest.raises(OptionError, match="Backing file name"):
            serialise(new(backing_file=name))


@pytest.mark.parametrize(
    ("write", "change", "length"),
    [
        (hd.features_field, {"incompatible_features": 3, "compatible_features": 1, "autoclear_features": 1}, 24),
        (hd.l1_field, {"l1_size": 77, "l1_table_offset": 0x770000}, 12),
        (hd.refcount_table_field, {"refcount_table_offset": 0x880000, "refcount_table_clusters": 5}, 12),
        (hd.snapshots_field, {"nb_snapshots": 3, "snapshots_offset": 0x990000}, 12),
        (hd.size_field, {"size": 1 << 29}, 8),
    ],
)
def test_a_single_write_changes_just_these_fields(write, change, length):
    before = bytearray(serialise(new()))
    offset, data = write(new(**change))
    assert len(data) == length
    before[offset : offset + length] = data
    assert offset + length <= 512
    assert bytes(before) == serialise(new(**change))


@pytest.mark.parametrize("cluster_bits", [9, 16, 21])
async def test_read_header_reads_one_cluster_at_most(cluster_bits):
    name = "b" * 300
    header = new(cluster_bits=cluster_bits, size=1 << 20, l1_size=32, backing_file=name)
    header.l1_table_offset = 3 << cluster_bits
    header.refcount_table_offset = 1 << cluster_bits
    file = MemoryIO(serialise(header) + bytes(4 << cluster_bits))
    assert (await hd.read_header(file, "x")).backing_file == name
    assert max(call.offset + call.nbytes for call in file.calls("pread")) <= max(4096, header.cluster_size)


def test_copy_is_a_copy():
    header = new()
    copy = hd.copy_of(header)
    copy.size = 0
    copy.extensions.append(Extension(1, b""))
    assert header == new()
