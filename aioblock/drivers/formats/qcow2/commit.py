"""Ordered write-back: the one place where tables in memory go to the file.

`A => B`: the write of A is complete, then a flush of the file succeeded, before B is written.

    data, refcount blocks => refcount table entries (or a new table => the header's 12 bytes for it)
                          => L2 tables => L1 entries (or a new L1 table => the header's 12 bytes for it)
                          => counting down what was unreferenced

Data is written before its L2 entry is set in memory, so what stands in a table when `commit` looks at it is complete.
It looks once, at the beginning, without an await: what changes later belongs to the next commit. Steps that have
nothing to do cost nothing; a file that was not written since is not flushed again (the file's node sees to it).

A failure leaves everything dirty and is for ever: after a failed flush nobody knows what is in the file, and a later
one that succeeds would say nothing about it.
"""

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from aioblock.base.errors import message_of
from aioblock.drivers.formats.qcow2.entries import table_to_bytes
from aioblock.drivers.formats.qcow2.header import l1_field, refcount_table_field
from aioblock.drivers.formats.qcow2.refblocks import counts_to_bytes
from aioblock.drivers.formats.qcow2.tables import CachedTable

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["commit", "write_back"]

PARALLEL: Final = 16
"""How many tables are written at a time."""

GRAIN: Final = 4096
"""Dirty parts of a table are written in whole pieces of this many bytes, so that the file need not read first."""


class _Dirty(NamedTuple):
    """A dirty part of a table as it was when the commit began."""

    table: CachedTable
    first: int
    end: int
    offset: int
    data: bytes


async def commit(image: "Image") -> None:
    """Write back everything that was done before the call. The last writes are not flushed: the caller sees to that.

    Must not be cancelled. Raises: OSError, for ever after the first time; also where the image was found to be corrupt
    and is not written any more, and something that had been acknowledged is lost by that.
    """
    async with image.commit_lock:
        if image.corrupt and image.failure is None and not image.l2.dirty and not image.l1_dirty:
            return
        if image.failure is not None:
            raise OSError(image.failure.errno, message_of(image.failure))
        image.check_writable()
        try:
            await _Commit(image).run()
        except OSError as error:
            image.failure = error
            raise


async def write_back(image: "Image") -> None:
    """Leave nothing in memory that the file does not have, and flush the file. No request is in flight.

    Must not be cancelled. Raises: as `commit`.
    """
    await commit(image)
    if image.frees or image.refcounts.dirty:
        await commit(image)  # the counts that the first one took down
    await image.file.flush()


