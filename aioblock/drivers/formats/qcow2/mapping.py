"""From a guest offset to what is there: runs of clusters or subclusters that are alike and adjoin in the file.

Nothing here suspends; tables are fetched by the caller. An entry that makes no sense raises OSError, and marks a
writable image as corrupt.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from aioblock.drivers.formats.qcow2.entries import (
    ALLOC_ALL,
    COMPRESSED,
    INVALID,
    L2_RESERVED_MASK,
    NORMAL,
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    OFLAG_COPIED,
    OFLAG_ZERO,
    SUBCLUSTERS,
    UNALLOCATED,
    UNALLOCATED_ALLOC,
    ZERO_ALLOC,
    ZERO_PLAIN,
    as_c,
    cluster_type,
    compressed_extent,
    subcluster_run,
)

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.tables import CachedTable

__all__ = [
    "HOLES",
    "ZEROES",
    "Run",
    "cluster_entry",
    "compressed_clusters",
    "find_run",
    "reads_zero",
    "release_entry",
    "set_cluster_entry",
    "zero_run",
]

LONGEST: Final = 16384
"""How many clusters are looked at for one run, so that the loop goes on: a longer run comes in parts."""
HOLES: Final = frozenset((UNALLOCATED, UNALLOCATED_ALLOC))
"""Kinds of which this layer decides nothing."""
ZEROES: Final = frozenset((ZERO_PLAIN, ZERO_ALLOC))
HOSTED: Final = frozenset((NORMAL, ZERO_ALLOC, UNALLOCATED_ALLOC))
"""Kinds that have a host cluster of their own."""


class Run(NamedTuple):
    """Bytes of the guest that are of one kind (see `entries`), and adjoin in the file where they have a place there."""

    kind: int
    nbytes: int
    host: int
    """Offset in the file of the first byte, for kinds that have one; 0 for others."""
    entry: int
    """The (first) L2 entry, without its bitmap."""

    @property
    def copied(self) -> bool:
        """Whether the run's host clusters belong to it alone."""
        return self.entry & OFLAG_COPIED != 0


def find_run(image: "Image", table: "CachedTable | None", offset: int, nbytes: int, *, writing: bool = False) -> Run:
    """The run that begins at `offset`, at most `nbytes` and at most to the end of what `table` maps.

    No table: its whole range is unallocated. All entries of a run agree in their COPIED flag. `writing`: for messages.
    Raises: OSError where the first entry makes no sense.
    """
    end = min(offset + nbytes, ((offset >> image.table_shift) + 1) << image.table_shift)
    if table is None:
        return Run(UNALLOCATED, end - offset, 0, 0)
    if image.extended:
        return _extended_run(image, table, offset, end, offset if writing else None)
    entries = table.entries
    index = offset >> image.cluster_bits & image.l2_mask
    entry = entries[index]
    kind = cluster_type(entry, image.host_mask)
    inside = offset & image.cluster_mask
    if kind == COMPRESSED:
        return Run(kind, min(end, offset - inside + image.cluster_size) - offset, 0, entry)
    host = entry & OFFSET_MASK
    hosted = kind in HOSTED
    if entry & (L2_RESERVED_MASK | image.cluster_mask) & ~OFLAG_ZERO or (entry & OFLAG_ZERO and image.version < 3):
        raise bad_entry(image, table, index, entry, offset if writing else None)
    # The next entry of the run is this one, plus a cluster where it has a host offset: flags and all.
    step = image.cluster_size if hosted else 0
    count = min((end - 1 >> image.cluster_bits) - (offset >> image.cluster_bits), LONGEST)
    expected = entry + step
    last = index
    for found in entries[index + 1 : index + 1 + count]:
        if found != expected:
            break
        last += 1
        expected += step
    stop = min(end, offset - inside + (last - index + 1 << image.cluster_bits))
    return Run(kind, stop - offset, host + inside if hosted else 0, entry)


