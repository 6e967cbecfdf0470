"""Compressed clusters: read one, and pack streams tightly behind each other.

Streams share host clusters, and 512-byte sectors of them: each stream that touches a host cluster counts as one
reference to it. A stream is never overwritten; what replaces it goes elsewhere. Only its own bytes are written, and the
file's node takes care of the rest of a sector where the storage cannot write less.
"""

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from aioblock.drivers.formats.qcow2.compression import compress, decompress
from aioblock.drivers.formats.qcow2.entries import (
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    SECTOR,
    compressed_entry,
    compressed_extent,
)
from aioblock.drivers.formats.qcow2.mapping import (
    cluster_entry,
    compressed_clusters,
    release_entry,
    set_cluster_entry,
)

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["Decompressed", "Packer", "finish_compressed", "read_compressed", "write_compressed"]

INLINE_BYTES: Final = 4096
"""Clusters up to this size are (de)compressed at once: a thread would cost more."""


class Decompressed:
    """The clusters that were decompressed last, by their L2 entry."""

    def __init__(self, limit: int = 4) -> None:
        self.limit = limit
        self._clusters: OrderedDict[int, bytes] = OrderedDict()

    def get(self, entry: int) -> bytes | None:
        """The cluster of an entry, if it is here."""
        found = self._clusters.get(entry)
        if found is not None:
            self._clusters.move_to_end(entry)
        return found

    def put(self, entry: int, data: bytes) -> None:
        """Remember a cluster."""
        self._clusters[entry] = data
        if len(self._clusters) > self.limit:
            self._clusters.popitem(last=False)

    def clear(self) -> None:
        """Forget all: an entry may come to mean something else."""
        self._clusters.clear()


async def read_compressed(image: "Image", entry: int, inside: int, buffer: memoryview) -> None:
    """Fill `buffer` with the bytes of one compressed cluster from `inside` on. Raises: OSError (EIO where damaged)."""
    data = image.decompressed.get(entry)
    if data is None:
        data = await _load(image, entry)
    buffer[:] = memoryview(data)[inside : inside + len(buffer)]


async def _load(image: "Image", entry: int) -> bytes:
    if image.external:
        raise image.corruption("Compressed cluster entry found in an image with an external data file")
    offset, nbytes = compressed_extent(entry, image.cluster_bits)
    first, count = compressed_clusters(image, entry)
    image.begin_reading(first, count)
    try:
        if image.event is not None:
            await image.event("read_compressed")
        stream = await image.file.pread(offset, nbytes)
        kind = image.header.compression_type
        if image.cluster_size <= INLINE_BYTES:
            data = decompress(stream, image.cluster_size, kind)
        else:
            data = await asyncio.to_thread(decompress, stream, image.cluster_size, kind)
        image.decompressed.put(entry, data)
    finally:
        image.end_reading(first, count)
    return data


class Packer:
    """Where the next compressed stream goes: behind the last one, as long as that adjoins free space."""

    def __init__(self, image: "Image") -> None:
        self.image = image
        self._next = 0
        """The byte behind the last stream; 0, or the beginning of a cluster: no room is left."""
        self._lock = asyncio.Lock()

    async def allocate(self, nbytes: int) -> int:
        """Room for a stream of `nbytes` (less than a cluster), counted as used; its offset. Raises: OSError."""
        async with self._lock:
            image, refcounts = self.image, self.image.refcounts
            if image.event is not None:
                await image.event("cluster_alloc_bytes")
            bits = image.cluster_bits
            offset = self._next
            left = -offset & image.cluster_mask
            if left:
                shared = offset >> bits
                follows = nbytes > left and await refcounts.allocate_at(shared + 1)
                if nbytes <= left or follows:
                    await refcounts.fetch(shared >> refcounts.shift)
                    # That cluster may have been freed meanwhile, and have gone to somebody else.
                    if self._next == offset and refcounts.count_up(shared):
                        self._next = offset + nbytes
                        return offset
                if follows:
                    self._next = ((shared + 1) << bits) + nbytes
                    return (shared + 1) << bits
            cluster, _ = await refcounts.allocate(1, "compressed cluster")
            self._next = (cluster << bits) + nbytes
            return cluster << bits

    def forget(self) -> None:
        """The file was changed behind our back: the next stream begins a cluster of its own."""
        self._next = 0

    async def give_back(self, offset: int, nbytes: int) -> None:
        """Nothing came to refer to the stream. Raises: OSError."""
        first = offset >> self.image.cluster_bits
        await self.image.refcounts.give_back(first, (offset + nbytes - 1 >> self.image.cluster_bits) - first + 1)

    def freed(self, cluster: int) -> None:
        """Nothing is in this host cluster any more, so nothing may be packed behind it."""
        if self._next >> self.image.cluster_bits == cluster:
            self._next = 0


async def write_compressed(image: "Image", offset: int, data: memoryview) -> bool:
    """Store one cluster compressed; False where it is to be written as it is, because that takes no more room.

    QEMU stores a cluster compressed once, and refuses (EIO) where it has a place already: here it gets a new one.
    `offset` is that of a cluster, `data` a whole one or what the last one holds. Raises: OSError.
    """
    cluster_size = image.cluster_size
    plain = bytes(data).ljust(cluster_size, b"\0")
    kind = image.header.compression_type
    if cluster_size <= INLINE_BYTES:
        stream = compress(plain, kind)
    else:
        stream = await asyncio.to_thread(compress, plain, kind)
    if stream is None:
        return False
    cluster = offset >> image.cluster_bits
    index = offset >> image.table_shift
    while True:
        await image.make_room(allocating=True)
        table = await image.l2.own(index)
        if (event := image.allocating.get(cluster)) is None:
            break
        await event.wait()
    entry, _ = cluster_entry(image, table, cluster)
    if entry & OFFSET_MASK and not entry & OFLAG_COMPRESSED:
        return False  # it has a host cluster, which other requests may be using
    event = image.claim((cluster,))
    try:
        where = await image.packer.allocate(len(stream))
        try:
            new = compressed_entry(where, len(stream), image.cluster_bits)
            if image.event is not None:
                await image.event("write_compressed")
            await image.file.pwrite(where, stream)
            table = await image.l2.own(index)
            image.check_writable()
        except BaseException as error:
            await image.packer.give_back(where, len(stream))
            if isinstance(error, ValueError):  # too far into the file for such an entry
                return False
            raise
        set_cluster_entry(image, table, cluster, new, 0)
        release_entry(image, entry, discard=False)
    finally:
        image.disclaim((cluster,), event)
    return True


async def finish_compressed(image: "Image") -> None:
    """The last compressed write is done: fill its sector up, so that whoever reads whole sectors finds them."""
    length = image.file.length
    if length % SECTOR:
        await image.file.truncate(length + -length % SECTOR)
