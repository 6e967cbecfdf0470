"""Examining L1 and L2 tables as arrays: what they reference, and what is wrong with their entries. No I/O.

Everything is decided by masks over whole tables; Python looks at single entries only where one is wrong.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from aioblock.core.images import CheckResult
from aioblock.drivers.formats.qcow2.edits import Edits
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
    distinct,
    repairing,
)

__all__ = ["Batch", "CopiedError", "L1Tables", "Scope", "examine", "merge", "wrong_copied_flags"]

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

    def message(self, fixed: bool = False) -> str:
        """The words of qemu-img."""
        if self.l2_index < 0:
            text = f"L2 cluster: l1_index={self.l1_index} l1_entry={self.entry:x}"
        else:
            text = f"data cluster: l2_entry={self.entry:x}"
        return f"{'Repairing' if fixed else 'ERROR'} OFLAG_COPIED {text} refcount={self.refcount}"


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
        found, first, times = distinct(offsets)
        order = np.argsort(first)
        return cls(
            indices,
            entries,
            np.flatnonzero(wrong),
            found[order],
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
    together = np.concatenate((one.offsets, other.offsets))
    order = np.argsort(together, kind="stable")
    found, _, _ = distinct(together)
    nowhere = np.zeros(len(found), np.int64)
    starts = np.searchsorted(together[order], found)
    times = np.concatenate((one.times, other.times))[order]
    counts = np.add.reduceat(times, starts) if found.size else nowhere
    return L1Tables(nowhere, nowhere.astype(np.uint64), nowhere[:0], found, nowhere, counts, one.cluster_bits)


# -- L2 --------------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """L2 tables that are examined together."""

    first: int
    """Position of the L1 entry where the first of them first appears, as in `L1Tables.first`."""
    l1_indices: Ints
    offsets: Ints
    tables: Words
    """A row for each table: its entries and, with extended L2 entries, between them the bitmaps."""
    weight: int
    """How often each of the tables is referenced."""
    active: bool
    """They belong to the active L1 table, not to a snapshot."""


class Scope(NamedTuple):
    """What an examination of L2 tables goes by, and where its results go."""

    header: Header
    references: References
    findings: Findings
    result: CheckResult
    edits: Edits | None
    """Takes the repairs of entries; None: nothing is repaired."""
    copied: bool
    """The COPIED flags are compared with the stored refcounts."""


def examine(batch: Batch, scope: Scope) -> list[CopiedError]:
    """Count what the tables reference, and report what is wrong; the wrong COPIED flags are given back."""
    header, references, result = scope.header, scope.references, scope.result
    if header.extended_l2:
        flat, bitmaps = batch.tables[:, ::2].reshape(-1), batch.tables[:, 1::2].reshape(-1)
        place = np.flatnonzero(flat | bitmaps)
        bitmap = bitmaps[place]
    else:
        flat = batch.tables.reshape(-1)
        place = np.flatnonzero(flat)
        bitmap = flat[:0]
    entry = flat if len(place) == len(flat) else flat[place]
    wrong = _Wrong(scope.findings, batch.weight)
    none = np.zeros(len(entry), np.bool_)
    seen = int(np.bitwise_or.reduce(entry))  # a bit that no entry has needs no mask

    compressed = (entry & np.uint64(OFLAG_COMPRESSED)) != 0 if seen & OFLAG_COMPRESSED else none
    offset = (entry & np.uint64(OFFSET_MASK)).view(np.int64)
    allocated = (offset != 0) & ~compressed
    if header.has_data_file:  # where a cluster may lie at offset 0: then COPIED tells
        allocated |= (entry >= np.uint64(OFLAG_COPIED)) & ~compressed
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
        if scope.edits is not None:
            dropped = _drop(misaligned & no_data, entry, place, batch, scope.edits, header)
            wrong.note(dropped, 2, lambda at: _misaligned_message(True, int(offset[at])), fixed=True)
            misaligned &= ~dropped
            allocated &= ~dropped
        wrong.note(misaligned, 2, lambda at: _misaligned_message(bool(no_data[at]), int(offset[at])))
    clusters = offset >> header.cluster_bits
    if header.has_data_file:
        wrong.note(
            packed, 3, lambda at: (_with_data_file(int(place[at] & (header.l2_entries - 1)), int(entry[at])), None)
        )
        packed = none
        wrong.report()
    else:
        beyond = allocated & references.beyond(offset, header.cluster_size)
        wrong.note(beyond, 3, lambda at: (beyond_message(int(offset[at]), header.cluster_size), int(offset[at])))
        touched = _compressed_clusters(entry, np.flatnonzero(packed), header, references, wrong)
        wrong.report()
        references.add_clusters(clusters[allocated & ~beyond], batch.weight)
        references.add_clusters(clusters[misaligned & ~beyond] + 1, batch.weight)
        references.add_clusters(touched, batch.weight)
        references.add_far(clusters[beyond])
        references.add_far(clusters[beyond & misaligned] + 1)

    if not batch.active:
        return []
    compressed_count = int(packed.sum())
    result.allocated_clusters += (int(allocated.sum()) + compressed_count) * batch.weight
    result.compressed_clusters += compressed_count * batch.weight
    result.fragmented_clusters += (compressed_count + _breaks(place, offset, allocated, header)) * batch.weight
    return wrong_copied_flags(batch, header, references, place)[1] if scope.copied else []


def wrong_copied_flags(
    batch: Batch, header: Header, references: References, place: Ints | None = None
) -> tuple[Ints, list[CopiedError]]:
    """The entries whose COPIED flags are wrong: where their words are in `batch.tables`, flat; and the first of them.

    `place`: the entries that are not zero, where that is known. Clusters of an external data file have no refcount:
    they belong to this image alone.
    """
    step = 2 if header.extended_l2 else 1
    flat = batch.tables.reshape(-1)[::step]
    if place is None:
        place = np.flatnonzero(flat)
    entry = flat if len(place) == len(flat) else flat[place]
    offset = (entry & np.uint64(OFFSET_MASK)).view(np.int64)
    clusters = offset >> header.cluster_bits
    copied = entry >= np.uint64(OFLAG_COPIED)
    which = (offset != 0) & ((entry & np.uint64(OFLAG_COMPRESSED)) == 0)
    if not batch.offsets.all():
        # An L1 entry without an offset is taken for a table when references are counted, but has no flags to trust.
        which &= batch.offsets[place >> header.l2_bits] != 0
    if header.has_data_file:
        bad = np.flatnonzero(which & ~copied)
    else:
        bad = references.not_copied_once(clusters, copied, which)
    errors = [
        CopiedError(
            int(batch.l1_indices[place[at] >> header.l2_bits]),
            int(place[at] & (header.l2_entries - 1)),
            int(entry[at]),
            1 if header.has_data_file else references.stored_refcount(int(clusters[at])),
            int(offset[at]),
            batch.weight,
        )
        for at in bad[:MAX_FINDINGS].tolist()
    ]
    return place[bad] * step, errors


def _drop(where: Where, entry: Words, place: Ints, batch: Batch, edits: Edits, header: Header) -> Where:
    """Repair entries that keep a cluster without using it: they keep none. Gives those for which that is possible."""
    dropped = np.zeros(len(where), np.bool_)
    for at in np.flatnonzero(where).tolist():
        table = int(batch.offsets[place[at] >> header.l2_bits])
        column = int(place[at] & (header.l2_entries - 1))
        zero = 0 if header.extended_l2 else OFLAG_ZERO
        dropped[at] = edits.add(table + column * header.l2_entry_size, zero, header.cluster_bits)
    return dropped


class _Wrong:
    """What is wrong in a batch: found kind by kind, reported in the order of the entries."""

    def __init__(self, findings: Findings, weight: int) -> None:
        self.findings = findings
        self.weight = weight
        self.notes: list[tuple[int, int, str, int | None, bool]] = []

    def note(
        self, where: Where, order: int, tell: Callable[[int], tuple[str, int | None]], *, fixed: bool = False
    ) -> None:
        """`tell` gives message and offset for a place; `order` is the place among what is said of one entry."""
        for at in np.flatnonzero(where).tolist():
            message, offset = tell(at)
            self.notes.append((at, order, repairing(message) if fixed else message, offset, fixed))

    def report(self) -> None:
        notes = sorted(self.notes, key=lambda note: note[:2])
        rounds = self.weight if self.weight <= MAX_ROUNDS else 1
        for _ in range(rounds):
            for _, _, message, offset, fixed in notes:
                self.findings.corruption(message, offset, self.weight // rounds, fixed=fixed)


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


def _with_data_file(index: int, entry: int) -> str:
    return f"ERROR compressed cluster {index} with data file, entry={entry & ~OFLAG_COPIED:#x}"


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
        wrong.notes.append((int(where[at]), 3, beyond_message(start, int(nbytes[at])), start, False))
    first = offset >> header.cluster_bits
    last = (offset + nbytes - 1) >> header.cluster_bits
    references.add_far(np.concatenate([first[beyond], last[beyond]]))
    return np.concatenate(
        [first[~beyond & (first + more <= last)] + more for more in range(int((last - first).max()) + 1)]
    )


def _breaks(place: Ints, offset: Ints, allocated: Where, header: Header) -> int:
    """How many clusters do not lie right behind the one before them in the same table."""
    if not allocated.all():
        place, offset = place[allocated], offset[allocated]
    jump = np.flatnonzero(np.diff(offset) != header.cluster_size)
    return int((place[jump] >> header.l2_bits == place[jump + 1] >> header.l2_bits).sum())
