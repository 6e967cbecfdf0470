"""Reading compressed clusters, many at a time: one request for streams that lie together, one thread for them all."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from aioblock.drivers.formats.qcow2.compression import decompress_all
from aioblock.drivers.formats.qcow2.entries import compressed_extent
from aioblock.drivers.formats.qcow2.mapping import compressed_clusters

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["INLINE_BYTES", "Decompressed", "read_compressed"]

INLINE_BYTES: Final = 4096
"""So much is (de)compressed at once: a thread would cost more."""
READ_BYTES: Final = 1 << 20
"""The most that is read of streams that lie together, in bytes."""


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


async def read_compressed(image: "Image", entries: Sequence[int], inside: int, buffer: memoryview) -> None:
    """Fill `buffer` from guest clusters that are compressed and adjoin; it begins `inside` bytes into the first one.

    Raises: OSError (EIO where one is damaged).
    """
    size = image.cluster_size
    if len(entries) == 1:  # small reads come again
        data = image.decompressed.get(entries[0])
        if data is None:
            (data,) = await _load(image, entries)
            image.decompressed.put(entries[0], data)
        buffer[:] = memoryview(data)[inside : inside + len(buffer)]
        return
    at = 0
    for data in await _load(image, entries):
        part = memoryview(data)[inside:] if inside else data
        if len(part) > len(buffer) - at:
            part = memoryview(part)[: len(buffer) - at]
        buffer[at : at + len(part)] = part
        at += len(part)
        inside = 0
    assert at == len(buffer) <= len(entries) * size


async def _load(image: "Image", entries: Sequence[int]) -> list[bytes]:
    """Some clusters: read their streams, those that lie together in one request, and decompress them in a thread."""
    if image.external:
        raise image.corruption("Compressed cluster entry found in an image with an external data file")
    reading = [compressed_clusters(image, entry) for entry in entries]
    for first, count in reading:
        image.begin_reading(first, count)
    try:
        if image.event is not None:
            await image.event("read_compressed")
        streams = await _read_streams(image, [compressed_extent(entry, image.cluster_bits) for entry in entries])
        kind = image.header.compression_type
        if len(entries) * image.cluster_size <= INLINE_BYTES:
            return decompress_all(streams, image.cluster_size, kind)
        return await image.threads.run(decompress_all, streams, image.cluster_size, kind)
    finally:
        for first, count in reading:
            image.end_reading(first, count)


async def _read_streams(image: "Image", extents: Sequence[tuple[int, int]]) -> list[memoryview]:
    """The bytes of each extent (offset and length in the file)."""
    streams: list[memoryview] = []
    while len(streams) < len(extents):
        first = len(streams)
        begin, nbytes = extents[first]
        end, last = begin + nbytes, first + 1
        for offset, nbytes in extents[last:]:
            if not begin <= offset <= end or max(end, offset + nbytes) - begin > READ_BYTES:
                break
            end, last = max(end, offset + nbytes), last + 1
        block = memoryview(await image.file.pread(begin, end - begin))
        streams += [block[offset - begin : offset - begin + nbytes] for offset, nbytes in extents[first:last]]
    return streams
