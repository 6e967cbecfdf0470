"""The persistent bitmaps of an open image: found, loaded, taken into use, stored and removed.

In the file a bitmap has data clusters, a table that points to them, and an entry in the directory; the bitmaps
extension of the header points to the directory, and counts only while autoclear bit 0 is set. `A => B`: A is stable
before B is written.

    writable open    bit 0 clear => every entry of the directory says "in use" => bit 0 set => the first guest write
    store            refcounts of all that is new => data, tables, new directory; bit 0 clear
                     => the extension (see `header_extension`) => bit 0 set => the old clusters are counted down
    store, and only flags changed: bit 0 clear => the directory, in its place => bit 0 set
    remove           as store, with one entry less; the last one: bit 0 clear => the extension goes => counted down

So whenever the power fails, one of these is in the file: the bitmaps as they were stored last, and then no guest write
came since; bitmaps that are in use, which nobody trusts; no bitmaps. The new clusters are reachable only by an
extension that counts, and the old ones are free only when it has been replaced. Extension and bit never change in one
write, because the extension may lie in another sector than the bit.

Bitmaps whose content is the one in the file keep their clusters. What is lost when no bitmaps are left is space: their
clusters stay counted until a check frees them.
"""

import asyncio
from array import array
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from aioblock.base.errors import CorruptImage
from aioblock.core.dirty_bitmap import DirtyBitmap
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.bitmap_directory import (
    AUTO,
    IN_USE,
    BitmapEntry,
    directory_bytes,
    read_bitmap_directory,
)
from aioblock.drivers.formats.qcow2.bitmaps import ALL_ONES, data_offset, table_entries
from aioblock.drivers.formats.qcow2.commit import write_back
from aioblock.drivers.formats.qcow2.entries import table_from_bytes, table_to_bytes
from aioblock.drivers.formats.qcow2.extensions import BitmapsExtension, bitmaps_extension, parse_bitmaps
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_BITMAPS
from aioblock.drivers.formats.qcow2.header import features_field
from aioblock.drivers.formats.qcow2.header_extension import drop_extension, put_extension
from aioblock.drivers.formats.qcow2.image import Image, log

__all__ = ["find_bitmaps", "load_bitmap", "remove_bitmap", "store_bitmaps", "take_into_use"]

TURN: Final = 256
"""How many table entries are gone through before somebody else gets a turn."""


# -- finding and loading ---------------------------------------------------------------------------------------------


async def find_bitmaps(image: Image) -> None:
    """Read the directory, if there is one that counts, into `stored_bitmaps` and `bitmaps`; no content yet.

    Raises: InvalidImage, CorruptImage, OSError.
    """
    value = ext.find(image.header.extensions, ext.BITMAPS)
    if value is None or not image.header.autoclear_features & AUTOCLEAR_BITMAPS:
        return
    entries = await read_bitmap_directory(image.file, image.header)
    image.bitmap_directory = parse_bitmaps(value, image.cluster_size)
    for entry in entries:
        image.stored_bitmaps[entry.name] = entry
        if entry.name not in image.bitmaps:
            bitmap = DirtyBitmap(
                entry.name,
                1 << entry.granularity_bits,
                image.size,
                enabled=bool(entry.flags & AUTO),
                persistent=True,
                inconsistent=bool(entry.flags & IN_USE),
            )
            bitmap.loaded = bitmap.inconsistent  # there is nothing to load: nobody may look at it
            image.bitmaps[entry.name] = bitmap


async def load_bitmap(image: Image, bitmap: DirtyBitmap) -> None:
    """Read the content of a bitmap; damaged, it is inconsistent, and said to be so. Raises: OSError."""
    try:
        await _load(image, bitmap, image.stored_bitmaps[bitmap.name])
    except CorruptImage as error:
        log.warning("Bitmap '%s' is not available: %s", bitmap.name, error)
        bitmap.clear()
        bitmap.inconsistent = True
    bitmap.loaded = True
    bitmap.changed = False


async def _load(image: Image, bitmap: DirtyBitmap, entry: BitmapEntry) -> None:
    file, size = image.file, image.cluster_size
    if entry.table_size != table_entries(bitmap, size):
        raise CorruptImage("The size of its table does not match the size of the disk", offset=entry.table_offset)
    if entry.table_offset + 8 * entry.table_size > file.length:
        raise CorruptImage("Its table lies behind the end of the file", offset=entry.table_offset)
    table = table_from_bytes(await file.pread(entry.table_offset, 8 * entry.table_size))
    left = file.length  # no cluster is used twice, so there cannot be more data than the file has
    for number, word in enumerate(table):
        if not number % TURN:
            await asyncio.sleep(0)
        if not word:
            continue
        at = number * size
        nbytes = min(size, bitmap.packed_bytes - at)
        offset = data_offset(word, size)
        if not offset:
            bitmap.unpack(at, b"\xff" * nbytes)
            continue
        left -= size
        if left < 0 or offset + nbytes > file.length:
            raise CorruptImage("Its data lies behind the end of the file", offset=offset)
        bitmap.unpack(at, await file.pread(offset, nbytes))


