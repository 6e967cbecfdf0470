"""Repairing COPIED flags: the last step of a repair, when the refcounts are what they should be."""

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from aioblock.drivers.formats.qcow2.entries import OFLAG_COPIED, table_to_bytes
from aioblock.drivers.formats.qcow2.references import Ints, Words
from aioblock.drivers.formats.qcow2.table_check import Batch, CopiedError, L1Tables, wrong_copied_flags

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.checker import Checker

__all__ = ["repair_copied"]

GRAIN: Final = 512
"""Entries are written back in pieces of this many bytes: a torn write leaves old ones or new ones."""


async def repair_copied(checker: "Checker", *, fix: bool) -> bool:
    """Correct the flags of the active tables, or only report them. Whether something was written.

    Entries in clusters that hold something else besides are only reported. Raises: OSError.
    """
    return await _Copied(checker, fix=fix).run()


class _Copied:
    def __init__(self, checker: "Checker", *, fix: bool) -> None:
        self.checker = checker
        self.header = checker.header
        self.fix = fix
        self.errors: list[tuple[CopiedError, bool]] = []
        """What is wrong, and whether it was corrected."""
        self.written = False

    async def run(self) -> bool:
        tables = self.checker.active
        if tables is None:
            return False
        await self._correct_l1(tables.wrong_copied_flags(self.checker.references))
        async for batch in self.checker.batches(tables, active=True):
            await self._correct(tables, batch)
        for error, fixed in sorted(self.errors, key=lambda pair: (pair[0].l1_index, pair[0].l2_index)):
            self.checker.findings.corruption(error.message(fixed), error.offset, error.weight, fixed=fixed)
        return self.written

    async def _correct_l1(self, errors: list[CopiedError]) -> None:
        header = self.header
        first = header.l1_table_offset >> header.cluster_bits
        end = -(-(header.l1_table_offset + 8 * header.l1_size) >> header.cluster_bits)
        fix = self.fix and first > 0 and bool((self.checker.references.count[first:end] == 1).all())
        self.errors += [(error, fix) for error in errors]
        if fix:
            for error in errors:
                data = table_to_bytes([error.entry ^ OFLAG_COPIED])
                await self.checker.file.pwrite(header.l1_table_offset + 8 * error.l1_index, data)
                self.written = True

    async def _correct(self, tables: L1Tables, batch: Batch) -> None:
        """The tables of one batch."""
        places, errors = await self.checker.slice(
            batch.tables.nbytes, lambda: wrong_copied_flags(batch, self.header, self.checker.references)
        )
        if not places.size:
            return
        per_table = batch.tables.shape[1]
        rows = places // per_table
        bounds = [0, *(np.flatnonzero(np.diff(rows)) + 1).tolist(), len(places)]
        fixed: dict[int, bool] = {}
        for first, end in pairwise(bounds):
            row = int(rows[first])
            offset = int(batch.offsets[row])
            fixed[int(batch.l1_indices[row])] = possible = self.fix and self._may_edit(offset)
            if possible:
                await self._write(offset, batch.tables[row], places[first:end] % per_table)
        self.errors += [(error, fixed[error.l1_index]) for error in errors]

    def _may_edit(self, offset: int) -> bool:
        if offset & (self.header.cluster_size - 1) or offset >= self.checker.references.file_length:
            return False
        edits = self.checker.edits
        return edits is None or edits.possible(offset >> self.header.cluster_bits)

    async def _write(self, offset: int, table: Words, places: Ints) -> None:
        changed = table.copy()
        changed[places] ^= np.uint64(OFLAG_COPIED)
        first = int(places[0]) * 8 // GRAIN * GRAIN
        end = int(places[-1]) * 8 // GRAIN * GRAIN + GRAIN
        await self.checker.file.pwrite(offset + first, changed.astype(">u8").tobytes()[first:end])
        self.written = True
