"""Write: in place where the clusters belong to this image state alone, else into newly allocated ones.

An allocating write handles, in one step, adjoining guest clusters that need the same: *new* host clusters, or the
adjoining host clusters that they *keep*, although not all of them is used yet (preallocated zeroes, extended entries).
It fills what the guest does not write, to the boundaries of the (sub)clusters it touches, with what the guest sees
there now; head, data and tail are one write where that is cheap. Only when all of this is in the file the L2 entries in
memory are set.
"""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, NamedTuple

from aioblock.base.errors import NotSupported
from aioblock.core.io import StoredData
from aioblock.drivers.formats.qcow2.commit import commit
from aioblock.drivers.formats.qcow2.entries import (
    ALLOC_ALL,
    NORMAL,
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    OFLAG_COPIED,
    SUBCLUSTERS,
    UNALLOCATED_ALLOC,
    ZERO_ALLOC,
)
from aioblock.drivers.formats.qcow2.mapping import (
    Run,
    cluster_entry,
    find_run,
    release_entry,
    set_cluster_entry,
    zero_run,
)
from aioblock.drivers.formats.qcow2.read import read

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.tables import CachedTable

__all__ = ["write"]

MERGE_BYTES: Final = 1 << 20
"""Head, data and tail are copied together, to be one write, up to this many bytes."""


KEPT: Final = frozenset((ZERO_ALLOC, UNALLOCATED_ALLOC))
"""Kinds that have a host cluster, and no data in it."""


async def write(image: "Image", offset: int, data: memoryview | StoredData) -> None:
    """Write `data` at `offset` of the guest.

    Failed: each part of the range holds old or new data; host clusters that got no entry are given back.
    Raises: OSError.
    """
    while data:
        image.check_writable()
        await image.make_room(allocating=True)
        table = await image.l2.own(offset >> image.table_shift)
        if image.options.lazy_refcounts and table.index in image.l1_dirty:
            # Only the counts of data are late: those of tables are in the file before data hangs on them.
            await commit(image, counts=True)
            continue
        if (event := image.allocating.get(offset >> image.cluster_bits)) is not None:
            await event.wait()
            continue
        run = find_run(image, table, offset, len(data), writing=True)
        if run.kind == NORMAL and run.copied and not _goes_on(image, table, offset, run, len(data)):
            done = run.nbytes
            if not image.external:
                first = run.host >> image.cluster_bits
                image.check_not_metadata(first, (run.host + done - 1 >> image.cluster_bits) - first + 1)
            await _put(image, run.host, offset, data[:done])
        else:
            done = await _write_allocating(image, table, offset, data)
        offset += done
        data = data[done:]


def _goes_on(image: "Image", table: "CachedTable", offset: int, run: Run, nbytes: int) -> bool:
    """Whether the range goes on behind a run of data with host clusters that adjoin it, and have no data yet."""
    behind = offset + run.nbytes
    if run.nbytes == nbytes or behind >> image.table_shift != table.index:
        return False
    found = find_run(image, table, behind, 1, writing=True)
    return found.kind in KEPT and found.copied and found.host == run.host + run.nbytes


class _Plan(NamedTuple):
    """Adjoining guest clusters that one step of an allocating write covers."""

    clusters: range
    entries: list[tuple[int, int]]
    """What `cluster_entry` says of each."""
    kept: int | None
    """Offset of the first host cluster, where they keep theirs; None: they need new ones."""


async def _write_allocating(image: "Image", table: "CachedTable", offset: int, data: memoryview | StoredData) -> int:
    """Write a part of `data`, from its beginning; how many bytes. Nobody has claimed the first cluster."""
    plan = _plan(image, table, offset, len(data))
    # The claim comes before the first await, and covers what was planned.
    event = image.claim(plan.clusters)
    try:
        if plan.kept is not None or image.external:
            host = plan.clusters.start << image.cluster_bits if plan.kept is None else plan.kept
            await _fill_and_link(image, plan, host, offset, data)
            return _end(image, plan.clusters, offset, data) - offset
        host, count = await image.refcounts.allocate(len(plan.clusters), "data cluster")
        part = _Plan(plan.clusters[:count], plan.entries[:count], None)
        try:
            await _fill_and_link(image, part, host << image.cluster_bits, offset, data)
        except BaseException:
            await image.refcounts.give_back(host, count)
            raise
        return _end(image, part.clusters, offset, data) - offset
    finally:
        image.disclaim(plan.clusters, event)


def _plan(image: "Image", table: "CachedTable", offset: int, nbytes: int) -> _Plan:
    first = offset >> image.cluster_bits
    stop = min((offset + nbytes - 1 >> image.cluster_bits) + 1, (first | image.l2_mask) + 1)
    entries: list[tuple[int, int]] = []
    kept: int | None = None
    for cluster in range(first, stop):
        if cluster in image.allocating:
            break
        entry, bitmap = cluster_entry(image, table, cluster)
        # COPIED, and a standard entry: the host cluster is ours to fill.
        own = entry & (OFLAG_COPIED | OFLAG_COMPRESSED) == OFLAG_COPIED and entry & image.host_mask
        keeps = entry & OFFSET_MASK if own else None
        if not entries:
            kept = keeps
        elif keeps != (None if kept is None else kept + (cluster - first << image.cluster_bits)):
            break
        entries.append((entry, bitmap))
    if kept is not None and not image.external:
        image.check_not_metadata(kept >> image.cluster_bits, len(entries))
    return _Plan(range(first, first + len(entries)), entries, kept)


