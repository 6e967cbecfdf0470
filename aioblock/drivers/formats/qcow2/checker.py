"""The check of a qcow2 image: every reference is counted and compared with the refcounts. Nothing is changed.

Words and order of the findings are those of `qemu-img check`: the header, the active L1 and L2 tables, those of the
snapshots, the snapshot table, bitmaps, the refcount table and its blocks, then each cluster whose refcount is not the
number of its references, and last the COPIED flags.

Each distinct L2 table is examined once for the active image and once for all snapshots, however often it is referenced:
a small file with an L1 table that names the same L2 table four million times is checked as fast as any small file.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from aioblock.base.errors import CorruptImage, ImageError
from aioblock.core.images import CheckResult
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.bitmap_directory import (
    TABLE_OFFSET_MASK,
    TABLE_RESERVED_MASK,
    BitmapEntry,
    read_bitmap_directory,
)
from aioblock.drivers.formats.qcow2.entries import REFTABLE_OFFSET_MASK, REFTABLE_RESERVED_MASK
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_BITMAPS
from aioblock.drivers.formats.qcow2.header import Header
from aioblock.drivers.formats.qcow2.references import Findings, References, Words, decode_refcounts, words_of
from aioblock.drivers.formats.qcow2.snapshot_table import SnapshotEntry, incomplete_entries, read_snapshot_table
from aioblock.drivers.formats.qcow2.table_check import Batch, CopiedError, L1Tables, examine, merge

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["Checker"]

BATCH_BYTES: Final = 1 << 20
"""How much of the tables is read and examined at a time."""
INLINE_BYTES: Final = 16 << 10
"""What is no larger than this is examined without a hop to a thread."""
COMPARE_CLUSTERS: Final = 1 << 20
TURNS: Final = 1024
"""How many steps of plain Python go by before others get a turn."""
MAX_SNAPSHOT_L1_ENTRIES: Final = 1 << 27
"""All L1 tables of all snapshots together: 1 GiB. Tables that lie over each other could ask for 2 TiB."""
MAX_BITMAP_TABLE_ENTRIES: Final = 1 << 27
"""The same for the tables of all bitmaps."""

_T = TypeVar("_T")


class Checker:
    """One check of one image."""

    def __init__(self, file: "BlockIO", header: Header) -> None:
        self.file = file
        self.header = header
        self.result = CheckResult(total_clusters=-(-header.size >> header.cluster_bits))
        self.findings = Findings(self.result)
        self.references = References(header, file.length, self.findings)
        self.reftable: Words = np.zeros(0, np.uint64)

    async def run(self) -> CheckResult:
        """Do it. Raises: OSError."""
        header = self.header
        snapshots: list[SnapshotEntry] = []
        table_bytes = 0
        if header.nb_snapshots:
            try:
                snapshots, table_bytes = await read_snapshot_table(self.file, header)
            except CorruptImage as error:
                self.findings.error(f"ERROR failed to read the snapshot table: {error}", error.offset)
                return self.result
            for number in incomplete_entries(snapshots, header.version):
                self.findings.corruption(f"ERROR snapshot table entry {number} is incomplete")

        await self._load_refcounts()
        self.references.add_region(0, header.cluster_size)
        copied = await self._active_tables()
        await self._snapshot_tables(snapshots)
        self.references.add_region(header.snapshots_offset, table_bytes)
        self._encryption_header()
        await self._bitmaps()
        await self._refcount_blocks()
        await self._compare()
        self._report_copied(copied)
        return self.result

    # -- L1 and L2 tables --------------------------------------------------------------------------------------------

    async def _active_tables(self) -> list[CopiedError]:
        l1 = await self._read_l1(self.header.l1_table_offset, self.header.l1_size)
        tables = await self._slice(l1.nbytes, lambda: L1Tables.of(l1, self.header, self.references))
        wrong = tables.wrong_copied_flags(self.references)
        return wrong + await self._l2_tables(tables, active=True)

    async def _snapshot_tables(self, snapshots: list[SnapshotEntry]) -> None:
        together = L1Tables.of(words_of(b""), self.header, self.references)
        budget = MAX_SNAPSHOT_L1_ENTRIES
        for entry in snapshots:
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
            tables = await self._slice(
                l1.nbytes,
                lambda l1=l1: L1Tables.of(l1, self.header, self.references),  # type: ignore[misc]
            )
            await self._wrong_l1_entries(tables, 0, len(tables.wrong))
            together = merge(together, tables)
        await self._l2_tables(together, active=False)

    async def _read_l1(self, offset: int, entries: int) -> Words:
        """Count an L1 table, and read it as far as it lies in the file: what is behind is zero."""
        self.references.add_region(offset, 8 * entries)
        there = min(8 * entries, max(0, self.file.length - offset + 7 & ~7))
        return words_of(await self._read(offset, there, "check_refcounts_l1", beyond=offset + 8 * entries >= 1 << 63))

    async def _l2_tables(self, tables: L1Tables, *, active: bool) -> list[CopiedError]:
        """Examine each distinct L2 table; wrong L1 entries are reported when their turn comes."""
        header = self.header
        columns = header.cluster_size // 8
        at_once = max(1, BATCH_BYTES >> header.cluster_bits)
        errors: list[CopiedError] = []
        reported = start = 0
        while start < len(tables.offsets):
            first = int(tables.first[start])
            until = int(np.searchsorted(tables.wrong, first, "right"))
            await self._wrong_l1_entries(tables, reported, until)
            reported = until
            limit = int(tables.wrong[until]) if until < len(tables.wrong) else len(tables.entries)
            end = start + 1
            weight = int(tables.times[start])
            while weight == 1 and end < min(start + at_once, len(tables.offsets)):
                if tables.times[end] != 1 or tables.first[end] >= limit:
                    break
                end += 1
            data = await self._read_clusters(tables.offsets[start:end].tolist(), "check_refcounts_l2")
            batch = Batch(
                tables.indices[tables.first[start:end]],
                tables.offsets[start:end],
                words_of(data).reshape(-1, columns),
                weight,
                active,
            )
            errors += await self._slice(
                len(data),
                lambda batch=batch: examine(batch, header, self.references, self.findings, self.result),  # type: ignore[misc]
            )
            start = end
        await self._wrong_l1_entries(tables, reported, len(tables.wrong))
        return errors

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
        for start in range(0, len(blocks), at_once):
            part = blocks[start : start + at_once]
            data = await self._read_clusters([offset for _, offset in part], "check_refblocks")
            refcounts = decode_refcounts(data, header.refcount_order).reshape(len(part), -1)
            for (block, _), row in zip(part, refcounts, strict=True):
                references.store_block(block, row)

    async def _refcount_blocks(self) -> None:
        header, references = self.header, self.references
        references.add_region(header.refcount_table_offset, header.refcount_table_clusters << header.cluster_bits)
        used = np.flatnonzero(self.reftable)
        clusters = (self.reftable[used] >> np.uint64(header.cluster_bits)).astype(np.int64)
        if (
            not (self.reftable[used] & np.uint64(header.cluster_size - 1)).any()
            and not (clusters >= references.nb_clusters).any()
            and not references.count[clusters].any()
            and len(np.unique(clusters)) == len(clusters)
        ):
            references.add_clusters(clusters)  # all as it should be
            return
        for turn, number in enumerate(used):
            self._refcount_block(int(number), int(self.reftable[number]))
            if turn % TURNS == TURNS - 1:
                await asyncio.sleep(0)

    def _refcount_block(self, number: int, entry: int) -> None:
        offset = entry & REFTABLE_OFFSET_MASK
        cluster = offset >> self.header.cluster_bits
        if entry & REFTABLE_RESERVED_MASK:
            self.findings.corruption(f"ERROR refcount table entry {number} has reserved bits set")
        elif offset & (self.header.cluster_size - 1):
            self.findings.corruption(
                f"ERROR refcount block {number} is not cluster aligned; refcount table entry corrupted", offset
            )
        elif cluster >= self.references.nb_clusters:
            self.findings.corruption(f"ERROR refcount block {number} is outside image", offset)
        else:
            self.references.add_region(offset, self.header.cluster_size)
            count = int(self.references.count[cluster])
            if count != 1:
                self.findings.corruption(f"ERROR refcount block {number} refcount={count}", offset)

    async def _compare(self) -> None:
        highest = 0
        for start in range(0, self.references.nb_clusters, COMPARE_CLUSTERS):
            end = min(start + COMPARE_CLUSTERS, self.references.nb_clusters)
            found = await self._slice(
                4 * (end - start),
                lambda start=start, end=end: self.references.compare(start, end),  # type: ignore[misc]
            )
            highest = max(highest, found)
        self.result.image_end_offset = highest + 1 << self.header.cluster_bits

    def _report_copied(self, errors: list[CopiedError]) -> None:
        for error in sorted(errors, key=lambda error: (error.l1_index, error.l2_index)):
            if error.l2_index < 0:
                text = f"L2 cluster: l1_index={error.l1_index} l1_entry={error.entry:x}"
            else:
                text = f"data cluster: l2_entry={error.entry:x}"
            self.findings.corruption(f"ERROR OFLAG_COPIED {text} refcount={error.refcount}", error.offset, error.weight)

    # -- reading and computing ---------------------------------------------------------------------------------------

    async def _read_clusters(self, offsets: list[int], what: str) -> bytearray | bytes:
        """The clusters at these offsets, one after the other; neighbours are read together."""
        size = self.header.cluster_size
        parts: list[bytes | bytearray] = []
        start = 0
        while start < len(offsets):
            end = start + 1
            while end < len(offsets) and offsets[end] == offsets[end - 1] + size:
                end += 1
            parts.append(await self._read(offsets[start], (end - start) * size, what))
            start = end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read(self, offset: int, nbytes: int, what: str, *, beyond: bool = False) -> bytes | bytearray:
        """Bytes of the file, zeroes behind its end. What cannot be read is a finding, and zeroes."""
        if not beyond and offset >= self.file.length:
            return bytes(nbytes)
        try:
            if not beyond:
                return await self.file.pread(offset, nbytes)
        except OSError:
            pass
        self.findings.error(f"ERROR: I/O error in {what}", offset)
        return bytes(nbytes)

    async def _slice(self, nbytes: int, work: Callable[[], _T]) -> _T:
        """Do some computation on `nbytes` of tables where it does not hold up the loop."""
        if nbytes > INLINE_BYTES:
            return await asyncio.to_thread(work)
        await asyncio.sleep(0)
        return work()


def _shown(name: bytes) -> str:
    """A name out of the image, fit to be printed."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
