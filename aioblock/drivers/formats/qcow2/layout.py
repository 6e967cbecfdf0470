"""Where everything lies in a new image.

The clusters of a new image are used without a gap, from the first to the last, so each has the refcount one. The
refcount table and the first refcount block come right behind the header; a refcount block for clusters further on is
put where the first of these is handed out, and is described by itself or by a block that may have to be made for it.

Two shapes, the ones of `qemu-img create`:

    off, metadata   header, refcount table, refcount block, L1, then each L2 table before the data it maps
    falloc, full    header, first L2 table, refcount block, L1, all other refcount blocks, refcount table, all the data
                    in one piece, the other L2 tables

Behind all of that lies the LUKS header of an encrypted image.

Numbers here are clusters, unless a name says otherwise.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from aioblock.base.errors import OptionError
from aioblock.drivers.formats.qcow2.header import Header

__all__ = ["Layout", "contiguous", "interleaved"]


@dataclass(slots=True)
class Layout:
    """The plan of a new image."""

    refcount_table: int
    refcount_table_clusters: int
    l1: int
    """First cluster of the L1 table, which has no cluster where the image has no size."""
    end: int = 0
    """The first cluster that is not used."""
    blocks: list[int] = field(default_factory=list)
    """The refcount blocks, in the order of what they describe."""
    l2: "array[int]" = field(default_factory=lambda: array("Q"))
    """The L2 tables, in the order of what they map."""
    data: "array[int]" = field(default_factory=lambda: array("Q"))
    """The first data cluster of each L2 table; the others follow it. Clusters of the data file, where there is one."""
    encryption_header: int = 0
    """The first cluster of the LUKS header, where there is one."""


def interleaved(header: Header, *, preallocate: bool) -> Layout:
    """The plan of an image without data clusters, or with each L2 table in front of its data. Raises: OptionError."""
    if preallocate:
        _refuse_too_large(header)
    clusters = 1
    while True:  # the refcount table cannot grow later: the first size that is enough
        layout = _interleaved(header, clusters, preallocate)
        needed = _table_clusters(header, len(layout.blocks))
        if needed <= clusters:
            return layout
        clusters = needed


def _interleaved(header: Header, table_clusters: int, preallocate: bool) -> Layout:
    plan = _Sequence(header, 1 + table_clusters)
    layout = Layout(1, table_clusters, 0)
    plan.cover_range(0, 1 + table_clusters)
    l1_clusters = _l1_clusters(header)
    if l1_clusters:
        layout.l1 = plan.take(l1_clusters)
    if preallocate:
        for count in _data_clusters(header):
            layout.l2.append(plan.take(1))
            layout.data.append(len(layout.data) * header.l2_entries if header.has_data_file else plan.take(count))
    if clusters := _encryption_clusters(header):
        layout.encryption_header = plan.take(clusters)
    layout.end = plan.next
    layout.blocks = [plan.blocks[number] for number in range(len(plan.blocks))]
    return layout


class _Sequence:
    """Hands out clusters one after the other, and puts refcount blocks where they are needed."""

    def __init__(self, header: Header, start: int) -> None:
        self.shift = header.refcount_block_bits
        self.next = start
        self.blocks: dict[int, int] = {}

    def take(self, count: int) -> int:
        """The first of `count` clusters in a row."""
        first = self.next
        self.next += count
        self.cover_range(first, count)
        return first

    def cover_range(self, first: int, count: int) -> None:
        """See that there are refcounts for these clusters."""
        for number in range(first >> self.shift, (first + count - 1 >> self.shift) + 1):
            self.cover(number)

    def cover(self, number: int) -> None:
        """See that refcount block `number` exists."""
        if number not in self.blocks:
            self.blocks[number] = self.next
            self.next += 1
            self.cover(self.blocks[number] >> self.shift)


def contiguous(header: Header) -> Layout:
    """The plan of an image whose data lies in one piece. Raises: OptionError."""
    _refuse_too_large(header)
    counts = list(_data_clusters(header))
    if not counts:
        return interleaved(header, preallocate=True)
    l1_clusters = _l1_clusters(header)
    data = sum(counts)
    encryption = _encryption_clusters(header)
    fixed = 1 + l1_clusters + len(counts) + data + encryption
    blocks = table = 1
    while True:
        end = fixed + blocks + table
        needed = -(-end >> header.refcount_block_bits)
        if needed <= blocks and _table_clusters(header, needed) <= table:
            break
        blocks, table = max(blocks, needed), max(table, _table_clusters(header, needed))
    others = 3 + l1_clusters
    layout = Layout(others + blocks - 1, table, 3, end, [2, *range(others, others + blocks - 1)])
    at = layout.refcount_table + table
    rest = at + data
    layout.l2.append(1)
    layout.l2.extend(range(rest, rest + len(counts) - 1))
    for count in counts:
        layout.data.append(at)
        at += count
    if encryption:
        layout.encryption_header = end - encryption
    return layout


def _encryption_clusters(header: Header) -> int:
    """Clusters of the LUKS header; 0: there is none."""
    return -(-header.encryption_header[1] >> header.cluster_bits) if header.encryption_header is not None else 0


def _l1_clusters(header: Header) -> int:
    return -(-8 * header.l1_size >> header.cluster_bits)


def _refuse_too_large(header: Header) -> None:
    """See at once what a plan would find out after a long time: no refcount table describes all the data clusters."""
    _table_clusters(header, -(-header.size >> header.cluster_bits) >> header.refcount_block_bits)


def _table_clusters(header: Header, blocks: int) -> int:
    if blocks > header.max_refcount_table_size:
        raise OptionError(
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)", option="size"
        )
    return -(-8 * blocks >> header.cluster_bits)


def _data_clusters(header: Header) -> Iterator[int]:
    """How many data clusters each L2 table maps."""
    left = -(-header.size >> header.cluster_bits)
    while left:
        yield min(left, header.l2_entries)
        left -= min(left, header.l2_entries)