async def take_into_use(image: Image) -> None:
    """Before the first guest write: load the bitmaps, and say in the file that what it holds of them grows old.

    Raises: OSError.
    """
    entries = [entry._replace(flags=entry.flags | IN_USE) for entry in image.stored_bitmaps.values()]
    for bitmap in image.bitmaps.values():
        if not bitmap.loaded:
            await load_bitmap(image, bitmap)
    if entries != list(image.stored_bitmaps.values()):
        await _change_flags(image, entries)


# -- storing ---------------------------------------------------------------------------------------------------------


class _New(NamedTuple):
    """A bitmap that gets new clusters."""

    bitmap: DirtyBitmap
    entry: BitmapEntry
    table: "array[int]"


async def store_bitmaps(image: Image) -> None:
    """Put the persistent bitmaps into the file, where no guest write comes any more. They stay in memory too.

    No request is in flight, and everything else was written back. Failed: none of them, or nothing that counts, is in
    the file. Must not be cancelled. Raises: OSError.
    """
    bitmaps = [bitmap for bitmap in image.bitmaps.values() if bitmap.persistent]
    if not image.size and bitmaps:
        log.warning("Bitmaps are not kept: the disk has no bytes any more")
        bitmaps = []
    entries: list[BitmapEntry] = []
    new: list[_New] = []
    taken: list[tuple[int, int]] = []
    try:
        for bitmap in bitmaps:
            old = image.stored_bitmaps.get(bitmap.name)
            if old is not None and bitmap.inconsistent:
                entries.append(old._replace(flags=old.flags | IN_USE))
            elif old is not None and not bitmap.changed:
                entries.append(old._replace(flags=_flags(bitmap)))
            elif not bitmap.inconsistent:
                new.append(await _allocate(image, bitmap, taken))
                entries.append(new[-1].entry)
        if not new and [entry.name for entry in entries] == list(image.stored_bitmaps):
            if entries != list(image.stored_bitmaps.values()):
                await _change_flags(image, entries)
            return
        await _publish(image, entries, new, taken)
    except BaseException:
        for first, count in taken:
            await image.refcounts.give_back(first, count)
        raise
    for bitmap in bitmaps:
        bitmap.changed = False


async def remove_bitmap(image: Image, name: str) -> None:
    """Remove a bitmap from the file, if it is there; stable when done. No request is in flight.

    Failed: it is there or not, or no bitmaps are. Must not be cancelled. Raises: OSError.
    """
    if name in image.stored_bitmaps:
        await _publish(image, [entry for entry in image.stored_bitmaps.values() if entry.name != name], [], [])


def _flags(bitmap: DirtyBitmap) -> int:
    return AUTO if bitmap.enabled else 0


async def _allocate(image: Image, bitmap: DirtyBitmap, taken: list[tuple[int, int]]) -> _New:
    """Find clusters for a bitmap, and put them into its table; they are `taken` too. Raises: OSError."""
    size, bits = image.cluster_size, image.cluster_bits
    table = array("Q", bytes(8 * table_entries(bitmap, size)))
    ones = b"\xff" * size
    wanted = []
    for count, number in enumerate(bitmap.dirty_pieces(size)):
        if bitmap.packed(number * size, min(size, bitmap.packed_bytes - number * size)) == ones:
            table[number] = ALL_ONES
        else:
            wanted.append(number)
        if not count % TURN:
            await asyncio.sleep(0)
    done = 0
    while done < len(wanted):
        await image.make_room()
        first, count = await image.refcounts.allocate(len(wanted) - done, "bitmap data")
        taken.append((first, count))
        for cluster, number in enumerate(wanted[done : done + count], first):
            table[number] = cluster << bits
        done += count
    offset = await _allocate_table(image, 8 * len(table), "bitmap table", taken)
    entry = BitmapEntry(offset, len(table), _flags(bitmap), bitmap.granularity.bit_length() - 1, bitmap.name)
    return _New(bitmap, entry, table)


async def _allocate_table(image: Image, nbytes: int, what: str, taken: list[tuple[int, int]]) -> int:
    count = -(-nbytes >> image.cluster_bits)
    first = await image.refcounts.allocate_run(count, what)
    taken.append((first, count))
    return first << image.cluster_bits


