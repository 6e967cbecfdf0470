"""Where the metadata of an image lies, so that no data is written over it.

What belongs to the active image is protected always; the rest by the options `overlap-check`, with QEMU's names and
levels. A set of host clusters answers; only where metadata lies in very many clusters it is one that takes less memory
and more time, since a file that is made to hurt can name four million L2 tables.
"""

import errno
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from aioblock.drivers.formats.qcow2.entries import OFFSET_MASK

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["ALWAYS", "LEVELS", "PARTS", "ClusterSet", "ManyClusters", "collect", "load_inactive", "name_of"]

ALWAYS: Final = frozenset({"main-header", "active-l1", "active-l2", "refcount-table", "refcount-block"})
"""Protected whatever the options say."""
CONSTANT: Final = frozenset({"main-header", "active-l1", "refcount-table", "snapshot-table", "bitmap-directory"})
CACHED: Final = CONSTANT | {"active-l2", "refcount-block", "inactive-l1"}
PARTS: Final = CACHED | {"inactive-l2"}
LEVELS: Final = {"none": frozenset[str](), "constant": CONSTANT, "cached": CACHED, "all": PARTS}
"""The parts that each template protects."""

MANY: Final = 1 << 16
"""From so many entries on tables are looked at with NumPy, and kept in `ManyClusters`."""
MAX_INACTIVE_CLUSTERS: Final = 1 << 20
"""How many clusters the L1 tables of all snapshots may take."""
MAX_INACTIVE_ENTRIES: Final = 1 << 24
"""The L1 tables of all snapshots together: 128 MiB."""


class ManyClusters:
    """A set of numbers that seldom changes: 8 bytes each, in order, and what was added or taken away since."""

    def __init__(self, ordered: "array[int]") -> None:
        self._ordered = ordered
        self._added: set[int] = set()
        self._removed: set[int] = set()

    def __len__(self) -> int:
        return len(self._ordered) + len(self._added) - len(self._removed)

    def __contains__(self, cluster: int) -> bool:
        return cluster in self._added or (self._stored(cluster) and cluster not in self._removed)

    def _stored(self, cluster: int) -> bool:
        at = bisect_left(self._ordered, cluster)
        return at < len(self._ordered) and self._ordered[at] == cluster

    def add(self, cluster: int) -> None:
        """One more."""
        self.update((cluster,))

    def update(self, clusters: Iterable[int]) -> None:
        """More of them."""
        for cluster in clusters:
            self._removed.discard(cluster)
            if not self._stored(cluster):
                self._added.add(cluster)

    def difference_update(self, clusters: Iterable[int]) -> None:
        """Less of them."""
        for cluster in clusters:
            self._added.discard(cluster)
            if self._stored(cluster):
                self._removed.add(cluster)


ClusterSet = set[int] | ManyClusters


def collect(image: "Image") -> tuple[ClusterSet, ClusterSet]:
    """The host clusters that are protected, and those of L2 tables that serve twice."""
    found, twice = _tables_of(image.l1, image.cluster_bits)
    found.update(image.refcounts.block_clusters())
    found.add(0)
    for clusters in (_l1(image), _refcount_table(image), _encryption_header(image)):
        found.update(clusters)
    parts = image.options.overlap_check
    if "bitmap-directory" in parts:
        found.update(_bitmap_directory(image))
    if "snapshot-table" in parts:
        found.update(_snapshot_table(image))
    if "inactive-l1" in parts:
        budget = MAX_INACTIVE_CLUSTERS
        for clusters in _inactive_l1(image):
            budget -= len(clusters)
            if budget < 0:
                raise OSError(errno.EFBIG, "The L1 tables of the snapshots are too large")
            found.update(clusters)
    if image.inactive_l2:
        found.update(image.inactive_l2)
    return found, twice


