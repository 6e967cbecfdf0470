"""Data: where the bytes of guest clusters are read and written, once the mapping has said where they lie.

Compressed streams do not pass here: they are bytes of the image file, and never encrypted.
"""

from collections.abc import Awaitable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["Data"]


class Data:
    """Guest data as it is, in the file that holds it. `host`: the offset there; `guest`: the offset on the disk."""

    plain = True
    """The bytes in the file are those of the guest, so that others may reach for them directly."""

    def __init__(self, file: "BlockIO") -> None:
        self.file = file

    def readinto(self, host: int, guest: int, buffer: memoryview) -> Awaitable[None]:
        """Fill `buffer`. Raises: OSError."""
        return self.file.readinto(host, buffer)

    def pwrite(self, host: int, guest: int, data: memoryview) -> Awaitable[None]:
        """Write `data`, which does not change meanwhile. Raises: OSError."""
        return self.file.pwrite(host, data)

    def pwrite_zeroes(self, host: int, guest: int, nbytes: int) -> Awaitable[None]:
        """Make a range read as zeroes for the guest. Raises: OSError."""
        return self.file.pwrite_zeroes(host, nbytes)
