"""Creating a qcow2 image.

The header is written last, after everything else is on stable storage: a file that was half made is no image.
"""

import asyncio
from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import OptionError, with_context
from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.core.images import Prealloc
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.encryption import new_encryption, place_volume, write_volume
from aioblock.drivers.formats.qcow2.entries import OFLAG_COPIED, table_to_bytes
from aioblock.drivers.formats.qcow2.extensions import Extension
from aioblock.drivers.formats.qcow2.features import (
    AUTOCLEAR_DATA_FILE_RAW,
    COMPAT_LAZY_REFCOUNTS,
    COMPRESSION_ZLIB,
    COMPRESSION_ZSTD,
    INCOMPAT_COMPRESSION,
    INCOMPAT_DATA_FILE,
    INCOMPAT_EXTENDED_L2,
)
from aioblock.drivers.formats.qcow2.header import Header, serialise
from aioblock.drivers.formats.qcow2.layout import Layout, contiguous, interleaved
from aioblock.drivers.formats.qcow2.validation import MAX_BACKING_FORMAT, V2_LENGTH, V3_LENGTH

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["check_options", "cluster_size_of", "create"]

MIN_CLUSTER_SIZE: Final = 512
MAX_CLUSTER_SIZE: Final = 2 << 20
MIN_EXTENDED_L2_CLUSTER_SIZE: Final = 16384
MIN_FEATURE_TABLE_CLUSTER_SIZE: Final = 8192
"""Smaller clusters have no feature name table: their room is for the name of the backing file."""

_VERSIONS: Final = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_COMPRESSION: Final = {"zlib": COMPRESSION_ZLIB, "zstd": COMPRESSION_ZSTD}


async def create(file: "BlockIO", options: Mapping[str, Any]) -> None:
    """Write an image with no data into `file`, which is empty or whose content does not matter any more.

    Cancelled or failed: `file` holds no image.
    Raises: OptionError and NotSupported before anything is written; OSError.
    """
    header, prealloc = _new_header(options)
    volume = await new_encryption(options, header)
    data_file = options.get("data-file")
    if data_file is None and options.get("data_file") is not None:
        raise OptionError("The data file is to be given open, as 'data-file'", option="data_file")
    if data_file is None and prealloc in (Prealloc.FALLOC, Prealloc.FULL):
        layout = await asyncio.to_thread(contiguous, header)
    elif prealloc is not Prealloc.OFF:
        layout = await asyncio.to_thread(interleaved, header, preallocate=True)
    else:
        layout = interleaved(header, preallocate=False)
    header.l1_table_offset = layout.l1 << header.cluster_bits
    header.refcount_table_offset = layout.refcount_table << header.cluster_bits
    header.refcount_table_clusters = layout.refcount_table_clusters
    if volume is not None:
        place_volume(header, layout.encryption_header << header.cluster_bits)
    first_cluster = serialise(header)

    used_before = file.length > 0
    if used_before:  # a device: what it held must stop being an image first
        await file.pwrite(0, bytes(header.cluster_size))
        await file.flush()
    if data_file is not None:
        mode = Prealloc.OFF if prealloc is Prealloc.METADATA else prealloc
        await data_file.truncate(header.size, exact=False, prealloc=mode)
        await data_file.flush()
    elif prealloc is not Prealloc.OFF:
        await _reserve(file, header, layout, prealloc, used_before)
    await _write_refcounts(file, header, layout)
    await _write_mapping(file, header, layout)
    if volume is not None:
        await write_volume(file, header, volume)
    await file.flush()
    await file.pwrite(0, first_cluster)
    await file.flush()


def check_options(options: Mapping[str, Any]) -> None:
    """Whether an image can be created with these options. Raises: OptionError."""
    _new_header(options)


# -- options ---------------------------------------------------------------------------------------------------------


