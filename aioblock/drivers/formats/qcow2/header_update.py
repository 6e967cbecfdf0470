"""Rewriting the header of an open image: extensions, the name of the backing file, the version.

A power cut at any moment, also in the middle of a write, leaves the old header or the new one (rule 22 of the order of
writes). A sector is written whole or not at all, so everything that counts is switched by one write of the first
sector; what lies behind it is written before, where the header of that moment does not look:

    the new name, where neither the old name nor the extensions are => the first sector, with the extensions that matter
    => what lies behind the first sector once the feature name      => the first sector, with that table
       table stands among them

The table of feature names says nothing that a program needs, so it may be missing for a moment: without it what matters
fits into the first sector. Where it does not, or a cluster has no room for the old and the new name side by side, the
sectors are written from the last to the first, and a cut may leave a header of both.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import OptionError
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.header import Header, copy_of, fixed_fields, parse_header, serialise

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["header_steps", "update_header"]

SECTOR: Final = 512
"""What a power cut does not tear."""


async def update_header(image: "Image", change: Callable[[Header], None]) -> None:
    """Change the header in memory and in the file. `change` gets a copy; it sets extensions, names, version, features.

    Clusters that the new header refers to are counted and written. Not to be cancelled.
    Failed: the file holds the old header or the new one, nobody knows which, so the image is not written any more.
    Raises: OptionError where it does not fit, and then nothing was written; OSError.
    """
    async with image.commit_lock:
        new = copy_of(image.header)
        change(new)
        before = await image.file.pread(0, image.cluster_size)
        steps = header_steps(bytes(before), new)
        await image.file.flush()
        try:
            for offset, data in steps:
                await image.file.pwrite(offset, data)
                await image.file.flush()
        except OSError as error:
            image.failure = image.failure or error
            raise
        for known in fields(Header):
            setattr(image.header, known.name, getattr(new, known.name))
        image.version = new.version


def header_steps(before: bytes, new: Header) -> list[tuple[int, bytes]]:
    """The writes that turn the header in the first cluster `before` into `new`: offset and bytes, flushed in between.

    The offset and size of the name are set in `new`, and the feature name table is left out where it does not fit.
    Raises: OptionError.
    """
    vital = [extension for extension in new.extensions if extension.type != ext.FEATURE_NAMES]
    for extensions in (new.extensions, vital) if len(vital) < len(new.extensions) else (vital,):
        steps = _steps(before, new, extensions, vital)
        if steps is not None:
            return steps
    new.extensions = vital
    whole = serialise(new)
    return [(0, whole[:SECTOR])] if len(whole) == SECTOR else [(SECTOR, whole[SECTOR:]), (0, whole[:SECTOR])]


def _steps(
    before: bytes, new: Header, extensions: list[ext.Extension], vital: list[ext.Extension]
) -> list[tuple[int, bytes]] | None:
    """The steps to a header with `extensions`, of which `vital` matter, or None where there is no room for them."""
    size = len(before)
    new.extensions = extensions
    try:
        serialise(new)  # sets the length of the header, and where the name lies if it follows the extensions
    except OptionError:
        if len(extensions) > len(vital):
            return None
        raise
    end = new.header_length + len(ext.serialise_extensions(extensions))
    name = (new.backing_file or "").encode("utf-8", "surrogateescape")
    if max(end, new.backing_file_offset + len(name)) <= SECTOR:
        return [(0, _first_sector(new, extensions, name))]
    if new.header_length + len(ext.serialise_extensions(vital)) > SECTOR:
        return None
    steps = []
    if name:
        old = parse_header(before, "", size, True)
        place = _place(before, old, name, end)
        if place is None:
            return None
        new.backing_file_offset = place
        if before[place : place + len(name)] != name:
            steps.append((place, name))
    behind = ext.serialise_extensions(extensions)[max(SECTOR - new.header_length, 0) :]
    if behind and before[SECTOR : SECTOR + len(behind)] != behind:
        steps.append((0, _first_sector(new, vital, b"")))
        steps.append((SECTOR, behind))
    steps.append((0, _first_sector(new, extensions, b"")))
    return steps


def _place(before: bytes, old: Header, name: bytes, end: int) -> int | None:
    """Where, behind the first sector and behind `end`, the name can lie while the old header still counts."""
    taken = old.backing_file_offset, old.backing_file_offset + old.backing_file_size
    if taken[0] >= max(end, SECTOR) and before[taken[0] : taken[1]] == name:
        return taken[0]
    used = old.header_length + len(ext.serialise_extensions(old.extensions))
    first = max(end, used, SECTOR)
    for place in (first, max(first, taken[1])):
        apart = place + len(name) <= taken[0] or place >= taken[1]
        if apart and place + len(name) <= len(before):
            return place
    return None


def _first_sector(header: Header, extensions: list[ext.Extension], name: bytes) -> bytes:
    """The first sector; `name`, if it lies there, stands at its offset."""
    data = bytearray(fixed_fields(header) + ext.serialise_extensions(extensions))
    if name:
        data[header.backing_file_offset :] = name
    return bytes(data[:SECTOR].ljust(SECTOR, b"\0"))
