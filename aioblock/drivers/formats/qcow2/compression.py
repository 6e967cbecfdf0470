"""Compressed clusters: one stream a cluster, deflate or zstd.

deflate: raw, without header and checksum, with a window of 4 KiB at most: QEMU refuses a stream that reaches further
back. zstd: one frame. Where a stream ends is not stored anywhere, so decompressing takes whatever follows it, up to
the end of its last sector, and stops as soon as a cluster is full. An image is hostile: neither output nor memory is
taken on the word of the stream.

ISA-L (the package `isal`) deflates and inflates several times as fast as zlib; where there is none of it for the
machine, zlib does it alone. Its streams are up to a tenth longer than those of zlib's default level.

The functions are synchronous and let the GIL go while they work; they are meant for a worker thread.
"""

import errno
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, TypeAlias

from aioblock.drivers.formats.qcow2.features import COMPRESSION_ZLIB, COMPRESSION_ZSTD

__all__ = ["COMPRESSION_LEVELS", "compress", "compress_all", "compression_name", "decompress", "decompress_all"]

Bytes: TypeAlias = bytes | bytearray | memoryview

DEFLATE_WINDOW_BITS: Final = 12
ZSTD_MAX_WINDOW: Final = 8 << 20
"""The limit that the zstd library has by default; no stream of one cluster (2 MiB at most) needs a larger one."""
FAST_LEVELS: Final = 3
"""Levels of deflate up to this one are ISA-L's, where it is there; and this one is then the level of nobody's choice:
340 MB/s a core, where zlib's level 6 does 40 for streams that are 7 percent shorter (executables, AMD EPYC)."""

_NAMES: Final = {COMPRESSION_ZLIB: "zlib", COMPRESSION_ZSTD: "zstd"}

COMPRESSION_LEVELS: Final = {COMPRESSION_ZLIB: range(1, 10), COMPRESSION_ZSTD: range(1, 23)}
"""The levels of each type, from fast to small."""


def compression_name(kind: int) -> str:
    """The name of a compression type, as in `compression_type=`."""
    return _NAMES[kind]


def compress(data: Bytes, kind: int, level: int | None = None) -> bytes | None:
    """`data`, one cluster, compressed; None where that makes it no smaller.

    `level`: one of `COMPRESSION_LEVELS`; None: the usual one.
    """
    return compress_all(data, len(data), kind, level)[0]


def compress_all(data: Bytes, cluster_size: int, kind: int, level: int | None = None) -> list[bytes | None]:
    """As `compress`, each cluster of `data`; the last one may be short, and is filled up with zeroes."""
    pack = _zstd(level) if kind == COMPRESSION_ZSTD else _deflate(level)
    view = memoryview(data)
    streams: list[bytes | None] = []
    for at in range(0, len(view), cluster_size):
        part: Bytes = view[at : at + cluster_size]
        if len(part) < cluster_size:
            part = bytes(part).ljust(cluster_size, b"\0")
        stream = pack(part)
        streams.append(stream if len(stream) < cluster_size else None)
    return streams


@cache
def _isal() -> Any:
    """The package `isal`, loaded when a cluster is (de)compressed; None where there is none."""
    try:
        import isal.igzip_lib
        import isal.isal_zlib
    except ImportError:
        return None
    return isal


def _zstd(level: int | None) -> Callable[[Bytes], bytes]:
    import zstandard

    packer = zstandard.ZstdCompressor(level=3 if level is None else level, write_content_size=True)
    return packer.compress


def _deflate(level: int | None) -> Callable[[Bytes], bytes]:
    if (level is None or level <= FAST_LEVELS) and (isal := _isal()) is not None:
        effort = FAST_LEVELS if level is None else level
        igzip = isal.igzip_lib
        return lambda data: igzip.compress(
            data, effort, igzip.COMP_DEFLATE, igzip.MEM_LEVEL_DEFAULT, DEFLATE_WINDOW_BITS
        )
    effort = zlib.Z_DEFAULT_COMPRESSION if level is None else level

    def pack(data: Bytes) -> bytes:
        packer = zlib.compressobj(effort, zlib.DEFLATED, -DEFLATE_WINDOW_BITS, 9)
        return packer.compress(data) + packer.flush()

    return pack


def decompress(data: Bytes, cluster_size: int, kind: int) -> bytes:
    """The cluster that the stream at the beginning of `data` holds; what follows it is not looked at.

    Raises: OSError (EIO) where the stream is damaged, ends early, or needs an absurd amount of memory.
    """
    plain = _unzstd(data, cluster_size) if kind == COMPRESSION_ZSTD else _inflate(data, cluster_size)
    if len(plain) != cluster_size:
        raise OSError(errno.EIO, f"compressed cluster holds {len(plain)} bytes instead of {cluster_size}")
    return plain


def decompress_all(streams: Sequence[Bytes], cluster_size: int, kind: int) -> list[bytes]:
    """As `decompress`, each of several. Raises: OSError, for the first that is damaged."""
    return [decompress(stream, cluster_size, kind) for stream in streams]


def _inflate(data: Bytes, cluster_size: int) -> bytes:
    isal = _isal()
    library: Any = zlib if isal is None else isal.isal_zlib
    try:
        plain: bytes = library.decompressobj(-DEFLATE_WINDOW_BITS).decompress(data, cluster_size)
    except library.error as error:
        raise OSError(errno.EIO, f"compressed cluster is damaged: {error}") from error
    return plain


def _unzstd(data: Bytes, cluster_size: int) -> bytes:
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW).stream_reader(data, read_across_frames=False)
    parts: list[bytes] = []
    left = cluster_size
    try:
        while left:
            part = reader.read(left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
    except zstandard.ZstdError as error:
        raise OSError(errno.EIO, f"compressed cluster is damaged: {error}") from error
    return b"".join(parts)
