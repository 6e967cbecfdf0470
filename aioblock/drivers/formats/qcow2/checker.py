"""The check of a qcow2 image: every reference is counted and compared with the refcounts. Nothing is changed.

Words and order of the findings are those of `qemu-img check`: the header, the active L1 and L2 tables, those of the
snapshots, the snapshot table, bitmaps, the refcount table and its blocks, then each cluster whose refcount is not the
number of its references, and last the COPIED flags.

Each distinct L2 table is examined once for the active image and once for all snapshots, however often it is referenced:
a small file with an L1 table that names the same L2 table four million times is checked as fast as any small file.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from aioblock.base.errors import CorruptImage, ImageError, message_of
from aioblock.core.images import CheckResult
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.bitmap_directory import (
    TABLE_OFFSET_MASK,
    TABLE_RESERVED_MASK,
    BitmapEntry,
    read_bitmap_directory,
)
from aioblock.drivers.formats.qcow2.edits import Edits
from aioblock.drivers.formats.qcow2.entries import REFTABLE_OFFSET_MASK, REFTABLE_RESERVED_MASK
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_BITMAPS
from aioblock.drivers.formats.qcow2.header import Header
from aioblock.drivers.formats.qcow2.references import (
    MAX_CLUSTERS,
    FarReferences,
    Findings,
    Ints,
    References,
    Words,
    decode_refcounts,
    words_of,
)
from aioblock.drivers.formats.qcow2.snapshot_table import SnapshotEntry, incomplete_entries, read_snapshot_table
from aioblock.drivers.formats.qcow2.table_check import Batch, CopiedError, L1Tables, Scope, examine, merge
from aioblock.drivers.formats.qcow2.table_runs import count_runs

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["Checker", "Progress"]

BATCH_BYTES: Final = 1 << 20
"""How much of the tables is read and examined at a time."""
INLINE_BYTES: Final = 16 << 10
"""What is no larger than this is examined without a hop to a thread."""
MIN_NEAR: Final = 1024
"""A reference so many clusters behind the end of the file, or behind twice its length, may be what a power cut left."""
PARALLEL: Final = 16
"""How many reads are under way at a time."""
COMPARE_CLUSTERS: Final = 1 << 20
TURNS: Final = 1024
"""How many steps of plain Python go by before others get a turn."""
MAX_SNAPSHOT_L1_ENTRIES: Final = 1 << 27
"""All L1 tables of all snapshots together: 1 GiB. Tables that lie over each other could ask for 2 TiB."""
MAX_BITMAP_TABLE_ENTRIES: Final = 1 << 27
"""The same for the tables of all bitmaps."""

_T = TypeVar("_T")


Progress = Callable[[int, int], None]
"""Called with the bytes of metadata that are checked, and how many there are as far as is known by then."""


class Checker:
    """One check of one image; `repair` goes through its steps one by one."""

    def __init__(
        self, file: "BlockIO", header: Header, progress: Progress | None = None, edits: Edits | None = None
    ) -> None:
        self.file = file
        self.header = header
        self.result = CheckResult(total_clusters=-(-header.size >> header.cluster_bits))
        self.findings = Findings(self.result)
        self.references = References(header, file.length, self.findings)
        self.reftable: Words = np.zeros(0, np.uint64)
        self.edits = edits
        """Not None: errors are to be repaired, and this takes the repairs of L2 entries."""
        if edits is not None:
            self.references.far = FarReferences()
            self.references.far.near = 2 * self.references.nb_clusters + MIN_NEAR
        self.active: L1Tables | None = None
        """The active L1 table, when it has been looked at."""
        self.needs_rebuild = False
        """The refcount structure cannot be trusted, nor be changed where it is."""
        self.structure: list[Ints] = []
        """The clusters of the refcount structure, as they were counted: once in each of these."""
        self.structure_corruptions = 0
        """How many of the corruptions are those of the refcount structure, which a rebuild repairs."""
        self.incomplete = False
        """There are references that could not be followed."""
        self._progress = progress
        self._done = self._total = 0

    async def run(self) -> CheckResult:
        """Check, and change nothing. Raises: OSError."""
        copied = await self.count(copied=True)
        if copied is not None:
            await self.compare()
            self._report_copied(copied)
            self._advance(self._total - self._done)
        return self.result

    async def count(self, *, copied: bool) -> list[CopiedError] | None:
        """Count all references. With `copied` the wrong COPIED flags are given back. None: there was no counting.

        Raises: OSError.
        """
        header = self.header
        snapshots: list[SnapshotEntry] = []
        table_bytes = 0
        if header.nb_snapshots:
            try:
                snapshots, table_bytes = await read_snapshot_table(self.file, header)
            except CorruptImage as error:
                self.findings.error(f"ERROR failed to read the snapshot table: {error}", error.offset)
                return None
            for number in incomplete_entries(snapshots, header.version):
                self.findings.corruption(f"ERROR snapshot table entry {number} is incomplete")

        await self._load_refcounts()
        self._protect(0, header.cluster_size)
        self._protect(header.l1_table_offset, 8 * header.l1_size)
        self._protect(header.refcount_table_offset, header.refcount_table_clusters << header.cluster_bits)
        self._protect(header.snapshots_offset, table_bytes)
        for snapshot in snapshots:
            self._protect(snapshot.l1_table_offset, 8 * snapshot.l1_size)
        self.references.add_region(0, header.cluster_size)
        errors = await self._active_tables(copied=copied)
        await self._snapshot_tables(snapshots)
        self.references.add_region(header.snapshots_offset, table_bytes)
        self._encryption_header()
        await self._bitmaps()
        await self._refcount_blocks()
        return errors

    def _protect(self, offset: int, nbytes: int) -> None:
        if self.edits is not None and nbytes:
            self.edits.protect(offset >> self.header.cluster_bits, offset + nbytes - 1 >> self.header.cluster_bits)

    def _advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)

    # -- L1 and L2 tables --------------------------------------------------------------------------------------------

    async def _active_tables(self, *, copied: bool) -> list[CopiedError]:
        l1 = await self._read_l1(self.header.l1_table_offset, self.header.l1_size)
        self.active = tables = await self.slice(l1.nbytes, lambda: L1Tables.of(l1, self.header, self.references))
        wrong = tables.wrong_copied_flags(self.references) if copied else []
        return wrong + await self._l2_tables(tables, active=True, copied=copied)

    async def _snapshot_tables(self, snapshots: list[SnapshotEntry]) -> None:
        together = L1Tables.of(words_of(b""), self.header, self.references)
        budget = MAX_SNAPSHOT_L1_ENTRIES
        for entry in snapshots:
            incomplete, self.incomplete = self.incomplete, True  # until the table is known to be sound
            name = f"snapshot {_shown(entry.id)} ({_shown(entry.name)})"
            if entry.l1_table_offset & (self.header.cluster_size - 1):
                self.findings.corruption(
                    f"ERROR {name} l1_offset={entry.l1_table_offset:#x}: L1 table is not cluster aligned;"
                    " snapshot table entry corrupted"
                )
                continue
            if entry.l1_size > self.header.max_l1_size:
                self.findings.corruption(
                    f"ERROR {name} l1_size={entry.l1_size:#x}: L1 table is too large; snapshot table entry corrupted"
                )
                continue
            budget -= entry.l1_size
            if budget < 0:
                self.findings.error("ERROR the L1 tables of the snapshots are too large to be checked")
                break
            l1 = await self._read_l1(entry.l1_table_offset, entry.l1_size)
            tables = await self.slice(
                l1.nbytes,
                lambda l1=l1: L1Tables.of(l1, self.header, self.references),  # type: ignore[misc]
            )
            await self._wrong_l1_entries(tables, 0, len(tables.wrong))
            together = merge(together, tables)
            self.incomplete = incomplete
        await self._l2_tables(together, active=False, copied=False)

    async def _read_l1(self, offset: int, entries: int) -> Words:
        """Count an L1 table, and read it as far as it lies in the file: what is behind is zero."""
        self.references.add_region(offset, 8 * entries)
        there = min(8 * entries, max(0, self.file.length - offset + 7 & ~7))
        return words_of(await self._read(offset, there, "check_refcounts_l1", beyond=offset + 8 * entries >= 1 << 63))

    async def _l2_tables(self, tables: L1Tables, *, active: bool, copied: bool) -> list[CopiedError]:
        """Examine each distinct L2 table; wrong L1 entries are reported when their turn comes."""
        scope = Scope(self.header, self.references, self.findings, self.result, self.edits, copied)
        self._total += len(tables.offsets) << self.header.cluster_bits
        errors: list[CopiedError] = []
        reported = 0
        async for batch in self.batches(tables, active=active):
            until = int(np.searchsorted(tables.wrong, batch.first, "right"))
            await self._wrong_l1_entries(tables, reported, until)
            reported = until
            if not count_runs(batch, scope):
                errors += await self.slice(batch.tables.nbytes, lambda batch=batch: examine(batch, scope))  # type: ignore[misc]
            self._advance(batch.tables.nbytes)
        await self._wrong_l1_entries(tables, reported, len(tables.wrong))
        return errors

    async def batches(self, tables: L1Tables, *, active: bool) -> AsyncIterator[Batch]:
        """The distinct L2 tables: one that appears often alone, else several, up to the next wrong L1 entry."""
        at_once = max(1, BATCH_BYTES >> self.header.cluster_bits)
        start = 0
        while start < len(tables.offsets):
            first = int(tables.first[start])
            until = int(np.searchsorted(tables.wrong, first, "right"))
            limit = int(tables.wrong[until]) if until < len(tables.wrong) else len(tables.entries)
            end = start + 1
            weight = int(tables.times[start])
            while weight == 1 and end < min(start + at_once, len(tables.offsets)):
                if tables.times[end] != 1 or tables.first[end] >= limit:
                    break
                end += 1
            data = await self._read_clusters(tables.offsets[start:end].tolist(), "check_refcounts_l2")
            yield Batch(
                first,
                tables.indices[tables.first[start:end]],
                tables.offsets[start:end],
                words_of(data).reshape(-1, self.header.cluster_size // 8),
                weight,
                active,
            )
            start = end

    async def _wrong_l1_entries(self, tables: L1Tables, start: int, end: int) -> None:
        for number in range(start, end):
            tables.report(int(tables.wrong[number]), self.references, self.findings)
            if number % TURNS == TURNS - 1:
                await asyncio.sleep(0)

    # -- what else there is ------------------------------------------------------------------------------------------

    def _encryption_header(self) -> None:
        data = ext.find(self.header.extensions, ext.CRYPTO)
        if data is not None:
            self.references.add_region(*struct.unpack(">QQ", data))

    async def _bitmaps(self) -> None:
        data = ext.find(self.header.extensions, ext.BITMAPS)
        if data is None or not self.header.autoclear_features & AUTOCLEAR_BITMAPS:
            return
        try:
            bitmaps = await read_bitmap_directory(self.file, self.header)
        except ImageError as error:
            self.findings.corruption(f"ERROR {error}", error.offset)
            self.incomplete = True
            return
        place = ext.parse_bitmaps(data, self.header.cluster_size)
        self.references.add_region(place.directory_offset, place.directory_size)
        budget = MAX_BITMAP_TABLE_ENTRIES
        for bitmap in bitmaps:
            budget -= bitmap.table_size
            if budget < 0:
                self.findings.error("ERROR the tables of the bitmaps are too large to be checked")
                return
            await self._bitmap(bitmap)

    async def _bitmap(self, bitmap: BitmapEntry) -> None:
        if not self.references.add_region(bitmap.table_offset, 8 * bitmap.table_size):
            return
        table = words_of(await self._read(bitmap.table_offset, 8 * bitmap.table_size, "check_bitmaps_refcounts"))
        for number, at in enumerate(np.flatnonzero(table)):
            entry = int(table[at])
            offset = entry & TABLE_OFFSET_MASK
            if entry & TABLE_RESERVED_MASK or offset & (self.header.cluster_size - 1):
                self.findings.corruption(
                    f"ERROR bitmap '{_shown(bitmap.name.encode('utf-8', 'surrogateescape'))}':"
                    f" invalid bitmap table entry {int(at)}: {entry:x}"
                )
            elif offset:
                self.references.add_region(offset, self.header.cluster_size)
            if number % TURNS == TURNS - 1:
                await asyncio.sleep(0)

    # -- refcounts ---------------------------------------------------------------------------------------------------

    async def _load_refcounts(self) -> None:
        """Read the refcount table, and all refcounts of the clusters in the file."""
        header, references = self.header, self.references
        there = min(8 * header.refcount_table_size, max(0, self.file.length - header.refcount_table_offset + 7 & ~7))
        self.reftable = words_of(await self._read(header.refcount_table_offset, there, "check_refblocks"))
        blocks: list[tuple[int, int]] = []
        for number in np.flatnonzero(self.reftable[: len(references.unreadable)]).tolist():
            offset = int(self.reftable[number]) & REFTABLE_OFFSET_MASK
            if offset & (header.cluster_size - 1):
                references.unreadable[number] = True
            elif 0 < offset < self.file.length:
                blocks.append((number, offset))
        at_once = max(1, BATCH_BYTES >> header.cluster_bits)
        self._total += len(blocks) << header.cluster_bits
        for start in range(0, len(blocks), at_once):
            part = blocks[start : start + at_once]
            data = await self._read_clusters([offset for _, offset in part], "check_refblocks")
            refcounts = decode_refcounts(data, header.refcount_order).reshape(len(part), -1)
            for (block, _), row in zip(part, refcounts, strict=True):
                references.store_block(block, row)
            self._advance(len(data))

    async def _refcount_blocks(self) -> None:
        header, references = self.header, self.references
        before = self.result.corruptions
        table_bytes = header.refcount_table_clusters << header.cluster_bits
        far, references.far = references.far, None  # a table that is not there will be replaced
        counted = references.add_region(header.refcount_table_offset, table_bytes)
        references.far = far
        if counted:
            first = header.refcount_table_offset >> header.cluster_bits
            self.structure.append(np.arange(first, first + header.refcount_table_clusters))
            if (references.count[first : first + header.refcount_table_clusters] > 1).any():
                self.needs_rebuild = True
        else:
            self.needs_rebuild = True
        used = np.flatnonzero(self.reftable)
        clusters = (self.reftable[used] >> np.uint64(header.cluster_bits)).astype(np.int64)
        if (
            not (self.reftable[used] & np.uint64(header.cluster_size - 1)).any()
            and not (clusters >= references.nb_clusters).any()
            and not references.count[clusters].any()
            and len(set(clusters.tolist())) == len(clusters)
        ):
            references.add_clusters(clusters)  # all as it should be
            self.structure.append(clusters)
        else:
            for turn, number in enumerate(used.tolist()):
                await self._refcount_block(number, int(self.reftable[number]))
                if turn % TURNS == TURNS - 1:
                    await asyncio.sleep(0)
        self.structure_corruptions += self.result.corruptions - before

    async def _refcount_block(self, number: int, entry: int) -> None:
        offset = entry & REFTABLE_OFFSET_MASK
        cluster = offset >> self.header.cluster_bits
        message = ""
        if entry & REFTABLE_RESERVED_MASK:
            self.findings.corruption(f"ERROR refcount table entry {number} has reserved bits set")
            self.needs_rebuild = True
            return
        if offset & (self.header.cluster_size - 1):
            message = f"refcount block {number} is not cluster aligned; refcount table entry corrupted"
            self.findings.corruption(f"ERROR {message}", offset)
            self.needs_rebuild = True
            return
        if cluster >= self.references.nb_clusters:
            message = f"refcount block {number} is outside image"
            if self.edits is None:
                self.findings.corruption(f"ERROR {message}", offset)
                return
            self.findings.note(f"Repairing {message}", "corruption", offset)
            if not await self._grow_over(offset):
                self.result.corruptions += 1
                self.needs_rebuild = True
                return
            self.result.corruptions_fixed += 1
        self.references.add_region(offset, self.header.cluster_size)
        self.structure.append(np.array([cluster]))
        count = int(self.references.count[cluster])
        if count != 1:
            self.findings.corruption(f"ERROR refcount block {number} refcount={count}", offset)
            self.needs_rebuild = True

    async def _grow_over(self, offset: int) -> bool:
        """Make the file long enough for a cluster, which reads as zeroes. False, and a note, where that cannot be."""
        end = offset + self.header.cluster_size
        reason = "Invalid argument"
        if end < 1 << 63:
            reason = "File too large"
            if end >> self.header.cluster_bits <= MAX_CLUSTERS:
                try:
                    await self.file.truncate(end, exact=False)
                except OSError as error:
                    reason = message_of(error)
                else:
                    self.references.grow(self.file.length)
                    return True
        self.findings.note(f"ERROR could not resize image: {reason}")
        return False

    async def compare(self) -> None:
        """Compare references and stored refcounts, and report each cluster where they differ."""
        before = self.result.corruptions
        highest = 0
        for start in range(0, self.references.nb_clusters, COMPARE_CLUSTERS):
            end = min(start + COMPARE_CLUSTERS, self.references.nb_clusters)
            found = await self.slice(
                4 * (end - start),
                lambda start=start, end=end: self.references.compare(start, end),  # type: ignore[misc]
            )
            highest = max(highest, found)
        self.result.image_end_offset = highest + 1 << self.header.cluster_bits
        self.structure_corruptions += self.result.corruptions - before
        if self.references.uncounted:
            self.needs_rebuild = True

    def _report_copied(self, errors: list[CopiedError]) -> None:
        for error in sorted(errors, key=lambda error: (error.l1_index, error.l2_index)):
            self.findings.corruption(error.message(), error.offset, error.weight)

    # -- reading and computing ---------------------------------------------------------------------------------------

    async def _read_clusters(self, offsets: list[int], what: str) -> bytearray:
        """The clusters at these offsets, one after the other; neighbours are read together, others at a time."""
        size = self.header.cluster_size
        data = bytearray(len(offsets) * size)
        view = memoryview(data)
        reads: list[Coroutine[None, None, None]] = []
        start = 0
        while start < len(offsets):
            end = start + 1
            while end < len(offsets) and offsets[end] == offsets[end - 1] + size:
                end += 1
            part = view[start * size : end * size]
            try:
                if offsets[start] >= self.file.length or not self.file.readinto_now(offsets[start], part):
                    reads.append(self._read_into(offsets[start], part, what))
            except OSError:
                reads.append(self._read_into(offsets[start], part, what))
            start = end
        for first in range(0, len(reads), PARALLEL):
            await asyncio.gather(*reads[first : first + PARALLEL])
        return data

    async def _read(self, offset: int, nbytes: int, what: str, *, beyond: bool = False) -> bytearray:
        """Bytes of the file, zeroes behind its end. What cannot be read is a finding, and zeroes."""
        data = bytearray(nbytes)
        await self._read_into(offset, memoryview(data), what, beyond=beyond)
        return data

    async def _read_into(self, offset: int, buffer: memoryview, what: str, *, beyond: bool = False) -> None:
        if not beyond and offset >= self.file.length:
            return
        try:
            if not beyond:
                await self.file.readinto(offset, buffer)
                return
        except OSError:
            pass
        self.findings.error(f"ERROR: I/O error in {what}", offset)
        buffer[:] = bytes(len(buffer))

    async def slice(self, nbytes: int, work: Callable[[], _T]) -> _T:
        """Do some computation on `nbytes` of tables where it does not hold up the loop."""
        if nbytes > INLINE_BYTES:
            return await asyncio.to_thread(work)
        await asyncio.sleep(0)
        return work()


def _shown(name: bytes) -> str:
    """A name out of the image, fit to be printed."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