def _extended_run(image: "Image", table: "CachedTable", offset: int, end: int, written: int | None) -> Run:
    bits, mask, size = image.cluster_bits, image.cluster_mask, image.subcluster_size
    entries = table.entries
    kind = first_host = first_entry = -1
    at = offset
    while at < end:
        index = at >> bits & image.l2_mask
        entry, bitmap = entries[2 * index], entries[2 * index + 1]
        inside = at & mask
        if not entry & OFLAG_COMPRESSED and entry & (L2_RESERVED_MASK | mask) & ~OFLAG_ZERO:
            if kind >= 0:
                break  # told when the caller comes to it
            raise bad_entry(image, table, index, entry, written)
        this, count = subcluster_run(entry, bitmap, inside // size, host_mask=image.host_mask)
        host = (entry & OFFSET_MASK) + inside if this in HOSTED else 0
        if kind < 0:
            if this == INVALID:
                raise bad_bitmap(image, table, index, written)
            kind, first_host, first_entry = this, host, entry
        elif (
            this != kind
            or this == COMPRESSED
            or (entry ^ first_entry) & OFLAG_COPIED
            or (this in HOSTED and host != first_host + at - offset)
        ):
            break
        at = at - inside + (inside // size + count) * size
        if at & mask:
            break
    return Run(kind, min(at, end) - offset, first_host, first_entry)


def bad_entry(image: "Image", table: "CachedTable", index: int, entry: int, written: int | None = None) -> OSError:
    """The error for an L2 entry that makes no sense. `written`: the guest offset that is to be written, if it is."""
    host = entry & OFFSET_MASK
    place = f"(L2 offset: {table.offset:#x}, L2 index: {as_c(index)})"
    if entry & OFLAG_ZERO and image.version < 3:
        return image.corruption(f"Zero cluster entry found in pre-v3 image {place}")
    if entry & L2_RESERVED_MASK or not host & image.cluster_mask:
        return bad_bitmap(image, table, index, written)
    if written is None:
        return image.corruption(f"Cluster allocation offset {host:#x} unaligned {place}")
    what = "Preallocated zero" if entry & OFLAG_ZERO else "Data"
    return image.corruption(f"{what} cluster offset {host:#x} unaligned (guest offset: {as_c(written)})")


def bad_bitmap(image: "Image", table: "CachedTable", index: int, written: int | None = None) -> OSError:
    """The error for a bitmap that contradicts itself or its entry; where it is read, with QEMU's two spaces."""
    found = "found " if written is None else "found"
    return image.corruption(f"Invalid cluster entry {found} (L2 offset: {table.offset:#x}, L2 index: {as_c(index)})")


def reads_zero(image: "Image", kind: int, offset: int) -> bool:
    """Whether what is of this kind from `offset` on is known to read as zeroes, without asking anybody."""
    return kind in ZEROES or (kind in HOLES and (image.backing is None or image.backing.length <= offset))


def zero_run(image: "Image", table: "CachedTable | None", offset: int, nbytes: int) -> bool:
    """Whether all of a range (in one table) is known to read as zeroes, without asking anybody."""
    while nbytes > 0:
        run = find_run(image, table, offset, nbytes)
        if not reads_zero(image, run.kind, offset):
            return False
        offset += run.nbytes
        nbytes -= run.nbytes
    return True


def cluster_entry(image: "Image", table: "CachedTable", cluster: int) -> tuple[int, int]:
    """The L2 entry of a guest cluster that is to be changed, without OFLAG_ZERO, and its bitmap.

    Where entries are not extended the bitmap is as if the cluster had one subcluster. Compressed: no bits.
    Raises: OSError where the entry makes no sense.
    """
    index = cluster & image.l2_mask
    if image.extended:
        entry, bitmap = table.entries[2 * index], table.entries[2 * index + 1]
        if entry & OFLAG_COMPRESSED:
            return entry, 0
        allocated = bitmap & ALLOC_ALL
        if allocated & bitmap >> SUBCLUSTERS or (allocated and not entry & image.host_mask):
            raise bad_bitmap(image, table, index, cluster << image.cluster_bits)
    else:
        entry = table.entries[index]
        if entry & OFLAG_COMPRESSED:
            return entry, 0
        bitmap = 1 << SUBCLUSTERS if entry & OFLAG_ZERO else int(entry & image.host_mask != 0)
        if bitmap > 1 and image.version < 3:
            raise bad_entry(image, table, index, entry, cluster << image.cluster_bits)
    if entry & (L2_RESERVED_MASK | image.cluster_mask) & ~OFLAG_ZERO:
        raise bad_entry(image, table, index, entry, cluster << image.cluster_bits)
    return entry & ~OFLAG_ZERO, bitmap


def set_cluster_entry(image: "Image", table: "CachedTable", cluster: int, entry: int, bitmap: int) -> None:
    """Set what `cluster_entry` gives, in a table that the caller owns. What the entry names must be written already."""
    index = cluster & image.l2_mask
    if image.extended:
        table.entries[2 * index] = entry
        table.entries[2 * index + 1] = bitmap
        image.l2.changed(table, 2 * index, 2 * index + 2)
    else:
        table.entries[index] = entry | OFLAG_ZERO if bitmap >> SUBCLUSTERS else entry
        image.l2.changed(table, index, index + 1)


def release_entry(image: "Image", entry: int, *, discard: bool) -> None:
    """Take away the references that an L2 entry, which stands nowhere any more, had to host clusters."""
    if image.external:
        if discard and entry & image.host_mask:
            image.unused_data.add((entry & OFFSET_MASK) >> image.cluster_bits)
    elif entry & OFLAG_COMPRESSED:
        first, count = compressed_clusters(image, entry)
        image.release(first << image.cluster_bits, count, discard=discard)
    elif host := entry & OFFSET_MASK:
        image.release(host, discard=discard)


def compressed_clusters(image: "Image", entry: int) -> tuple[int, int]:
    """The host clusters that a compressed stream touches: the first, and how many."""
    offset, nbytes = compressed_extent(entry, image.cluster_bits)
    first = offset >> image.cluster_bits
    return first, (offset + nbytes - 1 >> image.cluster_bits) - first + 1
