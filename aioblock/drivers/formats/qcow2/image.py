"""Image: the state of one open qcow2 image, which its verbs (`read`, `write`, `zeroes` ...) share.

*Memory runs ahead, the file does not.* Tables in memory say at once what a finished request has made of the image; the
file is told later, by `commit`, and in an order that leaves a sound image at every moment.

What keeps concurrent requests apart, in place of locks held over I/O:

- Everything that reads a table, decides and changes it is one piece of code without an await.
- `allocating`: guest clusters whose mapping somebody is about to change, each with an event that says when he is done.
  A request takes what is free in one step, holds one run at a time, and waits for nothing of this kind while it holds.
- `frees`: references that were taken away. Their clusters keep their refcount, and so cannot be allocated again, until
  the removal is stable in the file.
- `reading`: host clusters that a read is looking at although its guest clusters may be written elsewhere meanwhile.

Lock order: a table's turn (`L2Cache`, `Refcounts`) is held while clusters are allocated; nobody who holds a turn waits
for the commit lock, and a commit takes turns of refcount blocks only.
"""

import asyncio
import errno
import logging
from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from aioblock.drivers.formats.qcow2 import overlap
from aioblock.drivers.formats.qcow2.commit import commit
from aioblock.drivers.formats.qcow2.entries import L1_RESERVED_MASK, OFFSET_MASK, OFLAG_COPIED, as_c
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_DATA_FILE_RAW, CRYPT_NONE, INCOMPAT_CORRUPT
from aioblock.drivers.formats.qcow2.header import Header, features_field

if TYPE_CHECKING:
    from aioblock.core.dirty_bitmap import DirtyBitmap
    from aioblock.core.io import BlockIO
    from aioblock.core.objects import NamedObject
    from aioblock.drivers.formats.qcow2.bitmap_directory import BitmapEntry
    from aioblock.drivers.formats.qcow2.compressed import Decompressed
    from aioblock.drivers.formats.qcow2.compressed_write import Packer
    from aioblock.drivers.formats.qcow2.compression_threads import CompressionThreads
    from aioblock.drivers.formats.qcow2.data import Data
    from aioblock.drivers.formats.qcow2.extensions import BitmapsExtension
    from aioblock.drivers.formats.qcow2.options import RuntimeOptions
    from aioblock.drivers.formats.qcow2.overlap import ClusterSet
    from aioblock.drivers.formats.qcow2.refcounts import Refcounts
    from aioblock.drivers.formats.qcow2.snapshot_table import SnapshotEntry
    from aioblock.drivers.formats.qcow2.tables import L2Cache
    from aioblock.luks.volume import Volume

__all__ = ["Free", "Image", "log"]

log: Final = logging.getLogger("aioblock.qcow2")


RECLAIM_SHARE: Final = 32
"""Clusters that wait to become free make the file longer by at most a 32nd (see `Image.make_room`)."""


class Free(NamedTuple):
    """A reference to each of some host clusters from `first` on that is gone in memory, and not yet in the file."""

    first: int
    clusters: int
    discard: bool
    """The guest gave them back; False: they became free in another way. The options say when storage is given back."""