class _Commit:
    """One commit: what was dirty when it began, and the steps."""

    def __init__(self, image: "Image") -> None:
        refcounts = image.refcounts
        self.image = image
        self.refblocks = _take(refcounts.dirty, 1 << refcounts.order, image.cluster_size)
        self.tables = _take(image.l2.dirty, 64, image.cluster_size)
        self.l1, image.l1_dirty = image.l1_dirty, set()
        self.l1_data = {index: image.l1[index] for index in self.l1}
        self.l1_moved = None
        if image.l1_moved:
            image.l1_moved = False
            self.l1_moved = image.l1_offset, image.l1[:]
        self.frees, image.frees = image.frees, []
        self.reftable, refcounts.table_dirty = refcounts.table_dirty, set()
        self.reftable_data = {index: refcounts.table[index] for index in self.reftable}
        self.reftable_moved = None
        if refcounts.table_moved:
            refcounts.table_moved = False
            self.reftable_moved = refcounts.table_offset, refcounts.table[:]

    async def run(self) -> None:
        """The steps in their order. Raises: OSError, and then everything not done is dirty again."""
        file = self.image.file
        try:
            await self._write([(part.offset, part.data) for part in self.refblocks])
            if self.reftable or self.reftable_moved:
                await file.flush()
                await self._write_reftable()
            if self.tables:
                await file.flush()
                await self._write([(part.offset, part.data) for part in self.tables])
            if self.l1 or self.l1_moved:
                await file.flush()
                await self._write_l1()
            if self.frees:
                await file.flush()
        except BaseException:
            self._put_back()
            raise
        self._settle_tables()
        await self._free()

    async def _write(self, parts: list[tuple[int, bytes]]) -> None:
        """Write to the file, some parts at a time; none is under way any more when this ends. Raises: OSError."""
        self.image.check_writable()
        file = self.image.file

        async def write(part: tuple[int, bytes]) -> None:
            await file.pwrite(*part)

        for start in range(0, len(parts), PARALLEL):
            batch = parts[start : start + PARALLEL]
            if len(batch) == 1:
                await file.pwrite(*batch[0])
                continue
            results = await asyncio.gather(*map(write, batch), return_exceptions=True)
            for result in results:
                if result is not None:
                    raise result

    async def _write_reftable(self) -> None:
        header = self.image.header
        if self.reftable_moved is None:
            await self._write(_runs(header.refcount_table_offset, self.reftable_data))
            return
        offset, table = self.reftable_moved
        await self._write([(offset, table_to_bytes(table))])
        await self.image.file.flush()
        header.refcount_table_offset = offset
        header.refcount_table_clusters = 8 * len(table) >> header.cluster_bits
        await self._write([refcount_table_field(header)])

    async def _write_l1(self) -> None:
        header = self.image.header
        if self.l1_moved is None:
            await self._write(_runs(header.l1_table_offset, self.l1_data))
            return
        offset, table = self.l1_moved
        await self._write([(offset, table_to_bytes(table))])
        await self.image.file.flush()
        header.l1_table_offset = offset
        header.l1_size = len(table)
        await self._write([l1_field(header)])

    def _settle_tables(self) -> None:
        refcounts, l2 = self.image.refcounts, self.image.l2
        for parts, dirty in ((self.refblocks, refcounts.dirty), (self.tables, l2.dirty)):
            for part in parts:
                part.table.writing = False
                if not part.table.dirty_end:
                    dirty.pop(part.table.index, None)

    def _put_back(self) -> None:
        image, refcounts = self.image, self.image.refcounts
        for part in (*self.refblocks, *self.tables):
            part.table.writing = False
            part.table.touch(part.first, part.end)
        image.l1_dirty |= self.l1
        image.l1_moved = image.l1_moved or self.l1_moved is not None
        refcounts.table_dirty |= self.reftable
        refcounts.table_moved = refcounts.table_moved or self.reftable_moved is not None
        image.frees[:0] = self.frees

    async def _free(self) -> None:
        """Count down what is unreferenced for good, except clusters that a read still looks at: they wait."""
        image = self.image
        for number, free in enumerate(self.frees):
            clusters = range(free.first, free.first + free.clusters)
            if image.reading and any(cluster in image.reading for cluster in clusters):
                image.frees.append(free)
                continue
            try:
                await image.refcounts.settle(free, image.options.discard_freed)
            except BaseException:
                image.frees.extend(self.frees[number + 1 :])
                raise
        if self.frees:
            image.decompressed.clear()


def _take(dirty: dict[int, CachedTable], bits: int, table_bytes: int) -> list[_Dirty]:
    """The dirty parts of tables whose entries have so many bits, copied; they count as clean, and as being written."""
    parts = []
    for table in dirty.values():
        if not table.dirty_end:
            continue
        first, end = table.take_dirty()
        table.writing = True
        grain = min(GRAIN, table_bytes)
        start = (first * bits >> 3) // grain * grain
        stop = -(-end * bits // (8 * grain)) * grain
        entries = table.entries[start * 8 // bits : stop * 8 // bits]
        data = counts_to_bytes(entries, bits.bit_length() - 1)  # 64-bit counts look like table entries
        parts.append(_Dirty(table, first, end, table.offset + start, data))
    return parts


def _runs(offset: int, entries: dict[int, int]) -> list[tuple[int, bytes]]:
    """Entries of a table at `offset`, by their index, as parts to write: one for each run of adjoining entries."""
    runs: list[tuple[int, list[int]]] = []
    for index in sorted(entries):
        if runs and runs[-1][0] + len(runs[-1][1]) == index:
            runs[-1][1].append(entries[index])
        else:
            runs.append((index, [entries[index]]))
    return [(offset + 8 * first, table_to_bytes(run)) for first, run in runs]