def _end(image: "Image", clusters: range, offset: int, data: memoryview | StoredData) -> int:
    return min(offset + len(data), clusters.stop << image.cluster_bits)


async def _fill_and_link(image: "Image", plan: _Plan, host: int, offset: int, data: memoryview | StoredData) -> None:
    """Fill host clusters from `host` on for the planned guest clusters, then set their entries."""
    bits, clusters = image.cluster_bits, plan.clusters
    end = _end(image, clusters, offset, data)
    start_guest, last_guest = clusters.start << bits, clusters[-1] << bits
    low = start_guest + _lower_bound(image, plan.entries[0], offset - start_guest, end - start_guest)
    high = last_guest + _upper_bound(image, plan.entries[-1], offset - last_guest, end - last_guest)
    await _fill(image, host + low - start_guest, low, offset, data[: end - offset], high)
    table = await image.l2.own(start_guest >> image.table_shift)
    image.check_writable()
    for number, cluster in enumerate(clusters):
        entry, bitmap = plan.entries[number]
        guest = cluster << bits
        inside = max(low - guest, 0), min(high - guest, image.cluster_size)
        touched = _touched(image, *inside)
        bitmap = bitmap & ~(touched << SUBCLUSTERS) | touched
        set_cluster_entry(image, table, cluster, host + (number << bits) | OFLAG_COPIED, bitmap)
        if plan.kept is None:
            release_entry(image, entry, discard=False)


def _touched(image: "Image", low: int, high: int) -> int:
    """The bits of the subclusters that a part of a cluster, in bytes, lies in."""
    size = image.subcluster_size
    return (1 << -(-high // size)) - (1 << low // size)


def _in_use(image: "Image", entry: int, bitmap: int) -> int:
    """The bits of the subclusters whose data must move along when a cluster gets a new host cluster."""
    if entry & OFLAG_COMPRESSED:
        return (1 << image.subclusters) - 1
    return bitmap & ALLOC_ALL


def _lower_bound(image: "Image", old: tuple[int, int], low: int, high: int) -> int:
    """Where the part of a cluster begins that must be filled when bytes `low` up to `high` of it are written."""
    entry, bitmap = old
    size = image.subcluster_size
    low = max(low, 0)
    used = _in_use(image, entry, bitmap)
    if entry & OFLAG_COPIED and entry & image.host_mask and not entry & OFLAG_COMPRESSED:
        # What is in use stays where it is: nothing before `low` is touched there.
        return low if used >> (low // size) & 1 else low // size * size
    first = (used & -used).bit_length() - 1 if used else image.subclusters
    return min(low // size, first) * size


def _upper_bound(image: "Image", old: tuple[int, int], low: int, high: int) -> int:
    """Where that part ends."""
    entry, bitmap = old
    size = image.subcluster_size
    high = min(high, image.cluster_size)
    used = _in_use(image, entry, bitmap)
    last = (high - 1) // size
    if entry & OFLAG_COPIED and entry & image.host_mask and not entry & OFLAG_COMPRESSED:
        return high if used >> last & 1 else (last + 1) * size
    return max(last + 1, used.bit_length()) * size


def _put(image: "Image", host: int, guest: int, data: memoryview | StoredData) -> Awaitable[None]:
    """Write guest data to the file; it may lie in the storage of another graph, and is plain then."""
    if isinstance(data, StoredData):
        return image.data_file.pwrite_stored(host, data)
    return image.data.pwrite(host, guest, data)


async def _fill(image: "Image", host: int, low: int, offset: int, data: memoryview | StoredData, high: int) -> None:
    """Write guest bytes `low` up to `high` to the file at `host`: `data` at `offset`, around it what is there now."""
    end = offset + len(data)
    head, tail = offset - low, high - end
    if not head and not tail:
        await _put(image, host, low, data)
        return
    if isinstance(data, StoredData):
        raise NotSupported  # the rest of the cluster would have to be copied too
    table = await image.l2.own(low >> image.table_shift)
    inside = min(high, image.size)  # what lies behind the end of the disk is filled with zeroes
    head_zero = zero_run(image, table, low, head)
    tail_zero = zero_run(image, table, end, inside - end)
    if high - low <= MERGE_BYTES:
        whole = memoryview(bytearray(high - low))
        whole[head : head + len(data)] = data
        if image.event is not None and not (head_zero and tail_zero):
            await image.event("cow_read")
        if not head_zero:
            await read(image, low, whole[:head])
        if not tail_zero:
            await read(image, end, whole[head + len(data) : inside - low])
        if image.event is not None:
            await image.event("cow_write")
        await image.data.pwrite(host, low, whole)
        return
    if head:
        await _fill_part(image, host, low, head, head_zero)
    await image.data.pwrite(host + head, offset, data)
    if tail:
        behind = max(high - max(inside, end), 0)
        if tail > behind:
            await _fill_part(image, host + end - low, end, tail - behind, tail_zero)
        if behind:
            await image.data.pwrite_zeroes(host + high - low - behind, high - behind, behind)


async def _fill_part(image: "Image", host: int, guest: int, nbytes: int, zero: bool) -> None:
    """Copy what the guest sees at `guest` to the file at `host`."""
    if zero:
        await image.data.pwrite_zeroes(host, guest, nbytes)
        return
    step = min(nbytes, MERGE_BYTES)
    bounce = memoryview(bytearray(step))
    for at in range(0, nbytes, step):
        part = bounce[: min(step, nbytes - at)]
        if image.event is not None:
            await image.event("cow_read")
        await read(image, guest + at, part)
        await image.data.pwrite(host + at, guest + at, part)