def _new_header(options: Mapping[str, Any]) -> tuple[Header, Prealloc]:
    """The header that the options ask for, without the offsets of its tables. Raises: OptionError, NotSupported."""
    version = _choice(options, "compat", "version", _VERSIONS, 3)
    compression = _choice(options, "compression_type", "compression-type", _COMPRESSION, COMPRESSION_ZLIB)
    prealloc = _choice(options, "preallocation", "preallocation", {mode.value: mode for mode in Prealloc}, Prealloc.OFF)
    cluster_size = cluster_size_of(options)
    extended_l2 = bool(options.get("extended_l2"))
    backing_file = options.get("backing_file")
    _refuse_what_is_not_built(options, version)
    if extended_l2:
        if version < 3:
            raise _needs_v3("Extended L2 entries are only supported with compatibility level 1.1 and above")
        if cluster_size < MIN_EXTENDED_L2_CLUSTER_SIZE:
            raise OptionError(
                "Extended L2 entries are only supported with cluster sizes of at least"
                f" {MIN_EXTENDED_L2_CLUSTER_SIZE} bytes",
                option="extended_l2",
            )
    if prealloc is not Prealloc.OFF and backing_file and not extended_l2:
        raise OptionError(
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            option="preallocation",
        )
    if options.get("lazy_refcounts") and version < 3:
        raise _needs_v3("Lazy refcounts only supported with compatibility level 1.1 and above")
    refcount_order = _refcount_order(options, version)
    if compression != COMPRESSION_ZLIB and version < 3:
        raise _needs_v3("Non-zlib compression type is only supported with compatibility level 1.1 and above")

    header = Header(version, cluster_size.bit_length() - 1, _size(options), 0, 0, 0, 0)
    header.header_length = V2_LENGTH if version == 2 else V3_LENGTH
    header.refcount_order = refcount_order
    header.compression_type = compression
    header.incompatible_features = (INCOMPAT_EXTENDED_L2 if extended_l2 else 0) | (
        INCOMPAT_COMPRESSION if compression != COMPRESSION_ZLIB else 0
    )
    if options.get("data_file") is not None:
        header.incompatible_features |= INCOMPAT_DATA_FILE
        if options.get("data_file_raw"):
            header.autoclear_features |= AUTOCLEAR_DATA_FILE_RAW
            prealloc = max(prealloc, Prealloc.METADATA, key=list(Prealloc).index)
    header.compatible_features = COMPAT_LAZY_REFCOUNTS if options.get("lazy_refcounts") else 0
    header.extensions = _extensions(options, header)
    header.backing_file = backing_file
    if header.size > header.max_size:
        raise OptionError(
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)", option="size"
        )
    header.l1_size = header.l1_entries_needed
    return header, prealloc


def _choice(options: Mapping[str, Any], option: str, name: str, choices: Mapping[str, Any], default: Any) -> Any:
    """The meaning of an option that takes one of some words; `name` is what the message calls it."""
    value = options.get(option)
    if value is None:
        return default
    if value not in choices:
        raise OptionError(f"Parameter '{name}' does not accept value '{value}'", option=option)
    return choices[value]


def _needs_v3(message: str) -> OptionError:
    return OptionError(f"{message} (use version=v3 or greater)", option="compat")


def _size(options: Mapping[str, Any]) -> int:
    size = options.get("size")
    if size is None:
        raise OptionError("Parameter 'size' is missing", option="size")
    return (int(size) + 511) // 512 * 512


def cluster_size_of(options: Mapping[str, Any]) -> int:
    """The cluster size that the options ask for. Raises: OptionError."""
    size: int = options.get("cluster_size", 65536)
    if not MIN_CLUSTER_SIZE <= size <= MAX_CLUSTER_SIZE or size & (size - 1):
        raise OptionError("Cluster size must be a power of two between 512 and 2048k", option="cluster_size")
    return size


def _refcount_order(options: Mapping[str, Any], version: int) -> int:
    bits: int = options.get("refcount_bits", 16)
    if not 1 <= bits <= 64 or bits & (bits - 1):
        raise OptionError("Refcount width must be a power of two and may not exceed 64 bits", option="refcount_bits")
    if bits != 16 and version < 3:
        raise _needs_v3("Different refcount widths than 16 bits require compatibility level 1.1 or above")
    return bits.bit_length() - 1


