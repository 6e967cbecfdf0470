"""What a whole tree of tables refers to: counted up and down at once, and the COPIED flags that follow from it.

A tree is an L1 table, active or a snapshot's, and all that it leads to. Each L1 entry counts as a reference to its L2
table, and each L2 entry as one to its host cluster, on each way from an L1 table: a table that two snapshots share
counts for both of them, and so does everything in it. A compressed stream counts for each host cluster that it touches.

L2 tables are read from the file, each once however often the tree names it, so that the work is bounded by what the
file holds. Nobody changes tables or counts meanwhile, and memory and file agree when a verb here begins.
"""

import asyncio
import errno
from array import array
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from aioblock.drivers.formats.qcow2.commit import commit
from aioblock.drivers.formats.qcow2.entries import (
    L1_RESERVED_MASK,
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    OFLAG_COPIED,
    SECTOR,
)
from aioblock.drivers.formats.qcow2.overlap import name_of

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.tables import CachedTable

__all__ = ["check_tree", "count_down", "count_up", "set_copied"]

BATCH: Final = 1 << 14
"""How many L2 entries are looked at in one piece, so that the loop goes on: about a millisecond."""

Clusters = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_OFFSET: Final = np.uint64(OFFSET_MASK)
_COPIED: Final = np.uint64(OFLAG_COPIED)
_COMPRESSED: Final = np.uint64(OFLAG_COMPRESSED)


class BadTree(OSError):
    """The tables of a tree make no sense (EIO), or it has more references than can be counted (EINVAL)."""


# -- what a tree refers to -------------------------------------------------------------------------------------------


async def _references(image: "Image", l1: "array[int]") -> AsyncIterator[tuple[Clusters, Clusters]]:
    """Host clusters, each once and in order, and how often the tree refers to them; in pieces, always the same ones.

    The L2 tables come last: whoever counts them down may give their storage back.
    Raises: BadTree; OSError.
    """
    entries = np.frombuffer(l1, np.uint64).copy()  # an array that is looked at cannot grow, as long as an error lives
    bad = entries & np.uint64(L1_RESERVED_MASK | image.cluster_mask & OFFSET_MASK)
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise BadTree(errno.EIO, f"L1 entry {l1[index]:#x} makes no sense (L1 index: {index:#x})")
    offsets, times = np.unique(entries & _OFFSET, return_counts=True)
    there = offsets != 0
    offsets, times = offsets[there].astype(np.int64), times[there]
    parts: list[Words] = []
    weights: list[Clusters] = []
    collected = 0
    for offset, weight in zip(offsets.tolist(), times.tolist(), strict=True):
        if offset >= image.file.length:
            continue  # it reads as zeroes
        table = np.frombuffer(await image.file.pread(offset, image.cluster_size), ">u8").astype(np.uint64)
        table = table[:: 2 if image.extended else 1]
        table = table[(table & (_OFFSET | _COMPRESSED)) != 0]
        for start in range(0, len(table), BATCH):
            part = table[start : start + BATCH]
            parts.append(part)
            weights.append(np.full(len(part), weight, np.int64))
            collected += len(part)
            if collected >= BATCH:
                yield _clusters_of(image, np.concatenate(parts), np.concatenate(weights))
                parts, weights, collected = [], [], 0
                await asyncio.sleep(0)
    if parts:
        yield _clusters_of(image, np.concatenate(parts), np.concatenate(weights))
    if len(offsets):
        yield offsets >> image.cluster_bits, times


def _clusters_of(image: "Image", entries: Words, weights: Clusters) -> tuple[Clusters, Clusters]:
    """The host clusters that L2 entries refer to, each once, and how often, where an entry counts `weights` times."""
    packed = (entries & _COMPRESSED) != 0
    hosts = (entries[~packed] & _OFFSET).astype(np.int64)
    bad = np.flatnonzero(hosts & image.cluster_mask)
    if len(bad):
        raise BadTree(errno.EIO, f"Cluster allocation offset {int(hosts[bad[0]]):#x} unaligned")
    clusters, counts = hosts >> image.cluster_bits, weights[~packed]
    if packed.any():
        shift = 70 - image.cluster_bits
        streams = entries[packed].astype(np.int64)
        begin = streams & (1 << shift) - 1
        sectors = (streams >> shift & (1 << (image.cluster_bits - 8)) - 1) + 1
        first = begin >> image.cluster_bits
        last = begin - begin % SECTOR + sectors * SECTOR - 1 >> image.cluster_bits
        touched = last - first + 1
        number = np.arange(int(touched.sum())) - np.repeat(np.cumsum(touched) - touched, touched)
        clusters = np.concatenate((clusters, np.repeat(first, touched) + number))
        counts = np.concatenate((counts, np.repeat(weights[packed], touched)))
    found, where = np.unique(clusters, return_inverse=True)
    return found, np.bincount(where, counts).astype(np.int64)


