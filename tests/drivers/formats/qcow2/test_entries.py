"""Encodings of table entries."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.drivers.formats.qcow2 import entries as e

COPIED = e.OFLAG_COPIED


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (0, e.UNALLOCATED),
        (COPIED, e.UNALLOCATED),
        (1, e.ZERO_PLAIN),
        (COPIED | 0x50001, e.ZERO_ALLOC),
        (COPIED | 0x50000, e.NORMAL),
        (0x50000, e.NORMAL),
        (e.OFLAG_COMPRESSED | 0x50001, e.COMPRESSED),
        (e.OFLAG_COMPRESSED, e.COMPRESSED),
    ],
)
def test_cluster_type(entry, kind):
    assert e.cluster_type(entry) == kind


@pytest.mark.slow
@given(st.data(), st.integers(9, 21))
def test_compressed_entry_covers_the_stream(data, cluster_bits):
    nbytes = data.draw(st.integers(1, 1 << cluster_bits))
    offset = data.draw(st.integers(0, (1 << (70 - cluster_bits)) - 1))
    try:
        entry = e.compressed_entry(offset, nbytes, cluster_bits)
    except ValueError:
        # Only a stream that is no smaller than a cluster and does not begin at a sector is too long for the entry.
        assert (offset % 512 + nbytes + 511) // 512 > 1 << (cluster_bits - 8)
        return
    start, longest = e.compressed_extent(entry, cluster_bits)
    assert e.cluster_type(entry) == e.COMPRESSED
    assert start == offset
    assert nbytes <= longest < nbytes + 512
    assert (start + longest) % 512 == 0


def test_compressed_entry_as_qemu_writes_it():
    # 64 KiB clusters; two streams of 79 bytes one behind the other in the cluster at 0xa0000
    assert e.compressed_entry(0xA0000, 79, 16) == 0x40000000000A0000
    assert e.compressed_entry(0xA004F, 79, 16) == 0x40000000000A004F
    assert e.compressed_extent(0x40000000000A004F, 16) == (0xA004F, 512 - 79)


@pytest.mark.parametrize("arguments", [(0, 0, 16), (1 << 54, 512, 16), (-1, 1, 16), (0, 2 * 65536 + 1, 16)])
def test_compressed_entry_refuses(arguments):
    with pytest.raises(ValueError, match="no compressed entry"):
        e.compressed_entry(*arguments)


@pytest.mark.slow
@given(st.integers(0, (1 << 64) - 1), st.sampled_from([0, COPIED | 0x50000, e.OFLAG_COMPRESSED | 0x50000]))
def test_subcluster_run_is_what_the_single_ones_say(bitmap, entry):
    kinds = [e.subcluster_type(entry, bitmap, index) for index in range(32)]
    at = 0
    while at < 32:
        kind, count = e.subcluster_run(entry, bitmap, at)
        assert count >= 1
        assert kinds[at : at + count] == [kind] * count
        # Two invalid neighbours may be wrong in different ways, and then come one by one.
        assert at + count == 32 or kinds[at + count] != kind or kind == e.INVALID
        assert e.subcluster_run(entry, bitmap, at, at + 1) == (kind, 1)
        at += count


@pytest.mark.slow
@given(st.integers(0, (1 << 64) - 1), st.sampled_from([0, COPIED | 0x50000]))
def test_invalid_bitmap_is_an_invalid_subcluster(bitmap, entry):
    kinds = {e.subcluster_type(entry, bitmap, index) for index in range(32)}
    assert e.invalid_bitmap(entry, bitmap) == (e.INVALID in kinds)


def test_compressed_cluster_has_no_bitmap():
    assert e.invalid_bitmap(e.OFLAG_COMPRESSED | 512, 1 << 32)
    assert not e.invalid_bitmap(e.OFLAG_COMPRESSED | 512, 0)


def test_subcluster_mask():
    assert e.subcluster_mask(0, 32) == e.ALLOC_ALL
    assert e.subcluster_mask(3, 2) == 0b11000
    assert e.subcluster_mask(0, 32) << 32 == e.ZERO_ALL


@pytest.mark.slow
@given(st.lists(st.integers(0, (1 << 64) - 1)))
def test_tables_are_big_endian(values):
    data = b"".join(value.to_bytes(8, "big") for value in values)
    table = e.table_from_bytes(data)
    assert list(table) == values
    assert e.table_to_bytes(table) == data
    assert list(table) == values
    assert e.table_to_bytes(values) == data
    assert isinstance(table, array)


@pytest.mark.slow
@given(st.data(), st.integers(0, 6))
def test_refcounts_of_every_width(data, order):
    bits = 1 << order
    count = 16 * 8 // bits
    values = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=count, max_size=count))
    block = bytearray(b"\xa5" * 16)
    for index in data.draw(st.permutations(range(count))):
        e.set_refcount(block, index, order, values[index])
    assert [e.get_refcount(block, index, order) for index in range(count)] == values


def test_narrow_refcounts_begin_at_the_lowest_bit():
    block = bytearray(2)
    e.set_refcount(block, 0, 0, 1)
    e.set_refcount(block, 9, 0, 1)
    assert block == b"\x01\x02"
    e.set_refcount(block, 1, 2, 0xF)
    assert block == b"\xf1\x02"


@pytest.mark.parametrize("order", range(7))
def test_refcount_that_is_too_wide(order):
    block = bytearray(16)
    with pytest.raises(OverflowError):
        e.set_refcount(block, 0, order, 1 << (1 << order))
    assert block == bytes(16)
