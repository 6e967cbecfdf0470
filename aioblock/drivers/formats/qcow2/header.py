"""The header of a qcow2 image: the first cluster, as a type, checked and written.

    byte  0 -  3   magic "QFI\\xfb"                 byte  60 -  63   nb_snapshots
          4 -  7   version: 2 or 3                        64 -  71   snapshots_offset
          8 - 15   backing_file_offset, 0: none                      version 3 only from here:
         16 - 19   backing_file_size                      72 -  79   incompatible_features
         20 - 23   cluster_bits: 9 to 21                  80 -  87   compatible_features
         24 - 31   size of the disk, bytes                88 -  95   autoclear_features
         32 - 35   crypt_method: 0, 1 AES, 2 LUKS         96 -  99   refcount_order: 0 to 6
         36 - 39   l1_size, entries                      100 - 103   header_length: 104 or more
         40 - 47   l1_table_offset                       104         compression_type: 0 zlib, 1 zstd
         48 - 55   refcount_table_offset                 105 - 111   padding
         56 - 59   refcount_table_clusters               112 ...     fields of the future, kept as they are

Big-endian. The extensions follow at header_length (see `extensions`), and the name of the backing file lies behind
them, in the same cluster.

    incompatible   0 dirty, 1 corrupt, 2 external data file, 3 compression type is not zlib, 4 extended L2 entries
    compatible     0 lazy refcounts
    autoclear      0 the bitmaps extension is consistent, 1 the external data file is raw

Every part of the header that changes while an image is open lies in its first 512 bytes, and is written by itself: see
the functions at the end. A torn write must leave the old header or the new one.
"""

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import CorruptImage, ImageError, InvalidImage, OptionError, UnsupportedFeature
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2 import validation
from aioblock.drivers.formats.qcow2.extensions import Extension
from aioblock.drivers.formats.qcow2.features import (
    COMPAT_LAZY_REFCOUNTS,
    COMPRESSION_ZLIB,
    CRYPT_NONE,
    INCOMPAT_CORRUPT,
    INCOMPAT_DATA_FILE,
    INCOMPAT_DIRTY,
    INCOMPAT_EXTENDED_L2,
)
from aioblock.drivers.formats.qcow2.snapshot_table import SnapshotEntry, read_snapshot_table
from aioblock.drivers.formats.qcow2.validation import (
    MAX_BACKING_NAME,
    MAX_CLUSTER_BITS,
    MAX_L1_BYTES,
    MAX_REFCOUNT_TABLE_BYTES,
    MIN_CLUSTER_BITS,
    V2_LENGTH,
    V3_LENGTH,
    V3_MIN_LENGTH,
)

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = [
    "Header",
    "copy_of",
    "features_field",
    "fixed_fields",
    "l1_field",
    "parse_header",
    "read_header",
    "refcount_table_field",
    "serialise",
    "size_and_l1_field",
    "size_field",
    "snapshots_field",
]

MAGIC: Final = b"QFI\xfb"
_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQIIB7x")


