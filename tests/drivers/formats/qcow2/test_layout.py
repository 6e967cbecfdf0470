"""Plans of new images: every cluster has one use, and there is a refcount for each."""

import pytest

from aioblock.base.errors import OptionError
from aioblock.drivers.formats.qcow2.features import INCOMPAT_EXTENDED_L2
from aioblock.drivers.formats.qcow2.header import Header
from aioblock.drivers.formats.qcow2.layout import contiguous, interleaved


def header_for(size, cluster_bits, refcount_order=4, extended=False):
    header = Header(3, cluster_bits, size, 0, 0, 0, 0, refcount_order=refcount_order)
    header.incompatible_features = INCOMPAT_EXTENDED_L2 if extended else 0
    header.l1_size = header.l1_entries_needed
    return header


def uses(layout, header):
    """Each run of clusters and what it is for, in order."""
    runs = [(0, 1, "header"), (layout.refcount_table, layout.refcount_table_clusters, "refcount table")]
    if header.l1_size:
        runs.append((layout.l1, -(-8 * header.l1_size >> header.cluster_bits), "L1"))
    runs += [(block, 1, "refcount block") for block in layout.blocks]
    runs += [(table, 1, "L2") for table in layout.l2]
    left = -(-header.size >> header.cluster_bits)
    for first in layout.data:
        runs.append((first, min(left, header.l2_entries), "data"))
        left -= min(left, header.l2_entries)
    return sorted(runs)


def assert_sound(layout, header):
    at = 0
    for first, count, what in uses(layout, header):
        assert first == at, what
        at += count
    assert at == layout.end
    assert len(layout.blocks) << header.refcount_block_bits >= layout.end
    assert (len(layout.blocks) - 1) << header.refcount_block_bits < layout.end
    assert layout.refcount_table_clusters << header.cluster_bits >= 8 * len(layout.blocks)


SIZES = [0, 512, 65536, 1 << 20, 10 << 20, 128 << 20]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("cluster_bits", "order", "extended"), [(9, 6, False), (9, 4, False), (12, 0, False), (14, 4, True), (16, 4, False)]
)
def test_preallocated(size, cluster_bits, order, extended):
    header = header_for(size, cluster_bits, order, extended)
    mixed = interleaved(header, preallocate=True)
    apart = contiguous(header)
    for layout in (mixed, apart):
        assert_sound(layout, header)
        assert len(layout.l2) == len(layout.data) == header.l1_size
    assert all(table + 1 <= first for table, first in zip(mixed.l2, mixed.data, strict=True))


@pytest.mark.parametrize("size", [0, 512, 1 << 30, 1 << 35, 1 << 37])
@pytest.mark.parametrize("order", [0, 4, 6])
def test_empty(size, order):
    header = header_for(size, 9, order)
    layout = interleaved(header, preallocate=False)
    assert_sound(layout, header)
    assert not layout.l2
    assert not layout.data


@pytest.mark.slow
def test_refcount_table_larger_than_what_its_first_block_describes():
    header = header_for(300 << 20, 9, 6)
    layout = interleaved(header, preallocate=True)
    assert layout.refcount_table_clusters > header.refcount_block_entries
    assert_sound(layout, header)


def test_more_refcount_blocks_than_a_table_holds():
    with pytest.raises(OptionError, match="too large for file format"):
        interleaved(header_for(64 << 30, 9, 6), preallocate=True)
    with pytest.raises(OptionError, match="too large for file format"):
        contiguous(header_for(64 << 30, 9, 6))
