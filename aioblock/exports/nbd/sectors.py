"""WholeSectors: a disk whose last sector is filled up with zeroes, as QEMU's programs show one that ends within it."""

import asyncio
from typing import Final

from aioblock.core.io import Done
from aioblock.graph.backend import BlockBackend

__all__ = ["SECTOR", "WholeSectors", "in_sectors"]

SECTOR: Final = 512


def in_sectors(nbytes: int) -> int:
    """Rounded up to whole sectors, in bytes."""
    return -(-nbytes // SECTOR) * SECTOR


class WholeSectors:
    """What a session needs of a disk. Offsets and lengths in bytes, up to the end of the last sector.

    Data that is written behind the end makes the disk longer; zeroes and discards there change nothing.
    """

    def __init__(self, disk: BlockBackend) -> None:
        self._disk = disk
        self._growing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<WholeSectors {self._disk.name} {self._disk.length}>"

    def _inside(self, offset: int, nbytes: int) -> int:
        return max(min(nbytes, self._disk.length - offset), 0)

    def readinto_now(self, offset: int, buffer: memoryview) -> bool:
        """As BlockBackend has it."""
        return offset + len(buffer) <= self._disk.length and self._disk.readinto_now(offset, buffer)

    async def readinto(self, offset: int, buffer: memoryview) -> None:
        """As BlockBackend has it."""
        inside = self._inside(offset, len(buffer))
        if inside:
            await self._disk.readinto(offset, buffer[:inside])
        buffer[inside:] = bytes(len(buffer) - inside)

    def pwrite_soon(self, offset: int, data: memoryview, done: Done) -> bool:
        """As BlockBackend has it."""
        return offset + len(data) <= self._disk.length and self._disk.pwrite_soon(offset, data, done)

    async def pwrite(self, offset: int, data: memoryview, flags: int = 0) -> None:
        """As BlockBackend has it. Cancelled: the disk may be longer, by zeroes."""
        end = offset + len(data)
        if end > self._disk.length:
            async with self._growing:  # of two that make it longer, the one for less shall not come last
                if end > self._disk.length:
                    await self._disk.truncate(end, exact=False)
        await self._disk.pwrite(offset, data, flags)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int = 0) -> None:
        """As BlockBackend has it."""
        if inside := self._inside(offset, nbytes):
            await self._disk.pwrite_zeroes(offset, inside, flags)

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """As BlockBackend has it."""
        if inside := self._inside(offset, nbytes):
            await self._disk.pdiscard(offset, inside)

    async def flush(self) -> None:
        """As BlockBackend has it."""
        await self._disk.flush()

    async def prefetch(self, offset: int, nbytes: int) -> None:
        """As BlockBackend has it."""
        if inside := self._inside(offset, nbytes):
            await self._disk.prefetch(offset, inside)
