"""Compressed clusters: one stream a cluster, deflate or zstd.

deflate: raw, without header and checksum, with a window of 4 KiB at most: QEMU refuses a stream that reaches further
back. zstd: one frame. Where a stream ends is not stored anywhere, so decompressing takes whatever follows it, up to
the end of its last sector, and stops as soon as a cluster is full. An image is hostile: neither output nor memory is
taken on the word of the stream.

The functions are synchronous and let the GIL go while they work; they are meant for a worker thread.
"""

import errno
import zlib
from typing import Final

from aioblock.drivers.formats.qcow2.features import COMPRESSION_ZLIB, COMPRESSION_ZSTD

__all__ = ["compress", "compression_name", "decompress"]

DEFLATE_WINDOW_BITS: Final = -12
ZSTD_MAX_WINDOW: Final = 8 << 20
"""The limit that the zstd library has by default; no stream of one cluster (2 MiB at most) needs a larger one."""

_NAMES: Final = {COMPRESSION_ZLIB: "zlib", COMPRESSION_ZSTD: "zstd"}


def compression_name(kind: int) -> str:
    """The name of a compression type, as in `compression_type=`."""
    return _NAMES[kind]


def compress(data: bytes | bytearray | memoryview, kind: int) -> bytes | None:
    """`data`, one cluster, compressed; None where that makes it no smaller."""
    if kind == COMPRESSION_ZSTD:
        import zstandard

        packed = zstandard.ZstdCompressor(write_content_size=True).compress(data)
    else:
        deflate = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, DEFLATE_WINDOW_BITS, 9)
        packed = deflate.compress(data) + deflate.flush()
    return packed if len(packed) < len(data) else None


def decompress(data: bytes | bytearray | memoryview, cluster_size: int, kind: int) -> bytes:
    """The cluster that the stream at the beginning of `data` holds; what follows it is not looked at.

    Raises: OSError (EIO) where the stream is damaged, ends early, or needs an absurd amount of memory.
    """
    try:
        plain = _unzstd(data, cluster_size) if kind == COMPRESSION_ZSTD else _inflate(data, cluster_size)
    except zlib.error as error:
        raise OSError(errno.EIO, f"compressed cluster is damaged: {error}") from error
    if len(plain) != cluster_size:
        raise OSError(errno.EIO, f"compressed cluster holds {len(plain)} bytes instead of {cluster_size}")
    return plain


def _inflate(data: bytes | bytearray | memoryview, cluster_size: int) -> bytes:
    return zlib.decompressobj(DEFLATE_WINDOW_BITS).decompress(data, cluster_size)


def _unzstd(data: bytes | bytearray | memoryview, cluster_size: int) -> bytes:
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
