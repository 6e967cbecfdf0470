"""L2 tables in memory: look-up, loading, and tables that a write may change.

A table is either *clean* (may be forgotten at any time) or *dirty* (the file is behind). Readers only ever add clean
tables; writers call `make_room` before they add dirty ones. So the bound holds without a reader ever waiting for a
write-back: `limit` tables, and for moments as many more as loads run at once.

After every await a table is looked up again: another one may stand in its place.
"""

import asyncio
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import BlockError
from aioblock.core.eager import Finished, settle, start
from aioblock.drivers.formats.qcow2.entries import (
    L1_RESERVED_MASK,
    OFFSET_MASK,
    OFLAG_COPIED,
    as_c,
    table_from_bytes,
)

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["CachedTable", "L2Cache", "trim"]

AHEAD_BYTES: Final = 1 << 20
"""How much of tables is read ahead at a time, where reading takes time. At least one table, at most the cache."""


class CachedTable:
    """A table (L2, or refcount block) in memory: its entries, where it lies in the file, and what of it is dirty."""

    __slots__ = ("dirty_end", "dirty_first", "entries", "index", "offset", "used", "writing")

    def __init__(self, index: int, offset: int, entries: "array[int]") -> None:
        self.index = index
        """The number of its L1 entry, or of its refcount table entry."""
        self.offset = offset
        self.entries = entries
        self.used = True
        """Somebody looked at it since the cache last thought of forgetting it."""
        self.writing = False
        """A commit is writing it."""
        self.dirty_first = len(entries)
        self.dirty_end = 0
        """The entries from `dirty_first` up to `dirty_end` differ from the file."""

    def __repr__(self) -> str:
        dirty = f" dirty={self.dirty_first}-{self.dirty_end}" if self.dirty_end else ""
        return f"<CachedTable {self.index} at {self.offset:#x}{dirty}>"

    def touch(self, first: int, end: int) -> None:
        """Entries `first` up to `end` were changed."""
        if first < self.dirty_first:
            self.dirty_first = first
        if end > self.dirty_end:
            self.dirty_end = end

    def take_dirty(self) -> tuple[int, int]:
        """The dirty entries, which count as clean from now on; `touch` undoes it."""
        span = self.dirty_first, self.dirty_end
        self.dirty_first, self.dirty_end = len(self.entries), 0
        return span


def trim(tables: dict[int, CachedTable], limit: int) -> None:
    """Forget clean tables down to `limit`, those first that nobody used lately."""
    excess = len(tables) - limit
    if excess <= 0:
        return
    for _ in range(2):
        for index, table in list(tables.items()):
            if table.dirty_end or table.writing:
                continue
            if table.used:  # a second chance, at the end of the queue
                table.used = False
                del tables[index]
                tables[index] = table
                continue
            del tables[index]
            excess -= 1
            if not excess:
                return


