"""Images as the commands see them: made of whole sectors, also where the file of a raw image ends within one.

Behind the end of the last sector's bytes lie zeroes, which count as allocated. A write there makes the image longer.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["SECTOR", "make_room", "length_of", "read_into", "whole"]

SECTOR = 512


def whole(nbytes: int) -> int:
    """`nbytes` in whole sectors, rounded up."""
    return -(-nbytes // SECTOR) * SECTOR


async def length_of(disk: "BlockBackend") -> int:
    """The length in bytes, in whole sectors. Raises: OSError."""
    return whole(await disk.getlength())


async def read_into(disk: "BlockBackend", offset: int, data: bytearray) -> None:
    """Fill `data` from `offset`. Raises: OSError (EIO past the last sector); BlockError."""
    end = offset + len(data)
    length = await disk.getlength()
    if end <= length or end > whole(length):
        await disk.readinto(offset, data)
        return
    inside = max(length - offset, 0)
    with memoryview(data) as view:
        await disk.readinto(min(offset, length), view[:inside])
        view[inside:] = bytes(len(data) - inside)


async def make_room(disk: "BlockBackend", offset: int, nbytes: int) -> None:
    """Before a request that changes a range: make the image longer where the range ends in its last sector.

    Raises: OSError, BlockError.
    """
    length = disk.length
    if length % SECTOR and length < offset + nbytes <= whole(length):
        await disk.truncate(offset + nbytes, exact=False)
