"""What must hold in a qcow2 header before anybody uses a number out of it.

Images are hostile: every field is checked before it is shifted, added or used as a length. The order of the checks and
their words are those of `qemu-img`, where it has the same check.
"""

import struct
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import CorruptImage, InvalidImage, UnsupportedFeature
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.extensions import Extension
from aioblock.drivers.formats.qcow2.features import (
    COMPRESSION_ZLIB,
    COMPRESSION_ZSTD,
    CRYPT_LUKS,
    INCOMPAT_COMPRESSION,
    INCOMPAT_KNOWN,
    INCOMPATIBLE,
)

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.header import Header

V2_LENGTH: Final = 72
V3_MIN_LENGTH: Final = 104
V3_LENGTH: Final = 112

MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 21
MIN_SUBCLUSTER_SIZE: Final = 512
MAX_REFCOUNT_ORDER: Final = 6
MAX_L1_BYTES: Final = 32 << 20
MAX_REFCOUNT_TABLE_BYTES: Final = 8 << 20
MAX_SNAPSHOTS: Final = 65536
MAX_BACKING_NAME: Final = 1023
MAX_BACKING_FORMAT: Final = 15
MAX_L1_ENTRIES_OF_A_SIZE: Final = (1 << 31) - 1


def complete(header: "Header", cluster: bytes, file_length: int, for_check: bool) -> None:
    """Check the fixed fields of a header, then read its extensions and the name of its backing file into it.

    Magic, version and cluster size are checked already. Raises: InvalidImage, CorruptImage, UnsupportedFeature.
    """
    _check_length(header, file_length)
    if header.backing_file_offset > header.cluster_size:
        raise InvalidImage("Invalid backing file offset", offset=8)
    _check_compression(header)
    _check_features(header, cluster)
    _check_geometry(header)
    _check_tables(header, file_length, for_check)
    _read_extensions(header, cluster)
    _read_backing_name(header, cluster)


def _check_length(header: "Header", file_length: int) -> None:
    if header.version == 3:
        if header.header_length < V3_MIN_LENGTH:
            raise InvalidImage("qcow2 header too short", offset=100)
        if header.header_length > header.cluster_size:
            raise InvalidImage("qcow2 header exceeds cluster size", offset=100)
        if header.header_length % 8:
            raise InvalidImage("qcow2 header length is not a multiple of 8", offset=100)
        if header.header_length < V3_LENGTH:
            header.compression_type = COMPRESSION_ZLIB  # that byte belongs to an extension
    if file_length < V3_MIN_LENGTH:
        raise InvalidImage("qcow2 header too short", offset=file_length)


def _check_compression(header: "Header") -> None:
    kind = header.compression_type
    if kind not in (COMPRESSION_ZLIB, COMPRESSION_ZSTD):
        raise UnsupportedFeature(f"qcow2: unknown compression type: {kind}", features=(f"compression type {kind}",))
    marked = bool(header.incompatible_features & INCOMPAT_COMPRESSION)
    if marked != (kind != COMPRESSION_ZLIB):
        word = "must not be set" if marked else "must be set"
        raise CorruptImage(f"qcow2: Compression type incompatible feature bit {word}", offset=72)


def _check_features(header: "Header", cluster: bytes) -> None:
    unknown = header.incompatible_features & ~INCOMPAT_KNOWN
    if not unknown:
        return
    try:
        table = ext.find(_extensions_in(header, cluster), ext.FEATURE_NAMES)
    except InvalidImage:
        table = None  # the unknown feature is the better reason to give
    names = []
    for (kind, bit), name in ext.parse_feature_table(table or b"").items():
        if kind == INCOMPATIBLE and unknown >> bit & 1:
            names.append(name)
            unknown &= ~(1 << bit)
    if unknown:
        names.append(f"Unknown incompatible feature: {unknown:x}")
    raise UnsupportedFeature(f"Unsupported qcow2 feature(s): {', '.join(names)}", features=tuple(names))


def _check_geometry(header: "Header") -> None:
    if header.extended_l2 and header.subcluster_size < MIN_SUBCLUSTER_SIZE:
        raise InvalidImage(f"Unsupported subcluster size: {header.subcluster_size}", offset=20)
    if header.refcount_order > MAX_REFCOUNT_ORDER:
        raise InvalidImage("Reference count entry width too large; may not exceed 64 bits", offset=96)
    if header.crypt_method > CRYPT_LUKS:
        method = header.crypt_method - (header.crypt_method >> 31 << 32)  # shown as the signed number
        raise UnsupportedFeature(f"Unsupported encryption method {method}", features=("encryption",))