@dataclass(slots=True)
class Header:
    """The header of an image, its extensions and the name of its backing file. Names are the specification's.

    `parse_header` makes it from bytes and vouches for every field; offsets and sizes are in bytes.
    """

    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    backing_file_offset: int = 0
    backing_file_size: int = 0
    crypt_method: int = CRYPT_NONE
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible_features: int = 0
    compatible_features: int = 0
    autoclear_features: int = 0
    refcount_order: int = 4
    header_length: int = V3_LENGTH
    compression_type: int = COMPRESSION_ZLIB
    unknown_fields: bytes = b""
    """What lies behind byte 112 of a longer header."""
    extensions: list[Extension] = field(default_factory=list)
    """All extensions in their order, without the end mark."""
    backing_file: str | None = None
    """The name as it stands in the image, undecodable bytes as surrogates (`os.fsencode` gives them back)."""
    snapshots: list[SnapshotEntry] = field(default_factory=list)
    """The entries of the snapshot table; `nb_snapshots` of them, unless it was opened for a check."""

    # -- geometry ----------------------------------------------------------------------------------------------------

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """Whether an L2 entry has a bitmap of subclusters."""
        return bool(self.incompatible_features & INCOMPAT_EXTENDED_L2)

    @property
    def l2_entry_size(self) -> int:
        """Bytes of an L2 entry: 8 or 16."""
        return 16 if self.extended_l2 else 8

    @property
    def l2_bits(self) -> int:
        """log2 of the number of entries of an L2 table."""
        return self.cluster_bits - (4 if self.extended_l2 else 3)

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table."""
        return 1 << self.l2_bits

    @property
    def l1_entries_needed(self) -> int:
        """L1 entries that the size of the disk takes."""
        return -(-self.size >> (self.cluster_bits + self.l2_bits))

    @property
    def max_l1_size(self) -> int:
        """The most entries that an L1 table may have."""
        return MAX_L1_BYTES // 8

    @property
    def max_size(self) -> int:
        """The largest disk, in bytes, that this geometry can describe."""
        return min(self.max_l1_size << (self.cluster_bits + self.l2_bits), (1 << 63) - 512)

    @property
    def subclusters_per_cluster(self) -> int:
        """32 with extended L2 entries, else 1."""
        return 32 if self.extended_l2 else 1

    @property
    def subcluster_size(self) -> int:
        """Bytes of a subcluster; without extended L2 entries those of a cluster."""
        return self.cluster_size // self.subclusters_per_cluster

    @property
    def refcount_bits(self) -> int:
        """Bits of one refcount."""
        return 1 << self.refcount_order

    @property
    def max_refcount(self) -> int:
        """The highest refcount that can be stored."""
        return (1 << self.refcount_bits) - 1

    @property
    def refcount_block_bits(self) -> int:
        """log2 of the number of refcounts in a refcount block."""
        return self.cluster_bits + 3 - self.refcount_order

    @property
    def refcount_block_entries(self) -> int:
        """Refcounts in a refcount block."""
        return 1 << self.refcount_block_bits

    @property
    def refcount_table_size(self) -> int:
        """Entries of the refcount table."""
        return self.refcount_table_clusters << (self.cluster_bits - 3)

    @property
    def max_refcount_table_size(self) -> int:
        """The most entries that a refcount table may have."""
        return MAX_REFCOUNT_TABLE_BYTES // 8

    @property
    def csize_shift(self) -> int:
        """Where in a compressed L2 entry the count of sectors begins."""
        return 70 - self.cluster_bits

    @property
    def csize_mask(self) -> int:
        """The count of sectors in a compressed L2 entry, once shifted down."""
        return (1 << (self.cluster_bits - 8)) - 1

    @property
    def compressed_offset_mask(self) -> int:
        """The host offset in a compressed L2 entry."""
        return (1 << self.csize_shift) - 1

    # -- features ----------------------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """The refcounts may be wrong: the image was not closed."""
        return bool(self.incompatible_features & INCOMPAT_DIRTY)

    @property
    def corrupt(self) -> bool:
        """Somebody found the metadata to be wrong: no writes until it is repaired."""
        return bool(self.incompatible_features & INCOMPAT_CORRUPT)

    @property
    def lazy_refcounts(self) -> bool:
        """Refcounts may be written late, under the protection of the dirty bit."""
        return bool(self.compatible_features & COMPAT_LAZY_REFCOUNTS)

    @property
    def has_data_file(self) -> bool:
        """Guest data lies in another file."""
        return bool(self.incompatible_features & INCOMPAT_DATA_FILE)

    @property
    def backing_format(self) -> str | None:
        """The format that the image claims for its backing file, or None."""
        data = ext.find(self.extensions, ext.BACKING_FORMAT)
        return None if data is None else data.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    @property
    def encryption_header(self) -> tuple[int, int] | None:
        """Where the LUKS header lies, and its bytes, key material included; None: there is none."""
        data = ext.find(self.extensions, ext.CRYPTO)
        if data is None:
            return None
        offset, nbytes = struct.unpack(">QQ", data)
        return offset, nbytes

    @property
    def data_file(self) -> str | None:
        """The name of the external data file as it stands in the image, or None."""
        data = ext.find(self.extensions, ext.DATA_FILE)
        return None if data is None else data.decode("utf-8", "surrogateescape")


# -- reading ---------------------------------------------------------------------------------------------------------

HEAD: Final = 65536
"""How much is read at once to begin with: the whole first cluster of most images, so that one wait is enough."""


async def read_header(file: "BlockIO", filename: str, *, for_check: bool = False) -> Header:
    """Read and parse the header of `file`: by one read, unless its cluster is larger than `HEAD`.

    The table of snapshots, if there are any, is read too and must be sound; only `for_check` leaves that to the check.
    Raises: InvalidImage, CorruptImage, UnsupportedFeature, OSError.
    """
    length = file.length
    head = await file.pread(0, min(length, HEAD))
    if len(head) >= 24 and head[:4] == MAGIC:
        wanted = min(length, 1 << min(int.from_bytes(head[20:24], "big"), MAX_CLUSTER_BITS))
        if wanted > len(head):
            head += await file.pread(len(head), wanted - len(head))
    header = parse_header(head, filename, length, for_check)
    if header.nb_snapshots and not for_check:
        try:
            header.snapshots, _ = await read_snapshot_table(file, header)
        except CorruptImage as error:
            error.filename = filename
            raise
    return header


def parse_header(
    data: bytes | bytearray | memoryview, filename: str, file_length: int, for_check: bool = False
) -> Header:
    """The header in `data`, which is the first cluster, or all of a shorter file.

    `for_check` lets through what a check can tell about: a missing refcount table, an L1 table behind the end.
    Raises: InvalidImage, CorruptImage, UnsupportedFeature.
    """
    try:
        return _parse(bytes(data), file_length, for_check)
    except ImageError as error:
        error.filename = filename
        raise


def _parse(data: bytes, file_length: int, for_check: bool) -> Header:
    head = data[:V3_LENGTH].ljust(V3_LENGTH, b"\0")
    (
        magic,
        version,
        backing_offset,
        backing_size,
        cluster_bits,
        size,
        crypt_method,
        l1_size,
        l1_offset,
        reftable_offset,
        reftable_clusters,
        nb_snapshots,
        snapshots_offset,
    ) = _V2.unpack_from(head)
    if magic != MAGIC:
        raise InvalidImage("Image is not in qcow2 format", offset=0)
    if version not in (2, 3):
        raise UnsupportedFeature(f"Unsupported qcow2 version {version}", features=(f"version {version}",))
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise InvalidImage(f"Unsupported cluster size: 2^{cluster_bits}", offset=20)
    header = Header(
        version,
        cluster_bits,
        size,
        l1_size,
        l1_offset,
        reftable_offset,
        reftable_clusters,
        backing_offset,
        backing_size,
        crypt_method,
        nb_snapshots,
        snapshots_offset,
        header_length=V2_LENGTH,
    )
    if version == 3:
        (
            header.incompatible_features,
            header.compatible_features,
            header.autoclear_features,
            header.refcount_order,
            header.header_length,
            header.compression_type,
        ) = _V3.unpack_from(head, V2_LENGTH)
    cluster = data[: header.cluster_size]
    validation.complete(header, cluster, file_length, for_check)
    header.unknown_fields = cluster[V3_LENGTH : header.header_length] if version == 3 else b""
    return header


# -- writing ---------------------------------------------------------------------------------------------------------


def serialise(header: Header) -> bytes:
    """The whole first cluster. The offset and size of the backing name follow from `backing_file`, and are set.

    Raises: OptionError where the extensions and the name do not fit into one cluster.
    """
    header.header_length = V2_LENGTH if header.version == 2 else max(header.header_length, V3_MIN_LENGTH)
    if header.compression_type and header.header_length < V3_LENGTH:
        header.header_length = V3_LENGTH
    tail = ext.serialise_extensions(header.extensions)
    name = (header.backing_file or "").encode("utf-8", "surrogateescape")
    if len(name) > MAX_BACKING_NAME or b"\0" in name or b"\n" in name:
        raise OptionError("Backing file name is too long or contains a NUL or a line break", option="backing_file")
    at = header.header_length + len(tail)
    if at + len(name) > header.cluster_size:
        raise OptionError("The header does not fit into one cluster: No space left on device")
    header.backing_file_offset = at if name else 0
    header.backing_file_size = len(name)
    return (fixed_fields(header) + tail + name).ljust(header.cluster_size, b"\0")


def fixed_fields(header: Header) -> bytes:
    """The bytes up to where the extensions begin."""
    fields = _V2.pack(
        MAGIC,
        header.version,
        header.backing_file_offset,
        header.backing_file_size,
        header.cluster_bits,
        header.size,
        header.crypt_method,
        header.l1_size,
        header.l1_table_offset,
        header.refcount_table_offset,
        header.refcount_table_clusters,
        header.nb_snapshots,
        header.snapshots_offset,
    )
    if header.version == 2:
        return fields
    fields += _V3.pack(
        header.incompatible_features,
        header.compatible_features,
        header.autoclear_features,
        header.refcount_order,
        header.header_length,
        header.compression_type,
    )
    return (fields + header.unknown_fields)[: header.header_length].ljust(header.header_length, b"\0")


def copy_of(header: Header) -> Header:
    """A header that can be changed without changing this one."""
    return replace(header, extensions=list(header.extensions))


# Each gives the offset and the bytes of one write, which takes a change from the header in memory to the file.


def features_field(header: Header) -> tuple[int, bytes]:
    """Bytes 72 to 95: the feature bits. Version 3 only."""
    return 72, struct.pack(">QQQ", header.incompatible_features, header.compatible_features, header.autoclear_features)


def l1_field(header: Header) -> tuple[int, bytes]:
    """Bytes 36 to 47: size and offset of the L1 table."""
    return 36, struct.pack(">IQ", header.l1_size, header.l1_table_offset)


def refcount_table_field(header: Header) -> tuple[int, bytes]:
    """Bytes 48 to 59: offset and clusters of the refcount table."""
    return 48, struct.pack(">QI", header.refcount_table_offset, header.refcount_table_clusters)


def snapshots_field(header: Header) -> tuple[int, bytes]:
    """Bytes 60 to 71: number of snapshots and offset of their table."""
    return 60, struct.pack(">IQ", header.nb_snapshots, header.snapshots_offset)


def size_and_l1_field(header: Header) -> tuple[int, bytes]:
    """Bytes 24 to 47: the size of the disk, and size and offset of the L1 table that maps it."""
    return 24, struct.pack(">QIIQ", header.size, header.crypt_method, header.l1_size, header.l1_table_offset)


def size_field(header: Header) -> tuple[int, bytes]:
    """Bytes 24 to 31: the size of the disk."""
    return 24, struct.pack(">Q", header.size)
