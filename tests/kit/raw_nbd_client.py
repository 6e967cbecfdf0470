"""A client of NBD that does only what it is told, right or wrong: for tests of the server."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from struct import Struct
from typing import NamedTuple, Self

from aioblock.nbd.client_handshake import ClientEvent, ClientHandshake
from aioblock.nbd.constants import (
    EXTENDED_REPLY_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    REPLY_FLAG_DONE,
    REPLY_TYPE_IS_ERROR,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Mode,
)
from aioblock.nbd.requests import pack_request

__all__ = ["Chunk", "RawClient", "connected"]

_OPTION = Struct(">QII")
_OPTION_REPLY = Struct(">QIII")


class Chunk(NamedTuple):
    """A reply, or a part of one. `error` of the protocol, 0 for none."""

    cookie: int
    error: int
    kind: int
    data: bytes
    done: bool


class RawClient:
    """One connection. What the server sends is read where the test asks for it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.mode = Mode.SIMPLE
        self.contexts: dict[str, int] = {}
        self.flags = 0
        self.size = 0

    @classmethod
    async def connect(cls, address: str | Path | tuple[str, int]) -> Self:
        if isinstance(address, tuple):
            return cls(*await asyncio.open_connection(*address))
        return cls(*await asyncio.open_unix_connection(str(address)))

    # -- the handshake -----------------------------------------------------------------------------------------------

    async def open(self, export: str = "", mode: Mode = Mode.STRUCTURED, contexts: Sequence[str] = ()) -> Self:
        """The handshake, as it should be."""
        handshake = ClientHandshake(export, mode=mode, contexts=contexts)
        while not handshake.done:
            self.writer.write(handshake.take_output())
            data = await self.reader.read(1 << 16)
            if not data:
                raise EOFError
            events = handshake.feed(data)
        assert events == [ClientEvent.READY]
        self.mode, self.contexts = handshake.mode, handshake.contexts
        self.flags, self.size = handshake.info.flags, handshake.info.size
        return self

    async def greet(self, flags: int = 3) -> None:
        """The first two messages."""
        await self.reader.readexactly(18)
        self.writer.write(flags.to_bytes(4, "big"))

    async def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; all replies to it: kind and data. The last one is the ACK, or an error."""
        self.writer.write(_OPTION.pack(OPTION_MAGIC, option, len(data)) + data)
        found = []
        while True:
            magic, answered, kind, nbytes = _OPTION_REPLY.unpack(await self.reader.readexactly(_OPTION_REPLY.size))
            assert (magic, answered) == (OPTION_REPLY_MAGIC, option)
            found.append((kind, await self.reader.readexactly(nbytes)))
            if kind == 1 or kind >> 31:
                return found

    # -- requests ----------------------------------------------------------------------------------------------------

    def send(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 1, data: bytes = b""
    ) -> None:
        """A request; of a write the data too."""
        self.writer.write(pack_request(self.mode, command, flags, cookie, offset, length or len(data)) + data)

    async def reply(self, read: int = 0) -> Chunk:
        """One reply or chunk; `read`: how many bytes of data follow a simple one."""
        magic = int.from_bytes(await self.reader.readexactly(4), "big")
        if magic == SIMPLE_REPLY_MAGIC:
            error, cookie = Struct(">IQ").unpack(await self.reader.readexactly(12))
            return Chunk(cookie, error, 0, b"" if error else await self.reader.readexactly(read), True)
        if magic == STRUCTURED_REPLY_MAGIC:
            flags, kind, cookie, nbytes = Struct(">HHQI").unpack(await self.reader.readexactly(16))
        else:
            assert magic == EXTENDED_REPLY_MAGIC
            flags, kind, cookie, _, nbytes = Struct(">HHQQQ").unpack(await self.reader.readexactly(28))
        data = await self.reader.readexactly(nbytes)
        error = int.from_bytes(data[:4], "big") if kind & REPLY_TYPE_IS_ERROR else 0
        return Chunk(cookie, error, kind, data, bool(flags & REPLY_FLAG_DONE))

    async def ask(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 1, data: bytes = b""
    ) -> Chunk:
        """A request, and its reply."""
        self.send(command, offset, length, flags=flags, cookie=cookie, data=data)
        return await self.reply(length if command == 0 else 0)

    async def at_end(self) -> bool:
        """Wait until the server has closed the connection; whether it sent nothing more."""
        try:
            return not await self.reader.read()
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass


@asynccontextmanager
async def connected(address: str | Path | tuple[str, int]) -> AsyncIterator[RawClient]:
    """A connection on which nothing was sent."""
    client = await RawClient.connect(address)
    try:
        yield client
    finally:
        await client.close()
