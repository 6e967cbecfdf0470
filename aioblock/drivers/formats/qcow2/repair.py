"""Repairing an image, in an order that leaves it no worse wherever it is cut.

`=>`: what stands before is stable before what follows is written.

    a new refcount structure => the header's 12 bytes for it                    where the old one is unusable
    counts that are too low, L2 entries that say nothing => counts that are too high
                             => COPIED flags => the dirty and corrupt bits are cleared

Raising a count or dropping a reference is safe at any time. A count is lowered when nothing that it counted is in the
file any more. A COPIED flag promises that nobody else refers to the cluster: it is set when the count is 1 for good.

The words and their order are those of `qemu-img check -r`.
"""

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from aioblock.core.images import CheckResult
from aioblock.drivers.formats.qcow2.checker import COMPARE_CLUSTERS, TURNS, Checker, Progress
from aioblock.drivers.formats.qcow2.copied import repair_copied
from aioblock.drivers.formats.qcow2.edits import Edits
from aioblock.drivers.formats.qcow2.entries import REFTABLE_OFFSET_MASK
from aioblock.drivers.formats.qcow2.features import INCOMPAT_CORRUPT, INCOMPAT_DIRTY
from aioblock.drivers.formats.qcow2.header import Header, features_field
from aioblock.drivers.formats.qcow2.rebuild import rebuild
from aioblock.drivers.formats.qcow2.references import Ints, decode_refcounts, encode_refcounts

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["repair"]

GRAIN: Final = 512
"""Refcounts are written back in pieces of this many bytes: a torn write leaves old ones or new ones."""


async def repair(
    file: "BlockIO", header: Header, *, leaks: bool, errors: bool, progress: Progress | None = None
) -> CheckResult:
    """Check, and repair leaks, errors or both; the counts are of what is left, and of what was repaired.

    Nothing is repaired where something could not be read. Cancelled: see `check_image`. Raises: OSError.
    """
    checker = Checker(file, header, progress, Edits() if errors else None)
    counted = await checker.count(copied=False)
    if counted is not None and await _lengthen(checker):
        checker = Checker(file, header, progress, Edits())
        checker.findings.corruption(f"Repairing end of file: {file.length} bytes", file.length, fixed=True)
        counted = await checker.count(copied=False)
    if counted is None or checker.result.check_errors:
        return checker.result
    await checker.compare()
    await _Repair(checker, leaks=leaks, errors=errors).run()
    return checker.result


async def _lengthen(checker: Checker) -> bool:
    """Make a file that lost its end as long as it was, if the entries that tell of it can be believed.

    What they refer to was never stable, and reads as zeroes; but it is in use.
    """
    far = checker.references.far
    if far is None or not far.data_end:
        return False
    try:
        await checker.file.truncate(far.data_end << checker.header.cluster_bits, exact=False)
    except OSError:
        return False  # such entries stay wrong, and nothing is allocated there
    return True


