"""Measure: how large the file of a new image becomes, without making it.

header, L1 table, L2 tables for the whole disk, refcounts for all of that   what is there in any case
clusters with data                                                          what is there because of the source
all other clusters                                                          when the guest has written everything
"""

from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aioblock.base.errors import OptionError
from aioblock.core.images import Measurement, Prealloc
from aioblock.drivers.formats.qcow2.create import MIN_EXTENDED_L2_CLUSTER_SIZE, cluster_size_of
from aioblock.drivers.formats.qcow2.features import INCOMPAT_EXTENDED_L2
from aioblock.drivers.formats.qcow2.header import Header

if TYPE_CHECKING:
    from aioblock.core.dirty_bitmap import DirtyBitmap

__all__ = ["measure"]

_VERSIONS = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}


async def measure(
    options: Mapping[str, Any],
    size: int,
    data: AsyncIterable[tuple[int, int]] | None,
    bitmaps: "Iterable[DirtyBitmap] | None",
) -> Measurement:
    """See `BlockDriver.measure`. Raises: OptionError; what `data` raises."""
    header, prealloc = _geometry(options)
    header.size = -(-size >> header.cluster_bits) << header.cluster_bits
    if header.size > header.max_size:
        raise OptionError("The image size is too large (try using a larger cluster size)", option="size")
    clusters = header.size >> header.cluster_bits
    everything = _all_clusters(header, clusters + _encryption_clusters(options, header)) << header.cluster_bits
    if prealloc in (Prealloc.FALLOC, Prealloc.FULL) or (data is not None and options.get("backing_file")):
        used = clusters  # of a backing file nobody knows how much of the source is in it: all may have to be stored
    elif data is not None:
        used = await _touched(data, header.cluster_bits)
    else:
        used = 0
    required = everything - (clusters - used << header.cluster_bits)
    if bitmaps is None or header.version < 3:
        return Measurement(required, everything, None)
    from aioblock.drivers.formats.qcow2.bitmaps import bitmaps_size

    return Measurement(required, everything, bitmaps_size(bitmaps, header.cluster_size))


def _geometry(options: Mapping[str, Any]) -> tuple[Header, Prealloc]:
    """A header of that geometry, for a disk without a size. Raises: OptionError."""
    cluster_size = cluster_size_of(options)
    compat = options.get("compat", "1.1")
    if compat not in _VERSIONS:
        raise OptionError(f"Invalid compatibility level: '{compat}'", option="compat")
    mode = options.get("preallocation", "off")
    if mode not in list(Prealloc):
        raise OptionError(f"invalid parameter value: {mode}", option="preallocation")
    bits = options.get("refcount_bits", 16)
    if not 1 <= bits <= 64 or bits & (bits - 1):
        raise OptionError("Refcount width must be a power of two and may not exceed 64 bits", option="refcount_bits")
    if bits != 16 and _VERSIONS[compat] < 3:
        raise OptionError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above"
            " (use compat=1.1 or greater)",
            option="refcount_bits",
        )
    header = Header(_VERSIONS[compat], cluster_size.bit_length() - 1, 0, 0, 0, 0, 0)
    header.refcount_order = bits.bit_length() - 1
    if options.get("extended_l2"):
        if cluster_size < MIN_EXTENDED_L2_CLUSTER_SIZE:
            raise OptionError(
                "Extended L2 entries are only supported with cluster sizes of at least"
                f" {MIN_EXTENDED_L2_CLUSTER_SIZE} bytes",
                option="extended_l2",
            )
        header.incompatible_features = INCOMPAT_EXTENDED_L2
    return header, Prealloc(mode)


def _encryption_clusters(options: Mapping[str, Any], header: Header) -> int:
    """Clusters of the LUKS header. Raises: OptionError."""
    if options.get("encrypt.format") != "luks":
        return 0
    from aioblock.luks.creating import take_parameters

    return -(-take_parameters(options, "encrypt.").payload_offset >> header.cluster_bits)


def _all_clusters(header: Header, data: int) -> int:
    """Clusters of a file that holds `data` clusters of data and everything that an image has around them."""
    disk = header.size >> header.cluster_bits
    l2 = -(-disk >> header.l2_bits)
    l1 = -(-8 * l2 >> header.cluster_bits)
    return _with_refcounts(header, 1 + l1 + l2 + data)


def _with_refcounts(header: Header, clusters: int) -> int:
    """So many clusters, and those of the refcount blocks and the table that count them and themselves."""
    blocks = table = 0
    while True:
        total = clusters + blocks + table
        needed = -(-total >> header.refcount_block_bits)
        needed_table = -(-8 * needed >> header.cluster_bits)
        if (needed, needed_table) == (blocks, table):
            return total
        blocks, table = needed, needed_table


async def _touched(data: AsyncIterable[tuple[int, int]], cluster_bits: int) -> int:
    """How many clusters runs of data, in ascending order, touch."""
    used = behind = 0
    async for offset, nbytes in data:
        first = max(offset >> cluster_bits, behind)
        behind = -(-(offset + nbytes) >> cluster_bits)
        used += max(behind - first, 0)
    return used
