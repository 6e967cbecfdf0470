"""Counting L2 tables that are made of long runs, in which nothing is wrong: the tables of most images.

A run is compared and counted as a whole, so that such a table takes a tenth of the time that `table_check` takes.
"""

from typing import Final

import numpy as np

from aioblock.drivers.formats.qcow2.entries import (
    L2_RESERVED_MASK,
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    OFLAG_COPIED,
    OFLAG_ZERO,
)
from aioblock.drivers.formats.qcow2.table_check import Batch, Scope

__all__ = ["count_runs"]

LEAST_RUN: Final = 64
"""Entries that a run must have, on the average, so that it pays to look at runs one by one."""


def count_runs(batch: Batch, scope: Scope) -> bool:
    """Count tables whose runs are few and good. False: nothing was counted, they are to be examined entry by entry."""
    header, references = scope.header, scope.references
    if header.extended_l2 or header.has_data_file or batch.weight != 1:
        return False
    flat = batch.tables.reshape(-1)
    place = None
    allocated = int(np.count_nonzero(flat))
    if not allocated:
        return True
    if allocated < flat.size:
        place = np.flatnonzero(flat)
        flat = flat[place]
    size = header.cluster_size
    breaks = np.flatnonzero(flat[1:] - flat[:-1] != np.uint64(size)) + 1
    if breaks.size * LEAST_RUN > flat.size:
        return False

    bad = (L2_RESERVED_MASK | OFLAG_COMPRESSED | size - 1) & ~(OFLAG_ZERO if header.version >= 3 else 0)
    last_offset = references.file_length - 1
    copied_wanted = scope.copied and batch.active
    runs: list[tuple[int, int]] = []
    fragments = 0
    before = table_before = -1
    starts = [0, *breaks.tolist()]
    for start, end in zip(starts, [*starts[1:], flat.size], strict=True):
        first, last = int(flat[start]), int(flat[end - 1])
        offset = first & OFFSET_MASK
        if first & bad or not offset or (first ^ last) & ~OFFSET_MASK or last & OFFSET_MASK > last_offset:
            return False
        run = offset >> header.cluster_bits, end - start
        if copied_wanted and not (first & OFLAG_COPIED and references.all_once(*run)):
            return False
        runs.append(run)
        if (
            start if place is None else int(place[start])
        ) >> header.l2_bits == table_before and offset != before + size:
            fragments += 1
        before = last & OFFSET_MASK
        table_before = (end - 1 if place is None else int(place[end - 1])) >> header.l2_bits
    for run in runs:
        references.add_run(*run)
    if batch.active:
        scope.result.allocated_clusters += allocated
        scope.result.fragmented_clusters += fragments
    return True
