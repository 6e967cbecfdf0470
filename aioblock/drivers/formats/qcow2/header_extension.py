"""Changing one header extension in place: whatever a power cut leaves, the header is the old one or the new one.

A disk writes sectors of 512 bytes whole or not at all, and the sectors of one write independently of each other.
Extensions follow one another up to the end mark, a head of eight zero bytes, and the name of the backing file lies
behind that. Each step below is stable before the next one, and each leaves a header that reads as before or as after:

- *A value of the same length* is written over the old one. That is no single sector, so the caller must have made sure
  that nobody looks at the old value: for the bitmaps, their autoclear bit is clear then.
- *A new extension* goes to the end. What lies behind the end mark is nobody's: the value and a new end mark are written
  there first. Then one write of eight bytes turns the old end mark into the new head. Heads are aligned to eight bytes,
  so they never straddle a sector.
- *A backing file's name in the way* is first copied to where nobody looks, behind itself; then one write of bytes 8 to
  19 points there. Those lie in the first sector.
- *The last extension is removed* by turning its head into the end mark: eight bytes again.
- *A header that is all in the first sector*, before and after, is written as that one sector.
- *Another than the last is removed* as `header_update` does it, if all but the feature names fit into the first sector.

What fits none of these is not done: a new extension is refused (ENOSPC: clusters of 1 or 2 KiB and a very long name),
and one that is to be removed stays, which the caller allows for.
"""

import errno
import struct
from typing import TYPE_CHECKING, Final

from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.extensions import Extension
from aioblock.drivers.formats.qcow2.header import Header, copy_of, serialise
from aioblock.drivers.formats.qcow2.header_update import header_steps

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["drop_extension", "put_extension"]

SECTOR: Final = 512
HEAD: Final = struct.Struct(">II")


async def put_extension(file: "BlockIO", header: Header, kind: int, data: bytes) -> None:
    """Set the extension of a type, in the file and in `header`. Nobody looks at a value that is there already.

    Stable when done. Failed: the file has the old extensions or the new ones; `header` the old ones.
    Raises: OSError (ENOSPC: it does not fit into the first cluster in any safe way).
    """
    old = ext.find(header.extensions, kind)
    if old is not None:
        if len(old) == len(data):
            await file.pwrite(_place(header, kind) + HEAD.size, data)
            await file.flush()
            _replace(header, kind, data)
            return
        if not await drop_extension(file, header, kind):
            raise OSError(errno.ENOSPC, "The header extension cannot be replaced")
    wanted = copy_of(header)
    wanted.extensions.append(Extension(kind, data))
    if await _write_one_sector(file, header, wanted):
        return
    end = _end(header)
    value = data + bytes(-len(data) % 8) + HEAD.pack(ext.END, 0)
    after = end + HEAD.size + len(value)
    name = header.backing_file_offset
    if (name and name < end + HEAD.size) or after > header.cluster_size:
        raise OSError(errno.ENOSPC, "There is no room for another header extension")
    if name and name < after:
        await _move_name(file, header, max(after, name + header.backing_file_size))
    await file.pwrite(end + HEAD.size, value)
    await file.flush()
    await file.pwrite(end, HEAD.pack(kind, len(data)))
    await file.flush()
    header.extensions.append(Extension(kind, data))


async def drop_extension(file: "BlockIO", header: Header, kind: int) -> bool:
    """Remove the extension of a type, which is there; stable when done. False: it cannot be done safely, and was not.

    Raises: OSError.
    """
    wanted = copy_of(header)
    wanted.extensions = [extension for extension in header.extensions if extension.type != kind]
    if await _write_one_sector(file, header, wanted):
        return True
    if header.extensions[-1].type != kind:
        return await _write_vital(file, header, wanted)
    await file.pwrite(_place(header, kind), HEAD.pack(ext.END, 0))
    await file.flush()
    header.extensions = wanted.extensions
    return True


async def _write_vital(file: "BlockIO", header: Header, wanted: Header) -> bool:
    """Write a header whose extensions, but for the feature names, are in the first sector. False: they are not."""
    vital = [extension for extension in wanted.extensions if extension.type != ext.FEATURE_NAMES]
    if header.header_length + len(ext.serialise_extensions(vital)) > SECTOR:
        return False
    for offset, data in header_steps(bytes(await file.pread(0, header.cluster_size)), wanted):
        await file.pwrite(offset, data)
        await file.flush()
    header.extensions = wanted.extensions
    header.backing_file_offset = wanted.backing_file_offset
    return True


async def _write_one_sector(file: "BlockIO", header: Header, wanted: Header) -> bool:
    """Write a header that takes one sector, before and after; `header` is as `wanted` then. False: it takes more."""
    if max(_length(header), _end(wanted) + HEAD.size + len(_name(wanted))) > min(SECTOR, header.cluster_size):
        return False
    await file.pwrite(0, serialise(wanted)[:SECTOR])
    await file.flush()
    header.extensions = wanted.extensions
    header.backing_file_offset = wanted.backing_file_offset
    return True


async def _move_name(file: "BlockIO", header: Header, offset: int) -> None:
    """Put the name of the backing file elsewhere, where nothing is."""
    name = _name(header)
    if offset + len(name) > header.cluster_size:
        raise OSError(errno.ENOSPC, "There is no room to move the name of the backing file")
    await file.pwrite(offset, name)
    await file.flush()
    await file.pwrite(8, struct.pack(">QI", offset, len(name)))
    await file.flush()
    header.backing_file_offset = offset


def _name(header: Header) -> bytes:
    return (header.backing_file or "").encode("utf-8", "surrogateescape")


def _place(header: Header, kind: int) -> int:
    """Where the extension of a type begins."""
    at = header.header_length
    for extension in header.extensions:
        if extension.type == kind:
            break
        at += HEAD.size + (len(extension.data) + 7 & ~7)
    return at


def _end(header: Header) -> int:
    """Where the end mark is."""
    return _place(header, ext.END)


def _length(header: Header) -> int:
    """The first byte behind the header, its extensions and the name."""
    return max(_end(header) + HEAD.size, header.backing_file_offset + header.backing_file_size)


def _replace(header: Header, kind: int, data: bytes) -> None:
    header.extensions = [
        Extension(kind, data) if extension.type == kind else extension for extension in header.extensions
    ]
