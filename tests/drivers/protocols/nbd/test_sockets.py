"""Sockets of other kinds: one that this process was given, and AF_VSOCK."""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import OptionError
from aioblock.drivers.protocols.memory import MemoryDisk
from aioblock.drivers.protocols.nbd import NbdDriver
from tests.kit.fake_context import open_driver, read_from
from tests.kit.nbd_server import FakeServer

SIZE = 4096
CONTENT = bytes(range(256)) * 16


@asynccontextmanager
async def serving_a_pair() -> AsyncIterator[tuple[FakeServer, int]]:
    """A server at one end of a pair of sockets; the number of the other end."""
    near, far = socket.socketpair()
    server = FakeServer(MemoryDisk(SIZE, CONTENT))
    await asyncio.get_running_loop().connect_accepted_socket(server.accept, far)
    try:
        yield server, near.detach()
    finally:
        await server.stop()


def fd_option(name: object, **more: Any) -> dict[str, Any]:
    return {"server": {"type": "fd", "str": str(name)}} | more


async def test_a_socket_that_was_passed() -> None:
    """It is taken over, closed with the image; and it cannot be connected again."""
    async with serving_a_pair() as (server, fd):
        driver = await open_driver(NbdDriver, fd_option(fd))
        assert await read_from(driver, 0, SIZE) == CONTENT
        server.cut()
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                await read_from(driver, 0, SIZE)
            assert caught.value.errno == errno.EIO
        await driver.close()
        with pytest.raises(OSError):
            os.fstat(fd)


async def test_a_socket_that_was_passed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_a_pair() as (_, fd):
        monkeypatch.setattr("aioblock.drivers.protocols.nbd.connecting._FIRST_PASSED", fd - 1)
        monkeypatch.setenv("LISTEN_FDNAMES", "other:disk")
        with pytest.raises(OptionError, match="no file descriptor of the name 'disk' was passed"):
            await open_driver(NbdDriver, fd_option("disk"))
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        name = {"driver": "raw", "file": {"driver": "nbd"} | fd_option("disk")}
        async with await aioblock.open(name) as disk:
            assert await disk.pread(0, 16) == CONTENT[:16]
            assert disk.name.startswith("json:") and '"str": "disk"' in disk.name


async def test_what_is_no_socket(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OptionError, match=f"file descriptor {fd} is no socket"):
        await open_driver(NbdDriver, fd_option(fd))
    os.close(fd)
    with pytest.raises(OSError, match=f"Failed to connect to 'fd:{fd}': Bad file descriptor"):
        await open_driver(NbdDriver, fd_option(fd))


@pytest.mark.parametrize("option", ["reconnect-delay", "open-timeout", "connections"])
async def test_what_would_connect_again(option: str) -> None:
    with pytest.raises(OptionError, match="a file descriptor cannot be connected again"):
        await open_driver(NbdDriver, fd_option(0, **{option: 2}))


async def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network says is told, not that our own time is over."""

    async def dial(*args: Any) -> Any:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr("aioblock.drivers.protocols.nbd.connecting.dial", dial)
    with pytest.raises(TimeoutError, match="Failed to connect to '1:9': Connection timed out"):
        await open_driver(NbdDriver, {"server": {"type": "vsock", "cid": "1", "port": "9"}})


async def test_vsock() -> None:
    listening = None
    try:
        listening = socket.socket(socket.AF_VSOCK)
        listening.bind((1, socket.VMADDR_PORT_ANY))  # VMADDR_CID_LOCAL: the machine itself
    except (OSError, AttributeError) as error:
        if listening is not None:
            listening.close()
        pytest.skip(f"this kernel has no loopback of AF_VSOCK: {error}")
    listening.listen()
    listening.setblocking(False)
    port = listening.getsockname()[1]
    server = FakeServer(MemoryDisk(SIZE, CONTENT))

    async def accept() -> None:
        loop = asyncio.get_running_loop()
        client, _ = await loop.sock_accept(listening)
        await loop.connect_accepted_socket(server.accept, client)

    accepting = asyncio.ensure_future(accept())
    async with await aioblock.open(f"nbd+vsock://1:{port}/", format="raw") as disk:
        assert await disk.pread(0, SIZE) == CONTENT
    await accepting
    await server.stop()
    listening.close()