async def check_tree(image: "Image", l1: "array[int]") -> None:
    """Look at all of a snapshot's tree and its counts, and change nothing.

    Raises: OSError where they make no sense, or lead to metadata that would be taken for free with the snapshot.
    """
    active = (np.frombuffer(image.l1, np.uint64) & _OFFSET).astype(np.int64) >> image.cluster_bits
    last: Clusters = np.zeros(0, np.int64)
    async for clusters, times in _references(image, l1):
        _check_data(image, last)
        last = clusters
        for number, part, weights in _by_block(image, clusters, times):
            await _counts(image, number, part, weights)
    # The L2 tables: they may be those of the disk, or of other snapshots.
    last = last[~np.isin(last, active)]
    _check_data(image, last[[cluster not in image.inactive_l2 for cluster in last.tolist()]])


def _check_data(image: "Image", clusters: Clusters) -> None:
    metadata = image.metadata()
    for cluster in clusters.tolist():
        if cluster in metadata:
            name = name_of(image, cluster)
            raise BadTree(errno.EIO, f"A snapshot refers to host cluster {cluster:#x}, which is metadata ({name})")


# -- counting --------------------------------------------------------------------------------------------------------


async def count_up(image: "Image", l1: "array[int]") -> None:
    """One more reference to everything in a tree; in memory, written back as far as there is no room there.

    Failed: nothing has changed, or clusters leak. Raises: OSError (EINVAL where a count would be too high).
    """
    done = 0
    try:
        async for clusters, times in _references(image, l1):
            for block, part, weights in _by_block(image, clusters, times):
                await _add(image, block, part, weights, 1)
                done += 1
    except OSError:
        await _take_back(image, l1, done)
        raise


async def _take_back(image: "Image", l1: "array[int]", steps: int) -> None:
    """Undo the first steps of a `count_up`. What cannot be undone, because reading fails, leaks."""
    try:
        async for clusters, times in _references(image, l1):
            for block, part, weights in _by_block(image, clusters, times):
                if not steps:
                    return
                steps -= 1
                await _add(image, block, part, weights, -1)
    except OSError:
        return


async def count_down(image: "Image", l1: "array[int]") -> None:
    """One reference less to everything in a tree, whose removal is stable in the file; in memory, as `count_up`.

    Failed: clusters leak. Raises: OSError.
    """
    async for clusters, times in _references(image, l1):
        for block, part, weights in _by_block(image, clusters, times):
            await _add(image, block, part, weights, -1)


def _by_block(image: "Image", clusters: Clusters, times: Clusters) -> list[tuple[int, Clusters, Clusters]]:
    """Clusters in order, cut where another refcount block begins: its number, clusters and times."""
    blocks = clusters >> image.refcounts.shift
    cuts = (np.flatnonzero(np.diff(blocks)) + 1).tolist()
    return [
        (int(blocks[first]), clusters[first:end], times[first:end])
        for first, end in zip([0, *cuts], [*cuts, len(clusters)], strict=True)
        if first < end
    ]


async def _counts(image: "Image", number: int, clusters: Clusters, times: Clusters) -> "CachedTable":
    """Refcount block `number`, in memory; the clusters have at least these counts. Raises: BadTree; OSError."""
    refcounts = image.refcounts
    if not refcounts.has_block(number):
        offset = int(clusters[0]) << image.cluster_bits
        raise BadTree(errno.EFBIG, f"Host offset {offset:#x} is in use, but no refcount block covers it")
    block = await refcounts.fetch(number)
    counts = np.frombuffer(block.entries, block.entries.typecode)
    wrong = np.flatnonzero(counts[clusters & refcounts.mask] < times)
    if len(wrong):
        cluster = int(clusters[wrong[0]])
        raise BadTree(errno.EIO, f"Host cluster {cluster:#x} is used more often than its refcount says")
    return block