def _check_tables(header: "Header", file_length: int, for_check: bool) -> None:
    if header.refcount_table_clusters > MAX_REFCOUNT_TABLE_BYTES >> header.cluster_bits:
        raise InvalidImage("Reference count table too large", offset=56)
    if header.refcount_table_clusters == 0 and not for_check:
        raise InvalidImage("Image does not contain a reference count table", offset=56)
    table_bytes = header.refcount_table_clusters << header.cluster_bits
    if _bad_extent(header, header.refcount_table_offset, table_bytes):
        raise InvalidImage("Reference count table offset invalid", offset=48)

    if header.nb_snapshots > MAX_SNAPSHOTS:
        raise InvalidImage("Snapshot table too large", offset=60)
    # An entry takes 40 bytes at least; the table ends where its entries say.
    if _bad_extent(header, header.snapshots_offset, 40 * header.nb_snapshots):
        raise InvalidImage("Snapshot table offset invalid", offset=64)

    if header.l1_size > header.max_l1_size:
        raise InvalidImage("Active L1 table too large", offset=36)
    if _bad_extent(header, header.l1_table_offset, 8 * header.l1_size):
        raise InvalidImage("Active L1 table offset invalid", offset=40)
    if header.size >= 1 << 63 or header.l1_entries_needed > MAX_L1_ENTRIES_OF_A_SIZE:
        raise InvalidImage("Image is too big", offset=24)
    if header.size % 512:
        raise InvalidImage("Image size is not a multiple of 512", offset=24)
    if header.l1_size < header.l1_entries_needed or (header.nb_snapshots and not header.l1_size):
        raise CorruptImage("L1 table is too small", offset=36)
    # The cluster at the end of a file may be cut short, or not be there yet: it reads as zeroes.
    behind = header.l1_table_offset + 8 * header.l1_size - file_length
    if behind >= header.cluster_size and not for_check:
        raise CorruptImage("Active L1 table lies behind the end of the file", offset=40)


def _bad_extent(header: "Header", offset: int, nbytes: int) -> bool:
    return bool(offset & (header.cluster_size - 1)) or offset + nbytes >= 1 << 63


def _extensions_in(header: "Header", cluster: bytes) -> list[Extension]:
    end = header.backing_file_offset or header.cluster_size
    return ext.parse_extensions(memoryview(cluster)[header.header_length : end], header.header_length)


def _read_extensions(header: "Header", cluster: bytes) -> None:
    if header.backing_file_offset and header.backing_file_offset < header.header_length:
        raise InvalidImage("Invalid backing file offset", offset=8)
    header.extensions = _extensions_in(header, cluster)
    form = ext.find(header.extensions, ext.BACKING_FORMAT)
    if form is not None and len(form) > MAX_BACKING_FORMAT:
        raise InvalidImage(
            f"ERROR: ext_backing_format: len={len(form)} too large (>={MAX_BACKING_FORMAT + 1})",
            offset=header.header_length,
        )
    crypto = ext.find(header.extensions, ext.CRYPTO)
    if header.crypt_method != CRYPT_LUKS:
        if crypto is not None:
            raise CorruptImage("CRYPTO header extension only expected with LUKS encryption method", offset=32)
        return
    if crypto is None:
        raise CorruptImage("CRYPTO header extension is missing", offset=32)
    if len(crypto) != 16:
        raise InvalidImage(f"CRYPTO header extension size {len(crypto)}, but expected size 16", offset=32)
    offset, nbytes = struct.unpack(">QQ", crypto)
    if offset % header.cluster_size:
        raise InvalidImage(
            f"Encryption header offset '{offset}' is not a multiple of cluster size '{header.cluster_size}'", offset=32
        )
    if offset == 0 or nbytes == 0 or offset + nbytes >= 1 << 63:
        raise InvalidImage("Encryption header lies outside of the image", offset=32)


def _read_backing_name(header: "Header", cluster: bytes) -> None:
    offset, nbytes = header.backing_file_offset, header.backing_file_size
    if not offset:
        return
    if nbytes > min(MAX_BACKING_NAME, header.cluster_size - offset):
        raise InvalidImage("Backing file name too long", offset=16)
    name = cluster[offset : offset + nbytes].ljust(nbytes, b"\0")  # a file that ends before its name does
    if b"\0" in name or b"\n" in name:
        raise InvalidImage("Backing file name contains a NUL or a line break", offset=offset)
    header.backing_file = name.decode("utf-8", "surrogateescape") or None
