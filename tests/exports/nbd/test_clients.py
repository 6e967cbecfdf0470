"""What the server tells about its clients, and the export of those who ask for none by name."""

import asyncio
import os
import socket

import pytest

from aioblock.base.errors import OptionRefused
from aioblock.exports.nbd.client_info import NbdClientInfo, peer_name
from aioblock.exports.nbd.limits import NbdLimits
from aioblock.exports.nbd.server import NbdServer, serve
from aioblock.nbd.constants import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from tests.kit.raw_nbd_client import connected
from tests.kit.scripted import Script, opened
from tests.kit.watching import until

MIB = 1 << 20


async def gone(server: NbdServer) -> None:
    while server.connections:
        await asyncio.wait([connection.gone for connection in server.connections])


async def test_clients_are_told_in_their_order_with_what_they_asked_for(path: str) -> None:
    async with opened(Script(MIB), writable=True) as disk, await serve({"a": disk, "b": disk}, path) as server:
        assert server.clients() == []
        async with connected(path) as first, connected(path) as second, connected(path):
            await first.open("a")
            await second.open("b")
            assert (await first.ask(CMD_READ, 0, 4096)).error == 0
            assert (await first.ask(CMD_READ, 8192, 1000)).error == 0
            assert (await second.ask(CMD_WRITE, 0, 512, data=bytes(512))).error == 0
            assert (await second.ask(CMD_TRIM, 0, 4096)).error == 0
            assert (await second.ask(CMD_FLUSH, 0, 0)).error == 0
            assert (await second.ask(CMD_READ, 2 * MIB, 512)).error != 0
            infos = server.clients()
        assert [info.number for info in infos] == [1, 2, 3]
        assert [info.phase for info in infos] == ["session", "session", "handshake"]
        assert [info.export for info in infos] == ["a", "b", None]
        assert [info.requests for info in infos] == [2, 4, 0]
        assert [info.bytes_read for info in infos] == [5096, 512, 0]
        assert [info.bytes_written for info in infos] == [0, 512, 0]
        assert {info.peer for info in infos} == {f"pid {os.getpid()}"}
        assert not any(info.tls or info.in_flight or info.held for info in infos)
        assert all(info.seconds >= 0 for info in infos)
        await gone(server)
        assert server.clients() == []


async def test_what_waits_for_the_disk_is_in_flight_and_held(path: str) -> None:
    script = Script(MIB)
    async with opened(script) as disk, await serve(disk, path) as server, connected(path) as client:
        await client.open()
        script.hold("preadv")
        client.send(CMD_READ, 0, 512 * 1024, cookie=1)
        client.send(CMD_READ, 0, 512 * 1024, cookie=2)
        await until(lambda: server.clients()[0].in_flight == 2)
        assert server.clients()[0].held > MIB
        script.release()
        for _ in range(2):
            await client.reply()
        await until(lambda: not server.clients()[0].held)
        assert server.clients()[0].in_flight == 0


async def test_many_requests_at_once_are_each_counted_once(path: str) -> None:
    """More than one turn takes up, and more than the bounds let in at a time."""
    limits = NbdLimits(client_bytes=MIB, requests=4)
    async with opened(Script(MIB), writable=True) as disk, await serve(disk, path, limits=limits) as server:
        async with connected(path) as client:
            await client.open()
            for cookie in range(300):
                client.send(CMD_READ, 0, 8192, cookie=cookie)
            for _ in range(300):
                await client.reply()
            (info,) = server.clients()
            assert (info.requests, info.bytes_read, info.bytes_written) == (300, 300 * 8192, 0)


async def test_those_who_come_and_go_are_told(path: str) -> None:
    told: list[tuple[str, NbdClientInfo]] = []
    async with opened(Script(MIB)) as disk, await serve(disk, path) as server:
        server.on_client_begun = lambda info: told.append(("begun", info))
        server.on_client_gone = lambda info: told.append(("gone", info))
        async with connected(path) as client, connected(path):  # the second opens nothing
            await client.open()
            await client.ask(CMD_READ, 0, 4096)
        await gone(server)
    assert [(what, info.number, info.requests, info.phase) for what, info in told] == [
        ("begun", 1, 0, "session"),
        ("gone", 1, 1, "closed"),
    ]


async def test_the_default_export_is_for_those_who_name_none(path: str) -> None:
    async with opened(Script(MIB)) as small, opened(Script(2 * MIB)) as large:
        async with await serve({"small": small, "large": large}, path) as server:
            server.default = "large"
            async with connected(path) as client, connected(path) as other:
                await client.open("", contexts=["base:allocation"])
                assert client.size == 2 * MIB and client.contexts
                assert server.clients()[0].export == "large"
                await other.open("small")
                assert other.size == MIB
            await server.remove_export("large")
            async with connected(path) as late:
                with pytest.raises(OptionRefused, match="not present"):
                    await late.open("")


async def test_abort_ends_what_close_would_wait_for(path: str) -> None:
    script = Script(MIB)
    script.hold("preadv")
    async with opened(script) as disk, await serve(disk, path, limits=NbdLimits(stop_timeout=None)) as server:
        async with connected(path) as client:
            await client.open()
            client.send(CMD_READ, 0, 4096)
            await until(lambda: server.clients()[0].in_flight)
            closing = asyncio.create_task(server.close())
            await until(lambda: server.stopping)
            assert not closing.done()
            server.abort()
            await closing
            assert server.clients() == []
            assert await client.at_end()


@pytest.mark.parametrize(
    ("family", "host", "shown"), [(socket.AF_INET, "127.0.0.1", "127.0.0.1:"), (socket.AF_INET6, "::1", "[::1]:")]
)
def test_names_of_peers(family: int, host: str, shown: str) -> None:
    with socket.socket(family) as listening:
        try:
            listening.bind((host, 0))
        except OSError:
            pytest.skip(f"there is no {host} here")
        listening.listen()
        with socket.create_connection(listening.getsockname()[:2]) as client, listening.accept()[0] as accepted:
            assert peer_name(accepted) == f"{shown}{client.getsockname()[1]}"


def test_a_peer_that_is_gone_has_no_name() -> None:
    with socket.socket() as sock:
        assert peer_name(sock) == "?"
