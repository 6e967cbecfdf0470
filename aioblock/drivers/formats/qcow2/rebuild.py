"""Rebuilding the whole refcount structure: blocks and table, in clusters that nothing refers to.

The new structure counts the old one as in use, so that either of them is valid until the header names the new one, by
one write of 12 bytes. What was counted in vain is left to the comparison that follows.

A cluster is free if it is referenced neither in the file nor behind its end: a file that lost its tail in a power cut
is full of references to what is not there any more, and new clusters in their place would belong to two.
"""

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from aioblock.drivers.formats.qcow2.header import Header, refcount_table_field
from aioblock.drivers.formats.qcow2.references import Ints, References, Words, distinct, encode_refcounts
from aioblock.drivers.formats.qcow2.validation import MAX_REFCOUNT_TABLE_BYTES

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["rebuild"]

WINDOW: Final = 1 << 16
"""How many clusters are looked at at a time for free ones."""
MAX_FAR_BLOCKS: Final = 1024
"""How many blocks are made for clusters behind the end of the file; those further away get no refcount."""


async def rebuild(file: "BlockIO", header: Header, references: References) -> Words:
    """Write a new refcount structure for the references, and switch to it; the new table is returned.

    `references` has the refcounts of the new structure as stored ones afterwards, and counts the new structure.
    Raises: OSError; then the image is as it was, unless it was the header's write that failed.
    """
    plan = await asyncio.to_thread(_Plan, header, references)
    for index, cluster in plan.blocks.items():
        data = await asyncio.to_thread(plan.block, index)
        await file.pwrite(cluster << header.cluster_bits, data)
    table = np.zeros(plan.table_clusters << header.cluster_bits >> 3, np.uint64)
    for index, cluster in plan.blocks.items():
        table[index] = cluster << header.cluster_bits
    await file.pwrite(plan.table << header.cluster_bits, table.astype(">u8").tobytes())
    await file.flush()
    header.refcount_table_offset = plan.table << header.cluster_bits
    header.refcount_table_clusters = plan.table_clusters
    await file.pwrite(*refcount_table_field(header))
    await file.flush()
    references.unreadable[:] = False
    references.stored[: len(references.count)] = references.count
    return table


class _Plan:
    """Where the new blocks and the new table go. Each block lies behind the beginning of what it describes."""

    def __init__(self, header: Header, references: References) -> None:
        self.header = header
        self.references = references
        self.shift = header.refcount_block_bits
        far = references.far.clusters() if references.far is not None else np.zeros(0, np.int64)
        if references.far is not None and references.far.overflow:
            raise OSError(errno.EFBIG, "Too many references lie behind the end of the file")
        self.end = references.nb_clusters
        """All clusters from here on are free, but for those in `far`."""
        self.far: Ints = far[far >= self.end]
        self.blocks: dict[int, int] = {}
        """The cluster of each block, by the number of the block."""
        self._searched = self._found = -1
        self._place()

    def _place(self) -> None:
        far_blocks = distinct(self.far >> self.shift)[0][:MAX_FAR_BLOCKS]
        most = MAX_REFCOUNT_TABLE_BYTES // 8
        wanted = [number for number in self._used_blocks() if number < most]
        wanted += [number for number in far_blocks.tolist() if number < most]
        self._add_blocks(wanted)
        while True:
            clusters = -(-8 * (max(self.blocks) + 1) >> self.header.cluster_bits)
            if clusters << self.header.cluster_bits > MAX_REFCOUNT_TABLE_BYTES:
                raise OSError(errno.EFBIG, "The refcount table cannot hold the references of this image")
            first = self._free_run(0, clusters)
            needed = range(first >> self.shift, (first + clusters - 1 >> self.shift) + 1)
            missing = [number for number in needed if number not in self.blocks]
            if not missing:
                break
            self._add_blocks(missing)
        self._take(first, clusters)
        self.table, self.table_clusters = first, clusters

    def _used_blocks(self) -> list[int]:
        """The numbers of the blocks that describe a cluster in use."""
        count = self.references.count
        return [
            first >> self.shift
            for first in range(0, self.end, 1 << self.shift)
            if count[first : first + (1 << self.shift)].any()
        ] or [0]

    def _add_blocks(self, wanted: list[int]) -> None:
        """Place blocks, and those that describe where they lie."""
        wanted = sorted(wanted, reverse=True)
        while wanted:
            number = wanted.pop()
            if number in self.blocks:
                continue
            start = number << self.shift
            cluster = self._free_run(start if start < self.end else 0, 1)
            self.blocks[number] = cluster
            self._take(cluster, 1)
            if cluster >> self.shift not in self.blocks:
                wanted.append(cluster >> self.shift)

    def _take(self, first: int, clusters: int) -> None:
        references = self.references
        if first + clusters > self.end:
            self.end = first + clusters
            references.grow(self.end << self.header.cluster_bits)
        references.count[first : first + clusters] = 1

    def _free_run(self, start: int, clusters: int) -> int:
        """The first place from `start` on where so many free clusters adjoin."""
        if clusters == 1 and self._searched <= start <= self._found:
            start = self._found  # nothing is free before
        searched = start
        first = self._run_in_file(start, clusters)
        for taken in self.far[np.searchsorted(self.far, first) :].tolist():
            if taken >= first + clusters:
                break
            first = taken + 1
        if clusters == 1:
            self._searched, self._found = searched, first
        return first

    def _run_in_file(self, start: int, clusters: int) -> int:
        count = self.references.count
        begun = start
        for low in range(start, self.end, WINDOW):
            high = min(low + WINDOW, self.end)
            used = np.flatnonzero(count[low:high])
            # The free runs lie between the used clusters; the first of them may have begun in an earlier window.
            starts = np.concatenate(([begun], used + low + 1))
            ends = np.concatenate((used + low, [high]))
            long = np.flatnonzero(ends - starts >= clusters)
            if long.size:
                return int(starts[long[0]])
            begun = int(starts[-1])
        return max(begun, start)

    def block(self, number: int) -> bytes:
        """The content of a block."""
        references = self.references
        first, size = number << self.shift, 1 << self.shift
        refcounts: npt.NDArray[Any] = np.zeros(size, references.stored.dtype)
        part = references.count[first : min(first + size, self.end)]
        refcounts[: len(part)] = part
        low, high = np.searchsorted(self.far, (first, first + size))
        behind = self.far[low:high]
        refcounts[behind[refcounts[behind - first] == 0] - first] = 1
        return encode_refcounts(refcounts, self.header.refcount_order)