def _extensions(options: Mapping[str, Any], header: Header) -> list[Extension]:
    found = []
    backing_format = options.get("backing_fmt")
    if options.get("backing_file") == "":
        raise OptionError("Expected backing file name, got empty string", option="backing_file")
    if backing_format is not None:
        if options.get("backing_file") is None:
            raise OptionError("Backing format cannot be used without backing file", option="backing_fmt")
        encoded = backing_format.encode("utf-8", "surrogateescape")
        if not 0 < len(encoded) <= MAX_BACKING_FORMAT:
            raise OptionError(f"Parameter 'backing-fmt' does not accept value '{backing_format}'", option="backing_fmt")
        found.append(Extension(ext.BACKING_FORMAT, encoded))
    if (data_file := options.get("data_file")) is not None:
        found.append(Extension(ext.DATA_FILE, data_file.encode("utf-8", "surrogateescape")))
    if header.version == 3 and header.cluster_size >= MIN_FEATURE_TABLE_CLUSTER_SIZE:
        found.append(ext.feature_table())
    return found


def _refuse_what_is_not_built(options: Mapping[str, Any], version: int) -> None:
    if options.get("data_file") is None:
        if options.get("data_file_raw"):
            raise OptionError("data-file-raw requires data-file", option="data_file_raw")
        return
    if version < 3:
        raise _needs_v3("External data files are only supported with compatibility level 1.1 and above")
    if options.get("data_file_raw") and options.get("backing_file") is not None:
        raise OptionError("Backing file and data-file-raw cannot be used at the same time", option="data_file_raw")


# -- writing ---------------------------------------------------------------------------------------------------------


async def _reserve(file: "BlockIO", header: Header, layout: Layout, prealloc: Prealloc, used_before: bool) -> None:
    """See that the file reaches to the end of the last cluster, and that the data clusters read as zeroes."""
    length = layout.end << header.cluster_bits
    mode = Prealloc.OFF if prealloc is Prealloc.METADATA else prealloc
    if length > file.length:
        try:
            await file.truncate(length, exact=False, prealloc=mode)
        except OSError as error:
            raise with_context(error, "Could not resize image: ")  # noqa: B904 - it is the same error
    if used_before:
        flags = REQ_MAY_UNMAP if mode is Prealloc.OFF else 0
        await file.pwrite_zeroes(header.cluster_size, length - header.cluster_size, flags)


async def _write_refcounts(file: "BlockIO", header: Header, layout: Layout) -> None:
    bits = header.cluster_bits
    table = table_to_bytes([block << bits for block in layout.blocks])
    await file.pwrite(layout.refcount_table << bits, table.ljust(layout.refcount_table_clusters << bits, b"\0"))
    full = _ones(header.refcount_block_entries, header.refcount_order).ljust(header.cluster_size, b"\0")
    for number, block in enumerate(layout.blocks):
        left = layout.end - (number << header.refcount_block_bits)
        content = full
        if left < header.refcount_block_entries:
            content = _ones(left, header.refcount_order).ljust(header.cluster_size, b"\0")
        await file.pwrite(block << bits, content)


def _ones(count: int, order: int) -> bytes:
    """`count` refcounts, each one."""
    if order >= 3:
        return (1).to_bytes(1 << (order - 3), "big") * count
    per_byte = 8 >> order
    pattern = sum(1 << (number << order) for number in range(per_byte))
    rest = pattern & ((1 << (count % per_byte << order)) - 1)
    return bytes([pattern]) * (count // per_byte) + (bytes([rest]) if rest else b"")


async def _write_mapping(file: "BlockIO", header: Header, layout: Layout) -> None:
    bits = header.cluster_bits
    if not header.l1_size:
        return
    if not layout.l2:
        await file.pwrite(layout.l1 << bits, bytes(8 * header.l1_size))
        return
    for number, (table, data) in enumerate(zip(layout.l2, layout.data, strict=True)):
        count = min(header.l2_entries, -(-header.size >> bits) - (number << header.l2_bits))
        await file.pwrite(table << bits, _l2_table(header, data, count))
    await file.pwrite(layout.l1 << bits, table_to_bytes([OFLAG_COPIED | table << bits for table in layout.l2]))


def _l2_table(header: Header, first: int, count: int) -> bytes:
    """An L2 table that maps `count` clusters in a row; extended entries with no subcluster allocated."""
    bits = header.cluster_bits
    entries = range(OFLAG_COPIED | first << bits, OFLAG_COPIED | first + count << bits, 1 << bits)
    if not header.extended_l2:
        return table_to_bytes(entries).ljust(header.cluster_size, b"\0")
    pairs = array("Q", bytes(16 * count))
    pairs[::2] = array("Q", entries)
    return table_to_bytes(pairs).ljust(header.cluster_size, b"\0")
