"""Writing compressed clusters: pack streams tightly behind each other.

Streams share host clusters, and 512-byte sectors of them: each stream that touches a host cluster counts as one
reference to it. A stream is never overwritten; what replaces it goes elsewhere. Only its own bytes are written, and the
file's node takes care of the rest of a sector where the storage cannot write less.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from aioblock.drivers.formats.qcow2.compressed import INLINE_BYTES
from aioblock.drivers.formats.qcow2.compression import compress_all
from aioblock.drivers.formats.qcow2.entries import OFFSET_MASK, OFLAG_COMPRESSED, SECTOR, compressed_entry
from aioblock.drivers.formats.qcow2.mapping import cluster_entry, release_entry, set_cluster_entry
from aioblock.drivers.formats.qcow2.write import write

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["Packer", "finish_compressed", "write_compressed"]

BATCH_BYTES: Final = 1 << 20
"""How much of one request a thread compresses at a time, in bytes: the rest of it waits, other requests do not."""


class Packer:
    """Where the next compressed stream goes: behind the last one, as long as that adjoins free space."""

    def __init__(self, image: "Image") -> None:
        self.image = image
        self._next = 0
        """The byte behind the last stream; 0, or the beginning of a cluster: no room is left."""
        self._lock = asyncio.Lock()

    async def allocate(self, sizes: Sequence[int]) -> list[int]:
        """Room for streams of so many bytes (each less than a cluster), counted as used; their offsets.

        They lie behind each other where they can. Raises: OSError; then nothing is allocated.
        """
        places: list[int] = []
        async with self._lock:
            try:
                for nbytes in sizes:
                    places.append(await self._place(nbytes))
            except BaseException:
                await self.give_back(places, sizes)
                raise
        return places

    async def _place(self, nbytes: int) -> int:
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

    async def give_back(self, places: Sequence[int], sizes: Sequence[int]) -> None:
        """Nothing came to refer to streams that lie there. Raises: OSError."""
        bits = self.image.cluster_bits
        for offset, nbytes in zip(places, sizes, strict=False):
            first = offset >> bits
            await self.image.refcounts.give_back(first, (offset + nbytes - 1 >> bits) - first + 1)

    def freed(self, cluster: int) -> None:
        """Nothing is in this host cluster any more, so nothing may be packed behind it."""
        if self._next >> self.image.cluster_bits == cluster:
            self._next = 0


async def write_compressed(image: "Image", offset: int, data: memoryview) -> None:
    """Store clusters compressed; as they are where that takes no more room, or where they have host clusters already.

    QEMU stores a cluster compressed once, and refuses (EIO) where it has a place already: here it gets a new one.
    `offset` is that of a cluster, `data` holds whole ones; the last one of the disk may be short. Raises: OSError.
    """
    size = image.cluster_size
    step = max(BATCH_BYTES // size, 1) * size
    for at in range(0, len(data), step):
        part = data[at : at + step]
        kind, level = image.header.compression_type, image.options.compression_level
        if len(part) <= INLINE_BYTES:
            streams = compress_all(part, size, kind, level)
        else:
            streams = await image.threads.run(compress_all, part, size, kind, level)
        await _store(image, offset + at, part, streams)


async def _store(image: "Image", offset: int, data: memoryview, streams: Sequence[bytes | None]) -> None:
    """Write clusters that have streams as those, the others as they are; neighbours that are alike together."""
    first, bits = offset >> image.cluster_bits, image.cluster_bits
    number = 0
    while number < len(streams):
        packed = streams[number] is not None
        stop = next((n for n in range(number, len(streams)) if (streams[n] is not None) != packed), len(streams))
        if packed:
            stored = await _store_streams(image, first + number, [s for s in streams[number:stop] if s is not None])
            number += stored
            if stored:
                continue
            stop = number + 1  # this one has a place already
        await write(image, offset + (number << bits), data[number << bits : stop << bits])
        number = stop


async def _store_streams(image: "Image", cluster: int, streams: Sequence[bytes]) -> int:
    """Store the streams of guest clusters from `cluster` on; how many of them, 0 where the first one must not be."""
    index = cluster << image.cluster_bits >> image.table_shift
    while True:
        await image.make_room(allocating=True)
        table = await image.l2.own(index)
        if (event := image.allocating.get(cluster)) is None:
            break
        await event.wait()
    old: list[int] = []
    for number in range(cluster, min(cluster + len(streams), (cluster | image.l2_mask) + 1)):
        if number in image.allocating:
            break
        entry, _ = cluster_entry(image, table, number)
        if entry & OFFSET_MASK and not entry & OFLAG_COMPRESSED:
            break  # it has a host cluster, which other requests may be using
        old.append(entry)
    if not old:
        return 0
    clusters, streams = range(cluster, cluster + len(old)), streams[: len(old)]
    sizes = [len(stream) for stream in streams]
    event = image.claim(clusters)
    try:
        places = await image.packer.allocate(sizes)
        try:
            new = [
                compressed_entry(where, nbytes, image.cluster_bits) for where, nbytes in zip(places, sizes, strict=True)
            ]
            if image.event is not None:
                await image.event("write_compressed")
            await _write_streams(image, places, streams)
            table = await image.l2.own(index)
            image.check_writable()
        except BaseException as error:
            await image.packer.give_back(places, sizes)
            if isinstance(error, ValueError):  # too far into the file for such an entry
                return 0
            raise
        for number, entry, before in zip(clusters, new, old, strict=True):
            set_cluster_entry(image, table, number, entry, 0)
            release_entry(image, before, discard=False)
    finally:
        image.disclaim(clusters, event)
    return len(clusters)


async def _write_streams(image: "Image", places: Sequence[int], streams: Sequence[bytes]) -> None:
    """Write streams where they belong, those that adjoin in one request."""
    number = 0
    while number < len(streams):
        begin = number
        end = places[begin]
        while number < len(streams) and places[number] == end:
            end += len(streams[number])
            number += 1
        await image.file.pwrite(places[begin], b"".join(streams[begin:number]))


async def finish_compressed(image: "Image") -> None:
    """The last compressed write is done: fill its sector up, so that whoever reads whole sectors finds them."""
    length = image.file.length
    if length % SECTOR:
        await image.file.truncate(length + -length % SECTOR)