class _Repair:
    """What follows when everything has been counted and compared."""

    def __init__(self, checker: Checker, *, leaks: bool, errors: bool) -> None:
        self.checker = checker
        self.file = checker.file
        self.header = checker.header
        self.references = checker.references
        self.findings = checker.findings
        self.result = checker.result
        self.leaks = leaks and not checker.incomplete
        self.errors = errors

    async def run(self) -> None:
        """Do it. Raises: OSError."""
        result, edits = self.result, self.checker.edits
        lower = self.leaks
        if self.checker.needs_rebuild:
            if not self.errors:
                self.findings.error("ERROR need to rebuild refcount structures")
                return
            await self._rebuild()
            lower = not self.checker.incomplete
        elif result.corruptions or result.leaks:
            await self._tell_differences(counted=True)
            if self.errors and await self._change_refcounts(raising=True):
                await self.file.flush()
        if edits:
            for offset, data in edits.writes():
                await self.file.pwrite(offset, data)
            await self.file.flush()
        if lower and await self._change_refcounts(raising=False):
            await self.file.flush()
        clean = not (result.check_errors or result.corruptions or result.leaks)
        if await repair_copied(self.checker, fix=self.errors or (self.leaks and clean)):
            await self.file.flush()
        if not result.check_errors:
            await self._clear_marks()

    async def _rebuild(self) -> None:
        checker, references, result = self.checker, self.references, self.result
        self.findings.note("Rebuilding refcount structure")
        if checker.incomplete:  # then the stored refcounts may know of more references
            known = references.stored[: len(references.count)]
            np.maximum(references.count, np.minimum(known, references.max_count), out=references.count)
        checker.reftable = await rebuild(self.file, self.header, references)
        result.corruptions -= checker.structure_corruptions
        result.corruptions_fixed += checker.structure_corruptions
        result.check_errors = 0  # those were refcounts that could not be read
        result.leaks_fixed += result.leaks
        result.leaks = 0
        for old in checker.structure:
            references.count[old] -= np.minimum(references.count[old], np.uint32(1))
        if not checker.incomplete:
            await self._tell_differences(counted=False)

    # -- refcounts ---------------------------------------------------------------------------------------------------

    def _differing(self, start: int) -> Ints:
        """The clusters of a part of the file whose stored refcount is not the number of references."""
        end = min(start + COMPARE_CLUSTERS, self.references.nb_clusters)
        return np.flatnonzero(self.references.count[start:end] != self.references.stored[start:end]) + start

    async def _tell_differences(self, *, counted: bool) -> None:
        """Say of each cluster what is done about it. Not `counted`: nothing was found there before, it is our doing."""
        count, stored, findings = self.references.count, self.references.stored, self.findings
        for start in range(0, self.references.nb_clusters, COMPARE_CLUSTERS):
            for turn, cluster in enumerate((await asyncio.to_thread(self._differing, start)).tolist()):
                if turn % TURNS == TURNS - 1:
                    await asyncio.sleep(0)
                refcount, references = int(stored[cluster]), int(count[cluster])
                leak = refcount > references
                text = f"cluster {cluster} refcount={refcount} reference={references}"
                offset = cluster << self.header.cluster_bits
                kind = "leak" if leak else "corruption"
                if not counted:
                    findings.note(f"Repairing {text}", kind, offset)
                elif self.leaks if leak else self.errors:
                    findings.repaired(kind, f"Repairing {text}", offset)
                else:
                    findings.note(f"Leaked {text}" if leak else f"ERROR {text}", kind, offset)

    async def _change_refcounts(self, *, raising: bool) -> bool:
        """Write the number of references where the refcount is lower, or higher. Whether there was anything to do."""
        references = self.references
        shift = self.header.refcount_block_bits
        changed = False
        for start in range(0, references.nb_clusters, COMPARE_CLUSTERS):
            clusters = await asyncio.to_thread(self._differing, start)
            clusters = clusters[(references.count[clusters] > references.stored[clusters]) == raising]
            if not clusters.size:
                continue
            changed = True
            blocks = clusters >> shift
            bounds = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(clusters)]
            for first, end in pairwise(bounds):
                await self._write_refcounts(int(blocks[first]), clusters[first:end])
        return changed

    async def _write_refcounts(self, number: int, clusters: Ints) -> None:
        """Give some clusters of one block the refcounts that they should have."""
        offset = int(self.checker.reftable[number]) & REFTABLE_OFFSET_MASK
        data = await self.file.pread(offset, self.header.cluster_size)
        first, part = await asyncio.to_thread(self._changed_block, data, clusters)
        await self.file.pwrite(offset + first, part)
        self.references.stored[clusters] = self.references.count[clusters]

    def _changed_block(self, data: bytearray, clusters: Ints) -> tuple[int, bytes]:
        """What of a block is to be written: where in the block, and the bytes."""
        order = self.header.refcount_order
        places = clusters & (1 << self.header.refcount_block_bits) - 1
        refcounts = decode_refcounts(data, order).astype(self.references.stored.dtype)
        refcounts[places] = self.references.count[clusters]
        first = (int(places[0]) << order >> 3) // GRAIN * GRAIN
        end = (int(places[-1]) << order >> 3) // GRAIN * GRAIN + GRAIN
        return first, encode_refcounts(refcounts, order)[first:end]

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _clear_marks(self) -> None:
        """Say in the header what is not wrong any more. All that was repaired is stable."""
        header = self.header
        marks = INCOMPAT_DIRTY if self.errors else 0  # the refcounts are right, whatever else may be wrong
        if not self.result.corruptions:
            marks = INCOMPAT_DIRTY | INCOMPAT_CORRUPT
        if header.incompatible_features & marks:
            header.incompatible_features &= ~marks
            await self.file.pwrite(*features_field(header))
            await self.file.flush()