async def _add(image: "Image", number: int, clusters: Clusters, times: Clusters, sign: int) -> None:
    """Change the counts of clusters of one refcount block: all of them, or none where this raises."""
    refcounts = image.refcounts
    while refcounts.crowded:
        await commit(image, counts=True)
    block = await _counts(image, number, clusters, times)
    counts = np.frombuffer(block.entries, block.entries.typecode)
    places = clusters & refcounts.mask
    highest = min(refcounts.max_count, (1 << 62) - 1)
    if sign > 0 and (counts[places] > highest - times).any():
        raise BadTree(
            errno.EINVAL,
            f"A refcount would exceed {refcounts.max_count}: the image has refcount_bits={1 << refcounts.order}",
        )
    by = times.astype(counts.dtype)
    counts[places] = counts[places] + by if sign > 0 else counts[places] - by
    block.touch(int(places[0]), int(places[-1]) + 1)
    refcounts.dirty[number] = block
    free = clusters[counts[places] == 0].tolist()
    if free:
        refcounts.hint = min(refcounts.hint, free[0])
        for cluster in free:
            image.packer.freed(cluster)
        if image.options.discard_snapshot:
            await refcounts.give_storage_back(free)


# -- COPIED ----------------------------------------------------------------------------------------------------------


async def set_copied(image: "Image") -> None:
    """Make COPIED in the active tables say what the refcounts in memory do: set where a count is 1. In memory.

    Failed: some flags may say less than they could. Raises: OSError.
    """
    l1 = np.frombuffer(image.l1, np.uint64).copy()  # as above
    used = np.flatnonzero(l1 & _OFFSET)
    for start in range(0, len(used), BATCH):
        part = used[start : start + BATCH]
        flagged = await _flagged(image, l1[part])
        changed = flagged != l1[part]
        for index, entry in zip(part[changed].tolist(), flagged[changed].tolist(), strict=True):
            image.check_own_l2(index)
            image.l1[index] = entry
            image.l1_dirty.add(index)
    step = 2 if image.extended else 1
    for index in used.tolist():
        while image.l2.crowded:
            await commit(image, counts=True)
        table = await image.l2.fetch(index)
        assert table is not None
        for start in range(0, len(table.entries), BATCH):
            words = np.frombuffer(table.entries, np.uint64)[start : start + BATCH : step]
            flagged = await _flagged(image, words.copy()) if image.l1[index] & OFLAG_COPIED else words & ~_COPIED
            await asyncio.sleep(0)
            table = await image.l2.fetch(index)  # it may have been forgotten meanwhile: nobody has changed it
            assert table is not None
            _set_words(image, table, start, step, flagged)


def _set_words(image: "Image", table: "CachedTable", start: int, step: int, flagged: Words) -> None:
    words = np.frombuffer(table.entries, np.uint64)[start : start + len(flagged) * step : step]
    changed = np.flatnonzero(words != flagged)
    if len(changed):
        image.check_own_l2(table.index)
        words[changed] = flagged[changed]
        image.l2.changed(table, start + int(changed[0]) * step, start + (int(changed[-1]) + 1) * step)


async def _flagged(image: "Image", entries: Words) -> Words:
    """The entries with COPIED where the refcount of what they name is 1; never on compressed ones."""
    plain = ((entries & _OFFSET) != 0) & ((entries & _COMPRESSED) == 0)
    clusters = ((entries & _OFFSET) >> np.uint64(image.cluster_bits)).astype(np.int64)
    alone = np.zeros(len(entries), np.bool_)
    wanted, where = np.unique(clusters[plain], return_inverse=True)
    counts: list[npt.NDArray[Any]] = []
    for number, part, _ in _by_block(image, wanted, wanted):
        if not image.refcounts.has_block(number):
            counts.append(np.zeros(len(part), np.bool_))
            continue
        block = await image.refcounts.fetch(number)
        stored = np.frombuffer(block.entries, block.entries.typecode)
        counts.append(stored[part & image.refcounts.mask] == 1)
    if counts:
        alone[plain] = np.concatenate(counts)[where]
    return np.where(alone, entries | _COPIED, entries & ~_COPIED)
