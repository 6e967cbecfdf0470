"""Examining L1 and L2 tables as arrays: what they reference, and what is wrong with their entries. No I/O.

Everything is decided by masks over whole tables; Python looks at single entries only where one is wrong.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from aioblock.core.images import CheckResult
from aioblock.drivers.formats.qcow2.entries import (
    ALLOC_ALL,
    L1_RESERVED_MASK,
    L2_RESERVED_MASK,
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    OFLAG_COPIED,
    OFLAG_ZERO,
    SECTOR,
)
from aioblock.drivers.formats.qcow2.header import Header
from aioblock.drivers.formats.qcow2.references import (
    MAX_FINDINGS,
    Findings,
    Ints,
    References,
    Where,
    Words,
    beyond_message,
)

__all__ = ["Batch", "CopiedError", "L1Tables", "examine", "merge"]


MAX_ROUNDS: Final = 16
"""The findings of a table that is referenced more often come one by one, each so often, not all of them over again."""


class CopiedError(NamedTuple):
    """An entry whose COPIED flag does not fit the refcount."""

    l1_index: int
    l2_index: int
    """-1: the L1 entry itself."""
    entry: int
    refcount: int
    offset: int
    weight: int = 1
    """How often the entry is there."""


# -- L1 --------------------------------------------------------------------------------------------------------------


class L1Tables(NamedTuple):
    """What an L1 table says: the entries that are not zero, and the distinct L2 tables that they point to."""

    indices: Ints
    """Where in the L1 table they are."""
    entries: Words
    wrong: Ints
    """Positions in `indices` of the entries to `report`; what all others point to is counted already."""
    offsets: Ints
    """The L2 tables, in the order in which they first appear."""
    first: Ints
    """Position in `indices` where each of them first appears."""
    times: Ints
    """How often it appears."""
    cluster_bits: int

    @classmethod
    def of(cls, l1: Words, header: Header, references: References) -> "L1Tables":
        """Look at an L1 table, and count the L2 tables of the entries with which nothing is wrong."""
        indices = np.flatnonzero(l1)
        entries = l1[indices]
        offsets = (entries & np.uint64(OFFSET_MASK)).astype(np.int64)
        wrong = (
            ((entries & np.uint64(L1_RESERVED_MASK)) != 0)
            | ((offsets & (header.cluster_size - 1)) != 0)
            | references.beyond(offsets, header.cluster_size)
        )
        references.add_clusters(offsets[~wrong] >> header.cluster_bits)
        distinct, first, times = np.unique(offsets, return_index=True, return_counts=True)
        order = np.argsort(first)
        return cls(
            indices,
            entries,
            np.flatnonzero(wrong),
            distinct[order],
            first[order],
            times[order],
            header.cluster_bits,
        )

    def report(self, position: int, references: References, findings: Findings) -> None:
        """Say what is wrong with an entry, and count what it points to as far as that makes sense."""
        entry = int(self.entries[position])
        offset = entry & OFFSET_MASK
        if entry & L1_RESERVED_MASK:
            findings.corruption(f"ERROR found L1 entry with reserved bits set: {entry:x}")
        references.add_region(offset, 1 << self.cluster_bits)
        if offset & ((1 << self.cluster_bits) - 1):
            findings.corruption(f"ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted", offset)

    def wrong_copied_flags(self, references: References) -> list[CopiedError]:
        """The entries whose COPIED flag does not fit the refcount of their L2 table."""
        offsets = (self.entries & np.uint64(OFFSET_MASK)).astype(np.int64)
        clusters = offsets >> self.cluster_bits
        copied = (self.entries & np.uint64(OFLAG_COPIED)) != 0
        return [
            CopiedError(
                int(self.indices[at]),
                -1,
                int(self.entries[at]),
                references.stored_refcount(int(clusters[at])),
                int(offsets[at]),
            )
            for at in references.not_copied_once(clusters, copied, offsets != 0)
        ]


def merge(one: L1Tables, other: L1Tables) -> L1Tables:
    """The L2 tables of both; where they appear does not matter any more."""
    distinct, which = np.unique(np.concatenate((one.offsets, other.offsets)), return_inverse=True)
    times = np.zeros(len(distinct), np.int64)
    np.add.at(times, which, np.concatenate((one.times, other.times)))
    nowhere = np.zeros(len(distinct), np.int64)
    return L1Tables(nowhere, nowhere.astype(np.uint64), nowhere[:0], distinct, nowhere, times, one.cluster_bits)


# -- L2 --------------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """L2 tables that are examined together."""

    l1_indices: Ints
    offsets: Ints
    tables: Words
    """A row for each table: its entries and, with extended L2 entries, between them the bitmaps."""
    weight: int
    """How often each of the tables is referenced."""
    active: bool
    """They belong to the active L1 table, not to a snapshot."""


def examine(
    batch: Batch, header: Header, references: References, findings: Findings, result: CheckResult
) -> list[CopiedError]:
    """Count what the tables reference, and report what is wrong; the wrong COPIED flags are given back."""
    if header.extended_l2:
        flat, bitmaps = batch.tables[:, ::2].reshape(-1), batch.tables[:, 1::2].reshape(-1)
        place = np.flatnonzero(flat | bitmaps)
        bitmap = bitmaps[place]
    else:
        flat = batch.tables.reshape(-1)
        place = np.flatnonzero(flat)
        bitmap = flat[:0]
    entry = flat if len(place) == len(flat) else flat[place]
    wrong = _Wrong(findings, batch.weight)
    none = np.zeros(len(entry), np.bool_)
    seen = int(np.bitwise_or.reduce(entry))  # a bit that no entry has needs no mask

    compressed = (entry & np.uint64(OFLAG_COMPRESSED)) != 0 if seen & OFLAG_COMPRESSED else none
    offset = (entry & np.uint64(OFFSET_MASK)).view(np.int64)
    allocated = (offset != 0) & ~compressed
    packed = compressed
    if seen & L2_RESERVED_MASK:
        reserved = ~compressed & ((entry & np.uint64(L2_RESERVED_MASK)) != 0)
        wrong.note(reserved, 0, lambda at: (f"ERROR found l2 entry with reserved bits set: {int(entry[at]):x}", None))
    if seen & OFLAG_COMPRESSED and seen & OFLAG_COPIED:
        mask = np.uint64(header.compressed_offset_mask)
        copied_too = compressed & (entry >= np.uint64(OFLAG_COPIED))
        wrong.note(copied_too, 0, lambda at: _copied_message(int(entry[at] & mask)))
    if header.extended_l2:
        columns = place & (header.l2_entries - 1)
        packed = compressed & ~_check_bitmaps(bitmap, entry, offset, compressed, columns, wrong)
    misaligned = none
    if seen & OFFSET_MASK & (header.cluster_size - 1):
        misaligned = allocated & ((offset & (header.cluster_size - 1)) != 0)
        no_data = (bitmap & np.uint64(ALLOC_ALL) if header.extended_l2 else ~entry & np.uint64(OFLAG_ZERO)) == 0
        wrong.note(misaligned, 2, lambda at: _misaligned_message(bool(no_data[at]), int(offset[at])))
    beyond = allocated & references.beyond(offset, header.cluster_size)
    wrong.note(beyond, 3, lambda at: (beyond_message(int(offset[at]), header.cluster_size), int(offset[at])))
    touched = _compressed_clusters(entry, np.flatnonzero(packed), header, references, wrong)
    wrong.report()
    clusters = offset >> header.cluster_bits
    references.add_clusters(clusters[allocated & ~beyond], batch.weight)
    references.add_clusters(clusters[misaligned & ~beyond] + 1, batch.weight)
    references.add_clusters(touched, batch.weight)

    if not batch.active:
        return []
    compressed_count = int(packed.sum())
    result.allocated_clusters += (int(allocated.sum()) + compressed_count) * batch.weight
    result.compressed_clusters += compressed_count * batch.weight
    result.fragmented_clusters += (compressed_count + _breaks(place, offset, allocated, header)) * batch.weight

    copied = entry >= np.uint64(OFLAG_COPIED)
    # An L1 entry without an offset is taken for a table when references are counted, but has no flags to be trusted.
    trusted = allocated if batch.offsets.all() else allocated & (batch.offsets[place >> header.l2_bits] != 0)
    bad = references.not_copied_once(clusters, copied, trusted)
    result.corruptions += max(0, len(bad) - MAX_FINDINGS) * batch.weight
    return [
        CopiedError(
            int(batch.l1_indices[place[at] >> header.l2_bits]),
            int(place[at] & (header.l2_entries - 1)),
            int(entry[at]),
            references.stored_refcount(int(clusters[at])),
            int(offset[at]),
            batch.weight,
        )
        for at in bad[:MAX_FINDINGS]
    ]


class _Wrong:
    """What is wrong in a batch: found kind by kind, reported in the order of the entries."""

    def __init__(self, findings: Findings, weight: int) -> None:
        self.findings = findings
        self.weight = weight
        self.notes: list[tuple[int, int, str, int | None]] = []

    def note(self, where: Where, order: int, tell: Callable[[int], tuple[str, int | None]]) -> None:
        """`tell` gives message and offset for a place; `order` is the place among what is said of one entry."""
        for at in np.flatnonzero(where).tolist():
            self.notes.append((at, order, *tell(at)))

    def report(self) -> None:
        notes = sorted(self.notes, key=lambda note: note[:2])
        rounds = self.weight if self.weight <= MAX_ROUNDS else 1
        for _ in range(rounds):
            for _, _, message, offset in notes:
                self.findings.corruption(message, offset, self.weight // rounds)


def _check_bitmaps(bitmap: Words, entry: Words, offset: Ints, compressed: Where, columns: Ints, wrong: _Wrong) -> Where:
    """Report impossible bitmaps. Gives the compressed entries that have one: what they reference is not counted."""
    allocated = (bitmap & np.uint64(ALLOC_ALL)) != 0
    both = (bitmap & (bitmap >> np.uint64(32)) & np.uint64(ALLOC_ALL)) != 0
    bad: Where = compressed & (bitmap != 0)
    wrong.note(
        bad,
        1,
        lambda at: (
            f"ERROR compressed cluster {int(columns[at])} with non-zero subcluster allocation bitmap,"
            f" entry={int(entry[at]) & ~OFLAG_COPIED:#x}",
            None,
        ),
    )
    wrong.note(
        ~compressed & (offset != 0) & both,
        1,
        lambda at: (
            f"ERROR offset={int(offset[at]):x}: Allocated cluster has corrupted subcluster allocation bitmap",
            int(offset[at]),
        ),
    )
    wrong.note(
        ~compressed & (offset == 0) & allocated,
        1,
        lambda at: ("ERROR: Unallocated cluster has non-zero subcluster allocation map", None),
    )
    return bad


def _misaligned_message(no_data: bool, offset: int) -> tuple[str, int]:
    kind = "Preallocated" if no_data else "Data"
    return f"ERROR offset={offset:x}: {kind} cluster is not properly aligned; L2 entry corrupted.", offset


def _copied_message(offset: int) -> tuple[str, int]:
    return f"ERROR: coffset={offset:#x}: copied flag must never be set for compressed clusters", offset


def _compressed_clusters(entry: Words, where: Ints, header: Header, references: References, wrong: _Wrong) -> Ints:
    """The clusters that the compressed entries at `where` touch, one to three each; those that cannot be, reported."""
    if not where.size:
        return where
    packed = entry[where]
    offset = (packed & np.uint64(header.compressed_offset_mask)).astype(np.int64)
    sectors = ((packed >> np.uint64(header.csize_shift)) & np.uint64(header.csize_mask)).astype(np.int64) + 1
    nbytes = sectors * SECTOR - (offset & (SECTOR - 1))
    beyond = references.beyond(offset, nbytes)
    for at in np.flatnonzero(beyond).tolist():
        start = int(offset[at])
        wrong.notes.append((int(where[at]), 3, beyond_message(start, int(nbytes[at])), start))
    first = offset >> header.cluster_bits
    last = (offset + nbytes - 1) >> header.cluster_bits
    return np.concatenate(
        [first[~beyond & (first + more <= last)] + more for more in range(int((last - first).max()) + 1)]
    )


def _breaks(place: Ints, offset: Ints, allocated: Where, header: Header) -> int:
    """How many clusters do not lie right behind the one before them in the same table."""
    if not allocated.all():
        place, offset = place[allocated], offset[allocated]
    jump = np.flatnonzero(np.diff(offset) != header.cluster_size)
    return int((place[jump] >> header.l2_bits == place[jump + 1] >> header.l2_bits).sum())