class Image:
    """One open image. Made by `Qcow2Driver.open`, which fills in the parts."""

    data: "Data"
    l2: "L2Cache"
    refcounts: "Refcounts"
    packer: "Packer"
    decompressed: "Decompressed"
    threads: "CompressionThreads"

    def __init__(self, file: "BlockIO", header: Header, options: "RuntimeOptions", *, read_only: bool) -> None:
        self.file = file
        self.data_file = file
        """Where guest data lies; the file itself, unless there is an external data file (see `external`)."""
        self.external = header.has_data_file
        """Guest clusters lie in a file of their own, at the offset that they have on the disk, and are not counted."""
        self.data_file_raw = self.external and bool(header.autoclear_features & AUTOCLEAR_DATA_FILE_RAW)
        """The data file shall read like the disk for those who do not know of this image."""
        self.encrypted = header.crypt_method != CRYPT_NONE
        """What lies in a host cluster is not what the guest sees there; see `encryption`."""
        self.volume: Volume | None = None
        """The LUKS header of an encrypted image, with its key slots."""
        self.objects: Mapping[str, NamedObject] = {}
        """The named objects that the image was opened with."""
        self.host_mask = OFFSET_MASK | OFLAG_COPIED if self.external else OFFSET_MASK
        """The bits of an L2 entry of which one is set where it has a host cluster: offset 0 is one in a data file."""
        debugger = file.node.debugger
        self.event = debugger.event if debugger is not None else None
        """To be told of each step by QEMU's name for it, just before its request: a filter below is for tests."""
        self.backing: BlockIO | None = None
        self.this: BlockIO | None = None
        self.header = header
        self.options = options
        self.bitmaps: dict[str, DirtyBitmap] = {}
        """The dirty bitmaps of the node, by name; those that are persistent are stored at the end."""
        self.stored_bitmaps: dict[str, BitmapEntry] = {}
        """The entries of the directory of bitmaps in the file, in order: see `bitmap_store`."""
        self.bitmap_directory: BitmapsExtension | None = None
        """Where it lies; None: the file has no bitmaps."""
        self.read_only = read_only
        self.l1: array[int] = array("Q")
        """L1 entries; in memory the table may have moved and grown already."""
        self.l1_offset = header.l1_table_offset
        self.l1_dirty: set[int] = set()
        self.l1_moved = False
        self.preallocated: bool | None = None
        """Whether allocated clusters may be holes of the file; None: nobody asked yet (see `status`)."""
        self.size = header.size
        self.snapshot: SnapshotEntry | None = None
        """Not None: a read-only image shows what this snapshot holds."""
        # Geometry, as plain attributes: it is asked for in every request.
        self.cluster_bits = header.cluster_bits
        self.cluster_size = header.cluster_size
        self.cluster_mask = header.cluster_size - 1
        self.l2_mask = header.l2_entries - 1
        self.table_shift = header.cluster_bits + header.l2_bits
        self.extended = header.extended_l2
        self.subclusters = header.subclusters_per_cluster
        self.subcluster_size = header.subcluster_size
        self.version = header.version
        # What is under way.
        self.allocating: dict[int, asyncio.Event] = {}
        self.frees: list[Free] = []
        self.unsettled = 0
        """How many clusters were added to `frees` since the last commit."""
        self.reclaim_share = RECLAIM_SHARE
        self.unused_data: set[int] = set()
        """Clusters of an external data file whose storage may be given back when that is stable."""
        self.reading: dict[int, int] = {}
        self.commit_lock = asyncio.Lock()
        self.failure: OSError | None = None
        """Why the last write-back failed. It stays: what was lost then does not come back."""
        self.corrupt = False
        self._told = False
        self.lazily_dirty = False
        """The dirty bit is in the file, because counts that it does not have are in memory."""
        self._marking: asyncio.Task[None] | None = None
        self.metadata_clusters: ClusterSet | None = None
        """See `metadata`; the hot path looks here."""
        self.inactive_l2: set[int] = set()
        """The host clusters of the L2 tables of snapshots, if they are protected: see `overlap`."""
        self._shared_l2: ClusterSet = set()

    def __repr__(self) -> str:
        mode = "ro" if self.read_only else "rw"
        return (
            f"<qcow2 Image {mode} v{self.version} cluster={self.cluster_size} "
            f"allocating={len(self.allocating)} frees={len(self.frees)} reading={len(self.reading)}>"
        )

    # -- may it be written -------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Raises: OSError where the metadata is known to be wrong, so that a write would make it worse."""
        if self.corrupt:
            raise OSError(errno.EIO, "The image is corrupt")

    def corruption(self, message: str) -> OSError:
        """The metadata contradicts itself: an error to raise. A writable image is marked, and not written any more.

        The mark goes straight to the file, past the tables in memory, which nobody writes back afterwards.
        """
        if not self.corrupt:
            if self.read_only:
                self.minor_corruption(message)
            else:
                log.warning(
                    "qcow2: Marking image as corrupt: %s; further corruption events will be suppressed", message
                )
                self.corrupt = True
                self._marking = asyncio.get_running_loop().create_task(self._mark_corrupt())
        return OSError(errno.EIO, message)

    def minor_corruption(self, message: str) -> None:
        """The metadata contradicts itself, and nothing gets worse by that: it is logged, once for an image."""
        if not self.corrupt and not self._told:
            self._told = True
            log.warning("qcow2: Image is corrupt: %s; further non-fatal corruption events will be suppressed", message)

    async def _mark_corrupt(self) -> None:
        self.header.incompatible_features |= INCOMPAT_CORRUPT
        if self.version < 3:
            return  # there is no such bit
        try:
            await self.file.pwrite(*features_field(self.header))
            await self.file.flush()
        except OSError as error:
            log.warning("The image could not be marked as corrupt: %s", error)

    async def settle_marking(self) -> None:
        """Wait until the mark of a corruption that was found is in the file."""
        if self._marking is not None:
            await asyncio.shield(self._marking)

    async def flush_files(self) -> None:
        """Make stable what was written, guest data that lies in another file included. Raises: OSError."""
        if self.data_file is not self.file:
            await self.data_file.flush()
        await self.file.flush()

    async def make_room(self, *, allocating: bool = False) -> None:
        """Before a writer makes tables dirty: have them written back if too many are. Raises: OSError.

        `allocating`: new clusters will be needed. Those that lost their reference are made free by a commit too, as
        soon as they are so many that the file would grow by a part of it worth a flush.
        """
        while self.l2.crowded or self.refcounts.crowded or (allocating and self._reclaimable):
            await commit(self)

    @property
    def _reclaimable(self) -> bool:
        share = self.unsettled * self.reclaim_share
        return share > 0 and share >= self.file.length >> self.cluster_bits

    # -- clusters under way ------------------------------------------------------------------------------------------

    def claim(self, clusters: Iterable[int]) -> asyncio.Event:
        """Take guest clusters that nobody has taken. The caller gives them back by `disclaim`."""
        event = asyncio.Event()
        for cluster in clusters:
            self.allocating[cluster] = event
        return event

    def disclaim(self, clusters: Iterable[int], event: asyncio.Event) -> None:
        """Their mapping is settled; who waits looks again."""
        for cluster in clusters:
            del self.allocating[cluster]
        event.set()

    def claimed(self, clusters: range) -> asyncio.Event | None:
        """The event of somebody who has taken any of the clusters, or None."""
        allocating = self.allocating
        if not allocating:
            return None
        if len(clusters) <= len(allocating):
            return next((allocating[cluster] for cluster in clusters if cluster in allocating), None)
        return next((event for cluster, event in allocating.items() if cluster in clusters), None)

    async def unclaimed(self, clusters: range) -> None:
        """Wait until nobody has taken any of the clusters. Nothing suspends between that and the caller's next step."""
        while (event := self.claimed(clusters)) is not None:
            await event.wait()

    def begin_reading(self, first: int, count: int) -> None:
        """A read looks at host clusters that it does not own."""
        for cluster in range(first, first + count):
            self.reading[cluster] = self.reading.get(cluster, 0) + 1

    def end_reading(self, first: int, count: int) -> None:
        """It has seen them."""
        for cluster in range(first, first + count):
            left = self.reading[cluster] - 1
            if left:
                self.reading[cluster] = left
            else:
                del self.reading[cluster]

    # -- what must not be overwritten --------------------------------------------------------------------------------

    def metadata(self) -> "ClusterSet":
        """The host clusters of all metadata that is protected, collected when the first write asks. Raises: OSError."""
        if self.metadata_clusters is None:
            self.metadata_clusters, self._shared_l2 = overlap.collect(self)
        return self.metadata_clusters

    def _table_clusters(self, offset: int, nbytes: int) -> range:
        return range(offset >> self.cluster_bits, -(-(offset + nbytes) >> self.cluster_bits))

    def table_moved(self, old: int, old_bytes: int, new: int, new_bytes: int) -> None:
        """A table (L1, L2, refcount table, bitmap directory) lies elsewhere now; offset 0: it lay, or lies, nowhere."""
        if self.metadata_clusters is not None:
            if old:
                self.metadata_clusters.difference_update(self._table_clusters(old, old_bytes))
            if new:
                self.metadata_clusters.update(self._table_clusters(new, new_bytes))

    def check_not_metadata(self, first: int, count: int) -> None:
        """Before data is written to host clusters, or they are allocated. Raises: OSError where metadata lies there."""
        metadata = self.metadata()
        for cluster in range(first, first + count):
            if cluster in metadata:
                name = overlap.name_of(self, cluster)
                raise self.corruption(f"Preventing invalid write on metadata (overlaps with {name})")

    def l2_offset(self, index: int) -> int:
        """Where the L2 table of an L1 entry lies; 0: there is none. Raises: OSError where the entry is nonsense."""
        entry = self.l1[index]
        offset = entry & OFFSET_MASK
        if entry & L1_RESERVED_MASK:
            raise self.corruption(f"L1 entry {entry:#x} has reserved bits set (L1 index: {as_c(index)})")
        if offset & self.cluster_mask:
            raise self.corruption(f"L2 table offset {offset:#x} unaligned (L1 index: {as_c(index)})")
        return offset

    def check_own_l2(self, index: int) -> None:
        """Before an L2 table is changed. Raises: OSError where it lies over other metadata or serves twice."""
        cluster = (self.l1[index] & OFFSET_MASK) >> self.cluster_bits
        self.metadata()
        name = overlap.name_of(self, cluster)
        if name != "active L2 table" or cluster in self._shared_l2:
            raise self.corruption(f"Preventing invalid write on metadata (overlaps with {name})")

    def forget_mapping(self) -> None:
        """The disk is mapped by another L1 table now: forget what is known of the old one. All is written back."""
        self.l2.tables.clear()
        self.decompressed.clear()
        self.metadata_clusters = None
        self.preallocated = None

    # -- references taken away ---------------------------------------------------------------------------------------

    def release(self, offset: int, count: int = 1, *, discard: bool = False) -> None:
        """A reference to `count` host clusters from `offset` on is gone: count it down once that is stable."""
        first = offset >> self.cluster_bits
        self.unsettled += count
        frees = self.frees
        if frees:
            last = frees[-1]
            if last.first + last.clusters == first and last.discard == discard:
                frees[-1] = Free(last.first, last.clusters + count, discard)
                return
        frees.append(Free(first, count, discard))