class L2Cache:
    """The L2 tables of the active L1 table, by the number of their L1 entry."""

    def __init__(self, image: "Image", limit: int) -> None:
        self.image = image
        self.limit = limit
        self.tables: dict[int, CachedTable] = {}
        self.dirty: dict[int, CachedTable] = {}
        self._turns: dict[int, asyncio.Event] = {}

    def __repr__(self) -> str:
        return f"<L2Cache tables={len(self.tables)} dirty={len(self.dirty)} limit={self.limit}>"

    async def fetch(self, index: int) -> CachedTable | None:
        """The table of an L1 entry, loaded where needed; None where there is none.

        Nothing suspends between its return and the caller's next step. Raises: OSError.
        """
        while True:
            table = self.tables.get(index)
            if table is not None:
                table.used = True
                return table
            if not self.image.l1[index]:
                return None
            if (turn := self._turns.get(index)) is not None:
                await turn.wait()
                continue
            turn = self._turns[index] = asyncio.Event()
            try:
                await self._load(index)
            finally:
                del self._turns[index]
                turn.set()

    async def _load(self, index: int) -> None:
        image = self.image
        offset = image.l2_offset(index)
        if not offset:
            raise image.corruption(f"L2 table at offset 0 (L1 index: {as_c(index)})")
        if image.event is not None:
            await image.event("l2_load")
        entries = table_from_bytes(await image.file.pread(offset, image.cluster_size))
        trim(self.tables, self.limit - 1)
        self.tables[index] = CachedTable(index, offset, entries)

    async def fetch_ahead(self, index: int, end: int) -> CachedTable | None:
        """As `fetch`; where that takes time, the tables up to L1 entry `end` are read meanwhile, a window of them.

        An error in one of those is dropped: it comes again when that table is asked for. The window is full when this
        returns; cancelled: none of it is read any more. Raises: OSError.
        """
        asked = start(self.fetch(index))
        if isinstance(asked, Finished):
            return asked.result()
        window = min(max(AHEAD_BYTES // self.image.cluster_size, 1), self.limit)
        ahead = [start(self._load_adjoining(*run)) for run in self._adjoining(index + 1, min(end, index + window))]
        tasks = [asked, *(task for task in ahead if not isinstance(task, Finished))]
        try:
            await asyncio.wait(tasks)
        finally:
            await settle(tasks)
        asked.result()
        return await self.fetch(index)  # there may be another one by now

    def loadable(self, index: int) -> bool:
        """Whether an L1 entry names a table, and makes sense."""
        entry = self.image.l1[index]
        offset = entry & OFFSET_MASK
        return bool(offset) and not entry & L1_RESERVED_MASK and not offset & self.image.cluster_mask

    def _adjoining(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of L1 entries whose tables adjoin in the file and are nowhere in memory: the first, and behind the last.

        What is nonsense is passed over: it is told to who asks for it.
        """
        image = self.image
        if image.event is not None:
            return  # each load is an event of its own
        begin, after = first, -1
        for index in range(first, end):
            offset = image.l1[index] & OFFSET_MASK
            wanted = self.loadable(index) and index not in self.tables and index not in self._turns
            if begin < index and not (wanted and offset == after):
                yield begin, index
                begin = index
            if not wanted:
                begin = index + 1
            after = offset + image.cluster_size
        if begin < end:
            yield begin, end

    async def _load_adjoining(self, first: int, end: int) -> None:
        """Load tables that adjoin in the file, by one read."""
        image = self.image
        size = image.cluster_size
        turn = asyncio.Event()
        for index in range(first, end):
            self._turns[index] = turn
        try:
            offset = image.l1[first] & OFFSET_MASK
            data = memoryview(await image.file.pread(offset, (end - first) * size))
            trim(self.tables, self.limit - (end - first))
            for number, index in enumerate(range(first, end)):
                entries = table_from_bytes(data[number * size : (number + 1) * size])
                self.tables[index] = CachedTable(index, offset + number * size, entries)
        except (OSError, BlockError):
            pass  # told to who asks for one of them
        finally:
            for index in range(first, end):
                del self._turns[index]
            turn.set()

    async def own(self, index: int) -> CachedTable:
        """The table of an L1 entry as one that may be changed: new where there was none, a copy where it was shared.

        Nothing suspends between its return and the caller's next step. Raises: OSError.
        """
        image = self.image
        while True:
            entry = image.l1[index]
            table = self.tables.get(index)
            if entry & OFLAG_COPIED and table is not None:
                if not table.dirty_end:
                    image.check_own_l2(index)
                table.used = True
                return table
            if entry and table is None:
                await self.fetch(index)
                continue
            if (turn := self._turns.get(index)) is not None:
                await turn.wait()
                continue
            turn = self._turns[index] = asyncio.Event()
            try:
                await self._make(index, table)
            finally:
                del self._turns[index]
                turn.set()

    async def _make(self, index: int, old: CachedTable | None) -> None:
        """A new table in a cluster of its own. Nobody changes `old` meanwhile: nobody owns it, and it is our turn."""
        image = self.image
        if image.event is not None:
            if old is not None:
                await image.event("l2_alloc_cow_read")
            await image.event("l2_alloc_write")
        cluster, _ = await image.refcounts.allocate(1, "L2 table")
        offset = cluster << image.cluster_bits
        entries = array("Q", old.entries) if old is not None else array("Q", bytes(image.cluster_size))
        table = CachedTable(index, offset, entries)
        if before := image.l1[index] & OFFSET_MASK:
            image.release(before)
        image.table_moved(before, image.cluster_size, offset, image.cluster_size)
        image.l1[index] = offset | OFLAG_COPIED
        image.l1_dirty.add(index)
        trim(self.tables, self.limit - 1)
        self.tables[index] = table
        self.changed(table, 0, len(entries))

    async def drop(self, index: int) -> CachedTable | None:
        """Take away the table of an L1 entry, which is 0 afterwards; None where there is none.

        What the table refers to is the caller's to release. Nobody changes it meanwhile. Raises: OSError.
        """
        while (table := await self.fetch(index)) is not None and (turn := self._turns.get(index)) is not None:
            await turn.wait()
        if table is not None:
            image = self.image
            image.release(table.offset)
            image.table_moved(table.offset, image.cluster_size, 0, 0)
            image.l1[index] = 0
            image.l1_dirty.add(index)
            del self.tables[index]
            self.dirty.pop(index, None)
        return table

    def changed(self, table: CachedTable, first: int, end: int) -> None:
        """Entries (64-bit words) `first` up to `end` of an owned table were set; the next commit writes them."""
        table.touch(first, end)
        self.dirty[table.index] = table

    @property
    def crowded(self) -> bool:
        """Whether a writer should have the tables written back before it makes more of them dirty."""
        return len(self.dirty) >= self.limit
