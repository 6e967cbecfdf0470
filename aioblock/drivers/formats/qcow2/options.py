"""The runtime options of a qcow2 node, with QEMU's names, defaults and rules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import OptionError
from aioblock.base.options import Options
from aioblock.drivers.formats.qcow2.compression import COMPRESSION_LEVELS, compression_name
from aioblock.drivers.formats.qcow2.overlap import ALWAYS, LEVELS, PARTS

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.header import Header

__all__ = ["RUNTIME_OPTIONS", "RuntimeOptions", "take_options"]

L2_CACHE_BYTES: Final = 32 << 20
"""The most that the L2 cache takes where nobody asks for more; it is never larger than the whole image needs."""
MIN_TABLES: Final = 4
"""Of each kind, whatever the options say: that many tables one request may need at a time."""

RUNTIME_OPTIONS: Final = frozenset(
    (
        "cache-size",
        "l2-cache-size",
        "l2-cache-entry-size",
        "refcount-cache-size",
        "cache-clean-interval",
        "lazy-refcounts",
        "overlap-check",
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "compression-level",
    )
)


@dataclass(slots=True)
class RuntimeOptions:
    """What the options of a node come to."""

    l2_tables: int
    """How many L2 tables may be in memory."""
    refcount_blocks: int
    """How many refcount blocks may be in memory."""
    discard_freed: bool
    """Storage of clusters that the guest discarded is given back to the file."""
    discard_snapshot: bool
    """The same of clusters that become free with a snapshot, or when one is applied."""
    discard_other: bool
    """The same of all other clusters that become free."""
    lazy_refcounts: bool
    """Refcounts are written at the end, under the protection of the dirty bit."""
    overlap_check: frozenset[str]
    """The parts of the metadata over which nothing is written."""
    compression_level: int | None
    """How hard clusters are compressed that are written so, on the scale of the compression type; None: as usual."""


def take_options(options: "Options", header: "Header", *, unmap: bool) -> RuntimeOptions:
    """Take and check the options meant for this driver. Raises: OptionError."""
    size = header.cluster_size
    whole = -(-header.size // header.cluster_size) * header.l2_entry_size
    total = options.take_size("cache-size", None)
    l2 = options.take_size("l2-cache-size", None)
    refcounts = options.take_size("refcount-cache-size", None)
    if total is not None:
        if l2 is not None and refcounts is not None:
            raise OptionError("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
        if l2 is not None and l2 > total:
            raise OptionError("l2-cache-size may not exceed cache-size", option="l2-cache-size")
        if refcounts is not None and refcounts > total:
            raise OptionError("refcount-cache-size may not exceed cache-size", option="refcount-cache-size")
        if l2 is not None:
            refcounts = total - l2
        elif refcounts is not None:
            l2 = total - refcounts
        else:
            l2 = min(total, whole)
            refcounts = max(total - l2, 0)
    if l2 is None:
        l2 = L2_CACHE_BYTES
    l2_tables = max(-(-min(l2, whole) // size), MIN_TABLES)
    blocks = max((refcounts or 0) // size, MIN_TABLES)
    if blocks > (1 << 31) - 1:
        raise OptionError("Refcount cache size too big", option="refcount-cache-size")
    entry = options.take_size("l2-cache-entry-size", size)
    if not 512 <= entry <= size or entry & (entry - 1):
        raise OptionError(
            f"L2 cache entry size must be a power of two between 512 and the cluster size ({size})",
            option="l2-cache-entry-size",
        )
    if l2 // entry > (1 << 31) - 1:
        raise OptionError("L2 cache size too big", option="l2-cache-size")
    interval = options.take_int("cache-clean-interval", 0)
    if not 0 <= interval < 1 << 32:
        raise OptionError("Cache clean interval too big", option="cache-clean-interval")
    lazy = options.take_bool("lazy-refcounts", header.lazy_refcounts)
    if lazy and header.version < 3:
        raise OptionError(
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level", option="lazy-refcounts"
        )
    overlap_check = _take_overlap_check(options)
    discard = options.take_bool("pass-discard-request", unmap)
    snapshot = options.take_bool("pass-discard-snapshot", True)
    other = options.take_bool("pass-discard-other", False)
    level = _take_level(options, header)
    return RuntimeOptions(l2_tables, blocks, discard, snapshot, other, lazy, overlap_check, level)


def _take_level(options: "Options", header: "Header") -> int | None:
    """`compression-level`, which QEMU does not have."""
    level = options.take_int("compression-level", None)
    levels = COMPRESSION_LEVELS[header.compression_type]
    if level is not None and level not in levels:
        kind = compression_name(header.compression_type)
        raise OptionError(
            f"compression-level must be between {levels[0]} and {levels[-1]} for {kind}", option="compression-level"
        )
    return level


def _take_overlap_check(options: "Options") -> frozenset[str]:
    """The parts of the metadata that are protected: those of the template, plus and minus what is set by itself."""
    given = options.take("overlap-check")
    parts = Options(given if isinstance(given, Mapping) else {"template": given} if given is not None else {})
    template = parts.take_str("template", "cached")
    if template not in LEVELS:
        raise OptionError(
            f"Unsupported value '{template}' for qcow2 option 'overlap-check'. "
            f"Allowed are any of the following: {', '.join(LEVELS)}",
            option="overlap-check",
        )
    chosen = {name for name in PARTS if parts.take_bool(name, name in LEVELS[template])}
    for name in parts.leftover():
        raise OptionError(f"Invalid parameter 'overlap-check.{name}'", option="overlap-check")
    return frozenset(chosen) | ALWAYS
