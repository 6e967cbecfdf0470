"""TLS that does not come about: nothing is left, and nobody waits for ever. That it does: see tests/interop."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aioblock.base.errors import NbdError
from aioblock.core.tls import TlsX509
from aioblock.drivers.protocols.nbd import NbdDriver
from aioblock.nbd.server_handshake import ServerHandshake, TlsAsked, TlsPolicy
from tests.kit.certificates import Authority
from tests.kit.fake_context import open_driver

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        pass


async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.transport.abort()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    await at_once(reader, writer)


async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await silent(reader, writer)


class Server:
    """Agrees to begin TLS, and then behaves as it likes."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.reached, self.left = asyncio.Event(), asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handshake = ServerHandshake(tls=TlsPolicy.REQUIRED)
        writer.write(handshake.take_output())
        events: list[Any] = []
        while TlsAsked() not in events:
            events = handshake.feed(await reader.read(4096))
        writer.write(handshake.take_output())
        self.reached.set()
        try:
            await self.behaviour(reader, writer)
        except OSError:
            pass
        writer.close()
        self.left.set()


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"path": str(tmp_path / "socket"), "tls-creds": "t", "tls-hostname": "localhost"}


@pytest.fixture
def objects(tmp_path: Path) -> dict[str, Any]:
    return {"t": TlsX509("client", str(Authority(tmp_path).client()))}


@pytest.mark.parametrize("behaviour", [gone, reset, garbage, at_once])
async def test_the_server_fails(options: dict[str, Any], objects: dict[str, Any], behaviour: Behaviour) -> None:
    server = Server(behaviour)
    async with await asyncio.start_unix_server(server, options["path"]):
        with pytest.raises((OSError, NbdError)):
            await open_driver(NbdDriver, options, objects=objects)
        await server.left.wait()


async def test_cancelled_while_it_begins(options: dict[str, Any], objects: dict[str, Any]) -> None:
    server = Server(silent)
    async with await asyncio.start_unix_server(server, options["path"]):
        opening = asyncio.ensure_future(open_driver(NbdDriver, options, objects=objects))
        await server.reached.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await server.left.wait()
