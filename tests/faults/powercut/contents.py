"""What the guest finds in an image, as one tag for each sector; from the bytes alone.

A sector of tag T holds the 64-bit number T 64 times. The tag of a write is unique: the sector's own number and the
number of the write. 0 is a sector of zeroes, GARBLED one that nobody wrote like that.
"""

import zlib
from functools import lru_cache

import numpy as np

from tests.faults.powercut.fsck import COMPRESSED, OFFSET, ZERO, Damage, Image, Tree, Words

__all__ = ["GARBLED", "SECTOR", "bytes_of", "tags_of", "tags_of_bytes"]

SECTOR = 512
GARBLED = -1
PROBES = np.array([0, 31, 63])
"""The words of a sector that are looked at: power cuts and streams tear it at its ends if at all."""

Tags = Words


def bytes_of(tags: Tags) -> bytes:
    """The sectors of these tags."""
    return np.repeat(tags.astype(">u8"), SECTOR // 8).tobytes()


def tags_of_bytes(data: bytes | bytearray) -> Tags:
    """The tags of whole sectors, each word looked at."""
    words = np.frombuffer(data, ">u8").reshape(-1, SECTOR // 8).astype(np.int64)
    return np.where((words == words[:, :1]).all(axis=1), words[:, 0], GARBLED)


def tags_of(image: Image, tree: Tree, below: Tags, data_file: bytearray | None = None) -> Tags:
    """What a tree of tables makes of the disk; `below` is what is seen where it decides nothing, as long as needed."""
    found = below.copy()
    sectors = image.cluster_size // SECTOR
    source = image.content if data_file is None else data_file + bytes(-len(data_file) % SECTOR)
    words = np.frombuffer(source, ">u8").reshape(-1, SECTOR // 8)
    standard = (tree.entries & COMPRESSED) == 0
    offsets = (tree.entries[standard] & OFFSET) >> np.uint64(9)
    guest = tree.guest[standard]
    inside = np.arange(sectors)
    at = guest[:, None] * sectors + inside
    host = offsets.astype(np.int64)[:, None] + inside
    if image.extended:
        bits = tree.bitmaps[standard].astype(np.uint64)
        number = (inside * 32 // sectors).astype(np.uint64)
        data = (bits[:, None] >> number & np.uint64(1)) != 0
        zero = (bits[:, None] >> (number + np.uint64(32)) & np.uint64(1)) != 0
        if (data & zero).any() or (not image.external and (data & (offsets == 0)[:, None]).any()):
            raise Damage("corrupt", "a bitmap of subclusters contradicts itself")
    else:
        flagged = (tree.entries[standard] & ZERO) != 0
        zero = np.broadcast_to(flagged[:, None], at.shape)
        hosted = (tree.entries[standard] if image.external else offsets) != 0
        data = ~zero & hosted[:, None]
    for place, value in ((at[zero], 0), (at[data], _probe(words, host[data]))):
        if len(place) and int(place.max()) >= len(found):
            keep = place < len(found)
            place, value = place[keep], value if isinstance(value, int) else value[keep]
        found[place] = value
    for cluster, start, stop in image.compressed_extents(tree) if not standard.all() else ():
        tags = _decompress(bytes(image.content[start:stop]), image.cluster_size, image.zstd)
        low = cluster * sectors
        found[low : low + sectors] = tags[: max(len(found) - low, 0)]
    return found


def _probe(words: Words, sectors: Words) -> Tags:
    """The tags of sectors of a file; 0 behind its end."""
    there = sectors < len(words)
    if there.all():
        probes = words[sectors[:, None], PROBES].astype(np.int64)
    else:
        probes = np.zeros((len(sectors), len(PROBES)), np.int64)
        probes[there] = words[sectors[there][:, None], PROBES]
    first = probes[:, 0]
    return np.where((first == probes[:, 1]) & (first == probes[:, 2]), first, GARBLED)


@lru_cache(maxsize=4096)
def _decompress(stream: bytes, cluster_size: int, zstd: bool) -> Tags:
    try:
        if zstd:
            import zstandard

            data = zstandard.ZstdDecompressor().stream_reader(stream).read(cluster_size)
        else:
            data = zlib.decompressobj(-12).decompress(stream, cluster_size)
    except Exception:
        data = b""
    if len(data) != cluster_size:
        return np.full(cluster_size // SECTOR, GARBLED)
    return tags_of_bytes(data)
