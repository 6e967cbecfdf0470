"""Reading a range of an export for a reply: data, and zeroes that need not be sent."""

from typing import TYPE_CHECKING, Final, NamedTuple

from aioblock.exports.nbd.memory import Memory
from aioblock.nbd.constants import CONTEXT_ALLOCATION, STATE_ZERO

if TYPE_CHECKING:
    from aioblock.exports.nbd.export import NbdExport

__all__ = ["Part", "read_parts"]

_SPARSE: Final = 1 << 16
"""Bytes: shorter reads are not looked at for zeroes."""
_MOST: Final = 32
"""How many parts a read is looked at for; the rest is data."""


class Part(NamedTuple):
    """A run of a read: offset in the export and length, in bytes."""

    offset: int
    nbytes: int
    data: memoryview | None
    """In memory of `memory`, to be given back; None: zeroes."""


async def read_parts(export: "NbdExport", memory: Memory, offset: int, nbytes: int, *, sparse: bool) -> list[Part]:
    """The parts of a range, in order; not `sparse`: one.

    Failed, cancelled: all memory is given back. Raises: OSError.
    """
    if not sparse or nbytes < _SPARSE:
        return [await _data(export, memory, offset, nbytes)]
    parts: list[Part] = []
    allocation = export.contexts[CONTEXT_ALLOCATION]
    end = offset + nbytes
    try:
        while offset < end:
            length, zero = end - offset, False
            if len(parts) < _MOST:
                runs = await allocation.runs(export.offset + offset, length, 1)
                length, zero = runs.lengths[0], bool(runs.flags[0] & STATE_ZERO)
            parts.append(Part(offset, length, None) if zero else await _data(export, memory, offset, length))
            offset += length
    except BaseException:
        for part in parts:
            if part.data is not None:
                memory.give(part.data)
        raise
    return parts


async def _data(export: "NbdExport", memory: Memory, offset: int, nbytes: int) -> Part:
    view = memory.take(nbytes)
    try:
        await export.served.readinto(export.offset + offset, view)
    except BaseException:
        memory.give(view)
        raise
    return Part(offset, nbytes, view)
