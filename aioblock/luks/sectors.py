"""Encrypted sectors of a file: read and decrypt, encrypt and write."""

import asyncio
from typing import TYPE_CHECKING, Final

from aioblock.base.buffers import aligned_buffer
from aioblock.luks.ciphers import SECTOR, SectorCipher

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["EncryptedSectors"]

INLINE_BYTES: Final = 128 << 10
"""What is no longer is encrypted on the loop, in half a millisecond: to a thread and back takes a fifth of that."""
CHUNK_BYTES: Final = 1 << 20
"""The most that is read or written, and encrypted, at a time."""


class EncryptedSectors:
    """The sectors of `file`; `at` is an offset in it in bytes, `sector` the number that the IV is made of."""

    def __init__(self, file: "BlockIO", cipher: SectorCipher) -> None:
        self.file = file
        self.cipher = cipher

    def __repr__(self) -> str:
        return f"<EncryptedSectors {self.cipher!r}>"

    def readinto_now(self, at: int, sector: int, buffer: memoryview) -> bool:
        """Fill `buffer` if the file can do it now and it is short; else False. Raises: OSError."""
        if len(buffer) > INLINE_BYTES or not self.file.readinto_now(at, buffer):
            return False
        self.cipher.decrypt_in_place(sector, buffer)
        return True

    async def readinto(self, at: int, sector: int, buffer: memoryview) -> None:
        """Fill `buffer`. Cancelled: nothing writes into it afterwards. Raises: OSError."""
        if len(buffer) <= INLINE_BYTES:
            await self.file.readinto(at, buffer)
            self.cipher.decrypt_in_place(sector, buffer)
            return
        # A thread works on memory of our own: whoever cancels this has his buffer back at once.
        own = aligned_buffer(min(len(buffer), CHUNK_BYTES))
        for done in range(0, len(buffer), CHUNK_BYTES):
            part = buffer[done : done + CHUNK_BYTES]
            encrypted = own[: len(part)]
            await self.file.readinto(at + done, encrypted)
            await asyncio.to_thread(self.cipher.decrypt_in_place, sector + done // SECTOR, encrypted)
            part[:] = encrypted

    async def pwrite(self, at: int, sector: int, data: memoryview) -> None:
        """Write `data`, which does not change meanwhile. Nobody cancels this. Raises: OSError."""
        if len(data) <= INLINE_BYTES:
            await self.file.pwrite(at, self.cipher.encrypt(sector, data))
            return
        for done in range(0, len(data), CHUNK_BYTES):
            part = data[done : done + CHUNK_BYTES]
            encrypted = await asyncio.to_thread(self.cipher.encrypt, sector + done // SECTOR, part)
            await self.file.pwrite(at + done, encrypted)

    async def pwrite_zeroes(self, at: int, sector: int, nbytes: int) -> None:
        """Write zeroes, which are no zeroes in the file. Nobody cancels this. Raises: OSError."""
        zeroes = memoryview(bytes(min(nbytes, CHUNK_BYTES)))
        for done in range(0, nbytes, CHUNK_BYTES):
            await self.pwrite(at + done, sector + done // SECTOR, zeroes[: nbytes - done])