async def _write(image: Image, new: _New) -> None:
    """Write the data and the table of a bitmap into its clusters. Raises: OSError."""
    size, bitmap = image.cluster_size, new.bitmap
    for number, offset in enumerate(new.table):
        if offset > ALL_ONES:
            await image.file.pwrite(offset, bitmap.packed(number * size, size))
        elif not number % TURN:
            await asyncio.sleep(0)
    padding = bytes(-8 * len(new.table) % size)
    await image.file.pwrite(new.entry.table_offset, table_to_bytes(new.table) + padding)


async def _publish(
    image: Image, entries: Sequence[BitmapEntry], new: Iterable[_New], taken: list[tuple[int, int]]
) -> None:
    """Make a new directory the one that counts, and free what only the old one refers to.

    `taken`: see `_allocate`; it is empty as soon as the file may refer to the new clusters. Raises: OSError.
    """
    file, header = image.file, image.header
    old = image.bitmap_directory
    released = await _released(image, entries)
    directory = directory_bytes(entries)
    place = None
    if entries:
        offset = await _allocate_table(image, len(directory), "bitmap directory", taken)
        place = BitmapsExtension(len(entries), len(directory), offset)
    await write_back(image)
    for part in new:
        await _write(image, part)
    if place is not None:
        await file.pwrite(place.directory_offset, directory + bytes(-len(directory) % image.cluster_size))
    await _set_bit(image, False)
    taken.clear()
    if place is not None:
        await put_extension(file, header, ext.BITMAPS, bitmaps_extension(place))
        await _set_bit(image, True)
    elif ext.find(header.extensions, ext.BITMAPS) is not None:
        await drop_extension(file, header, ext.BITMAPS)  # one that has to stay does not count
    image.stored_bitmaps = {entry.name: entry for entry in entries}
    image.bitmap_directory = place
    if old is not None:
        image.release(old.directory_offset, -(-old.directory_size >> image.cluster_bits))
    for cluster, count in released:
        image.release(cluster << image.cluster_bits, count)
    image.table_moved(*_extent(old), *_extent(place))
    await write_back(image)


def _extent(place: BitmapsExtension | None) -> tuple[int, int]:
    return (0, 0) if place is None else (place.directory_offset, place.directory_size)


async def _released(image: Image, entries: Sequence[BitmapEntry]) -> list[tuple[int, int]]:
    """The clusters of the tables, and of their data, that a directory of these entries does not refer to any more.

    Where they cannot all be a bitmap's they may be somebody else's: then they stay in use. Raises: OSError.
    """
    kept = {entry.table_offset for entry in entries}
    bits, size = image.cluster_bits, image.cluster_size
    found: list[tuple[int, int]] = []
    seen: set[int] = set()
    for entry in image.stored_bitmaps.values():
        if entry.table_offset in kept:
            continue
        first, count = entry.table_offset >> bits, -(-8 * entry.table_size >> bits)
        mine = list(range(first, first + count))
        try:
            if await _are_free_standing(image, mine, seen):
                table = table_from_bytes(await image.file.pread(entry.table_offset, 8 * entry.table_size))
                data = [data_offset(word, size) >> bits for word in table if word > ALL_ONES]
                if await _are_free_standing(image, data, seen):
                    found += [(first, count), *((cluster, 1) for cluster in data)]
                    continue
        except CorruptImage:
            pass
        log.warning("The clusters of bitmap '%s' are left in use: its table is damaged", entry.name)
    return found


async def _are_free_standing(image: Image, clusters: list[int], seen: set[int]) -> bool:
    """Whether host clusters are counted, hold none of the metadata that is known, and are named only once.

    Those that were are `seen` afterwards. Raises: OSError.
    """
    metadata = image.metadata()
    for number, cluster in enumerate(clusters, 1):
        if not number % TURN:
            await asyncio.sleep(0)
        if cluster in seen or cluster in metadata or not await image.refcounts.count(cluster):
            return False
        seen.add(cluster)
    return True


async def _change_flags(image: Image, entries: Sequence[BitmapEntry]) -> None:
    """Write other flags into the directory, in its place. Raises: OSError."""
    assert image.bitmap_directory is not None
    await _set_bit(image, False)
    await image.file.pwrite(image.bitmap_directory.directory_offset, directory_bytes(entries))
    await image.file.flush()
    await _set_bit(image, True)
    image.stored_bitmaps = {entry.name: entry for entry in entries}


async def _set_bit(image: Image, on: bool) -> None:
    """Say whether the bitmaps extension counts; stable when done. Raises: OSError."""
    header = image.header
    if bool(header.autoclear_features & AUTOCLEAR_BITMAPS) == on:
        return
    header.autoclear_features ^= AUTOCLEAR_BITMAPS
    await image.file.pwrite(*features_field(header))
    await image.file.flush()
