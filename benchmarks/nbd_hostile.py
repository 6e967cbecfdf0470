"""Clients of an NBD server that mean it no good, by what they do. They run until they are killed."""

import asyncio
import contextlib
import logging
import os
import struct
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

__all__ = ["KINDS", "hostile"]

_REQUEST = struct.Struct(">IHHQQI")
_MAGIC = 0x25609513
_READ, _WRITE = 0, 1
_LIST, _META = 3, 9
_MIB = 1 << 20
_PAUSE = 0.05
_FLAGS = struct.pack(">I", 3)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _option(option: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data


async def _opened(path: str) -> Streams:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(_FLAGS + _option(1))
    await reader.readexactly(28)
    return reader, writer


async def _drop_all(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 18):
        pass


async def _slow(path: str) -> None:
    """A handshake, byte by byte."""
    _, writer = await asyncio.open_unix_connection(path)
    for byte in (_FLAGS + _option(_META, bytes(1000))) * 100:
        writer.write(bytes([byte]))
        await asyncio.sleep(_PAUSE)


async def _stalled(path: str) -> None:
    """Asks for much, and takes nothing of it."""
    _, writer = await _opened(path)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    for cookie in range(16):
        writer.write(_REQUEST.pack(_MAGIC, 0, _READ, cookie, 0, 32 * _MIB))
    await asyncio.sleep(1000)


async def _sipping(path: str) -> None:
    """Asks for much, and takes it in small pieces."""
    _, writer = await _opened(path)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    sock = os.dup(writer.get_extra_info("socket").fileno())
    for cookie in range(16):
        writer.write(_REQUEST.pack(_MAGIC, 0, _READ, cookie, 0, 32 * _MIB))
    try:
        for _ in range(1000):
            await asyncio.sleep(_PAUSE)
            with contextlib.suppress(BlockingIOError):
                os.read(sock, 1024)
    finally:
        os.close(sock)


async def _oversized(path: str) -> None:
    """Requests that are refused, as many as go through."""
    reader, writer = await _opened(path)
    taking = asyncio.create_task(_drop_all(reader))
    try:
        while True:
            writer.write(_REQUEST.pack(_MAGIC, 0, _READ, 7, 0, 0xFFFFFFFF) * 64)
            await writer.drain()
            await asyncio.sleep(0)
    finally:
        taking.cancel()


async def _dripping(path: str) -> None:
    """A write that is announced, and comes a little at a time."""
    _, writer = await _opened(path)
    while True:
        writer.write(_REQUEST.pack(_MAGIC, 0, _WRITE, 7, 0, 32 * _MIB))
        for _ in range(32 * 1024):
            writer.write(bytes(1024))
            await writer.drain()
            await asyncio.sleep(_PAUSE)


async def _announcing(path: str) -> None:
    """A write that is announced, and the connection is cut; again and again."""
    while True:
        _, writer = await _opened(path)
        writer.write(_REQUEST.pack(_MAGIC, 0, _WRITE, 7, 0, 32 * _MIB) + bytes(64))
        await writer.drain()
        await asyncio.sleep(0)
        writer.transport.abort()  # type: ignore[attr-defined]


async def _storming(path: str) -> None:
    """Comes and goes."""
    while True:
        _, writer = await asyncio.open_unix_connection(path)
        writer.transport.abort()  # type: ignore[attr-defined]
        await asyncio.sleep(0)


async def _asking(path: str) -> None:
    """Options without end, whose answers are taken."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(_FLAGS)
    taking = asyncio.create_task(_drop_all(reader))
    try:
        while not taking.done():
            writer.write((_option(_LIST) + _option(_META, struct.pack(">II", 0, 0))) * 64)
            await writer.drain()
            await asyncio.sleep(0)
    finally:
        taking.cancel()


async def _deaf(path: str) -> None:
    """Options without end, whose answers are not taken."""
    _, writer = await asyncio.open_unix_connection(path)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(_FLAGS)
    while True:
        writer.write(_option(_LIST) * 64)
        await writer.drain()
        await asyncio.sleep(0)


KINDS: dict[str, Callable[[str], Awaitable[None]]] = {
    "slow": _slow,
    "stalled": _stalled,
    "sipping": _sipping,
    "oversized": _oversized,
    "dripping": _dripping,
    "announcing": _announcing,
    "storming": _storming,
    "asking": _asking,
    "deaf": _deaf,
}


async def _again(kind: Callable[[str], Awaitable[None]], path: str) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError):
            await kind(path)
        await asyncio.sleep(_PAUSE)


async def _all(path: str, kinds: list[str], count: int) -> None:
    await asyncio.gather(*(_again(KINDS[kinds[number % len(kinds)]], path) for number in range(count)))


def hostile(pipe: Connection, path: str, kinds: list[str], count: int) -> None:
    """`count` clients, of these kinds in turns."""
    logging.disable()  # of asyncio, which tells each time that the server has cut a connection
    pipe.send(None)
    asyncio.run(_all(path, kinds, count))