def name_of(image: "Image", cluster: int) -> str:
    """What kind of metadata lies in a protected host cluster, as messages call it."""
    if not cluster:
        return "qcow2_header"
    if cluster in _l1(image):
        return "active L1 table"
    if cluster in _refcount_table(image):
        return "refcount table"
    if image.refcounts.is_block(cluster):
        return "refcount block"
    if cluster in _encryption_header(image):
        return "encryption header"
    if cluster in _bitmap_directory(image):
        return "bitmap directory"
    if image.header.snapshots:
        if cluster in _snapshot_table(image):
            return "snapshot table"
        if any(cluster in clusters for clusters in _inactive_l1(image)):
            return "inactive L1 table"
        if cluster in image.inactive_l2 and not _is_active_l2(image, cluster):
            return "inactive L2 table"
    return "active L2 table"


async def load_inactive(image: "Image") -> None:
    """Learn where the L2 tables of the snapshots lie, if they are to be protected; again whenever snapshots change.

    Raises: OSError.
    """
    found: set[int] = set()
    image.inactive_l2 = found
    image.metadata_clusters = None
    if "inactive-l2" not in image.options.overlap_check:
        return
    from aioblock.drivers.formats.qcow2.snapshot_find import read_l1

    entries = 0
    for snapshot in image.header.snapshots:
        entries += snapshot.l1_size
        if entries > MAX_INACTIVE_ENTRIES:
            raise OSError(errno.EFBIG, "The snapshots have too many L2 tables for overlap-check.inactive-l2")
        l1 = await read_l1(image, snapshot)
        found.update((entry & OFFSET_MASK) >> image.cluster_bits for entry in l1 if entry & OFFSET_MASK)


def _tables_of(l1: "array[int]", bits: int) -> tuple[ClusterSet, ClusterSet]:
    """The clusters of the L2 tables of an L1 table, and those that are named more than once."""
    if len(l1) > MANY:
        return _many_tables_of(l1, bits)
    found: set[int] = set()
    twice: set[int] = set()
    for entry in l1:
        if offset := entry & OFFSET_MASK:
            if offset >> bits in found:
                twice.add(offset >> bits)
            found.add(offset >> bits)
    return found, twice


def _many_tables_of(l1: "array[int]", bits: int) -> tuple[ClusterSet, ClusterSet]:
    import numpy as np

    clusters = np.frombuffer(l1, np.uint64) & np.uint64(OFFSET_MASK)
    clusters >>= np.uint64(bits)
    clusters = clusters[clusters != 0]
    clusters.sort()
    first = np.ones(len(clusters), np.bool_)
    np.not_equal(clusters[1:], clusters[:-1], out=first[1:])
    again = clusters[1:][~first[1:]]
    second = np.ones(len(again), np.bool_)
    np.not_equal(again[1:], again[:-1], out=second[1:])
    found, twice = array("Q"), array("Q")
    found.frombytes(clusters[first].tobytes())
    twice.frombytes(again[second].tobytes())
    return ManyClusters(found), ManyClusters(twice)


def _clusters(image: "Image", offset: int, nbytes: int) -> range:
    return range(offset >> image.cluster_bits, -(-(offset + nbytes) >> image.cluster_bits))


def _l1(image: "Image") -> range:
    return _clusters(image, image.l1_offset, 8 * len(image.l1))


def _refcount_table(image: "Image") -> range:
    return _clusters(image, image.refcounts.table_offset, 8 * len(image.refcounts.table))


def _encryption_header(image: "Image") -> range:
    place = image.header.encryption_header
    return range(0) if place is None else _clusters(image, *place)


def _bitmap_directory(image: "Image") -> range:
    place = image.bitmap_directory
    return range(0) if place is None else _clusters(image, place.directory_offset, place.directory_size)


def _snapshot_table(image: "Image") -> range:
    entries = image.header.snapshots
    nbytes = sum(entry.stored_length + 7 & ~7 for entry in entries)
    return _clusters(image, image.header.snapshots_offset, nbytes) if entries else range(0)


def _inactive_l1(image: "Image") -> Iterable[range]:
    for entry in image.header.snapshots:
        yield _clusters(image, entry.l1_table_offset, 8 * min(entry.l1_size, image.header.max_l1_size))


def _is_active_l2(image: "Image", cluster: int) -> bool:
    return any((entry & OFFSET_MASK) >> image.cluster_bits == cluster for entry in image.l1)
