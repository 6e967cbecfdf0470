"""What one client may cost, and how the server ends (rows N6 and N8 of the hostile input)."""

import asyncio
import errno
import socket
from pathlib import Path

import pytest

from aioblock.base.errors import OptionError
from aioblock.exports.nbd.export import NbdExport
from aioblock.exports.nbd.limits import NbdLimits
from aioblock.exports.nbd.server import NbdServer, serve
from aioblock.nbd.constants import CMD_FLUSH, CMD_READ, CMD_WRITE, FLAG_CAN_MULTI_CONN
from tests.kit.raw_nbd_client import RawClient, connected
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

MIB = 1 << 20


async def gone(server: NbdServer) -> None:
    while server.connections:
        await asyncio.wait([connection.gone for connection in server.connections])


def stingy(client: RawClient) -> None:
    """Take nothing, and have no room for what comes."""
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]


# N6: a client that never reads


async def test_a_client_that_never_reads_costs_no_more_than_its_share(path: str) -> None:
    limits = NbdLimits(client_bytes=4 * MIB)
    async with opened(Script(MIB), writable=True) as disk, await serve(disk, path, limits=limits) as server:
        async with connected(path) as deaf, connected(path) as other:
            await deaf.open()
            await other.open()
            stingy(deaf)
            for cookie in range(64):
                deaf.send(CMD_READ, 0, MIB, cookie=cookie)
            for _ in range(200):
                await other.ask(CMD_READ, 0, 512)
                assert server.resources.budget.held <= limits.client_bytes + 64 * 1024
            assert server.resources.budget.held > 2 * MIB
        await gone(server)
        assert server.resources.budget.held == 0
        assert_idle(disk)


async def test_what_it_asked_comes_when_it_reads_again(path: str) -> None:
    limits = NbdLimits(client_bytes=2 * MIB)
    async with opened(Script(MIB), writable=True) as disk, await serve(disk, path, limits=limits) as server:
        async with connected(path) as client:
            await client.open()
            for cookie in range(16):
                client.send(CMD_READ, 0, MIB, cookie=cookie)
            assert sorted([(await client.reply()).cookie for _ in range(16)]) == list(range(16))
            assert server.resources.budget.held <= MIB + 64 * 1024
        await gone(server)
        assert server.resources.budget.held == 0


async def test_the_bound_of_all_together_lets_small_requests_through(path: str) -> None:
    limits = NbdLimits(client_bytes=4 * MIB, total_bytes=8 * MIB)
    async with opened(Script(4 * MIB), writable=True) as disk, await serve(disk, path, limits=limits) as server:
        async with connected(path) as deaf, connected(path) as other:
            await deaf.open()
            await other.open()
            stingy(deaf)
            for cookie in range(16):
                deaf.send(CMD_READ, 0, MIB, cookie=cookie)
            while server.resources.budget.held < 3 * MIB:
                await other.ask(CMD_READ, 0, 512)
            assert (await other.ask(CMD_READ, 0, 2 * MIB)).error == 0
            long = asyncio.create_task(other.ask(CMD_READ, 0, 4 * MIB))
            for _ in range(50):
                await asyncio.sleep(0)
            assert not long.done()
            deaf.writer.transport.abort()  # type: ignore[attr-defined]
            assert (await long).error == 0


async def test_a_client_that_takes_nothing_is_dropped(path: str) -> None:
    limits = NbdLimits(send_timeout=0.05)
    async with opened(Script(MIB), writable=True) as disk, await serve(disk, path, limits=limits) as server:
        async with connected(path) as deaf:
            await deaf.open()
            stingy(deaf)
            for cookie in range(8):
                deaf.send(CMD_READ, 0, MIB, cookie=cookie)
            await until(lambda: server.resources.budget.held, 2000)
            await gone(server)
        assert server.resources.budget.held == 0
        assert_idle(disk)


async def test_a_client_that_is_idle_is_dropped_where_that_is_asked_for(path: str) -> None:
    limits = NbdLimits(idle_timeout=0.05)
    async with opened(Script(4096)) as disk, await serve(disk, path, limits=limits), connected(path) as client:
        await client.open()
        assert await client.at_end()


async def test_no_more_requests_at_a_time_than_allowed(path: str) -> None:
    script = Script(4096)
    script.hold("preadv")
    async with opened(script) as disk, await serve(disk, path, limits=NbdLimits(requests=3)):
        async with connected(path) as client:
            await client.open()
            for cookie in range(10):
                client.send(CMD_READ, 0, 512, cookie=cookie)
            await until(lambda: len(script.held) == 3)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(script.held) == 3
            script.release()
            assert {(await client.reply()).cookie for _ in range(10)} == set(range(10))


async def test_half_close_gets_what_was_asked(path: str) -> None:
    script = Script(4096)
    script.hold("preadv")
    async with opened(script) as disk, await serve(disk, path) as server, connected(path) as client:
        await client.open()
        client.send(CMD_READ, 0, 512)
        client.writer.write_eof()
        await until(lambda: script.held)
        script.release()
        assert (await client.reply()).error == 0
        assert await client.at_end()
        await gone(server)


async def test_reset_in_the_middle_of_a_payload(path: str) -> None:
    script = Script(MIB)
    async with opened(script, writable=True) as disk, await serve(disk, path) as server:
        async with connected(path) as client:
            await client.open()
            client.writer.write(bytes.fromhex("25609513") + bytes(2) + (1).to_bytes(2, "big") + bytes(16))
            client.writer.write(MIB.to_bytes(4, "big") + bytes(100_000))
            await until(lambda: any(connection.export for connection in server.connections))
            client.writer.transport.abort()  # type: ignore[attr-defined]
        await gone(server)
        assert script.calls("pwritev") == []


async def test_the_connection_breaks_while_requests_run(path: str) -> None:
    """The read is given up; the write goes on to its end, and the disk waits for it."""
    script = Script(4096)
    script.hold("preadv", "pwritev")
    async with opened(script, writable=True) as disk, await serve(disk, path) as server:
        async with connected(path) as client:
            await client.open()
            client.send(CMD_READ, 0, 512)
            client.send(CMD_WRITE, 0, data=b"x" * 512)
            await until(lambda: len(script.held) == 2)
            for connection in list(server.connections):
                connection.abort()
            await gone(server)
        assert [call.outcome for call in script.calls("preadv")] == ["cancelled"]
        assert [call.outcome for call in script.calls("pwritev")] == ["running"]
        script.release()
        async with disk.drained():
            assert script.content[:512] == b"x" * 512
        assert_idle(disk)


# N8: the end


async def test_stop_finishes_what_was_accepted(path: str) -> None:
    script = Script(4096)
    script.hold("pwritev")
    async with opened(script, writable=True) as disk, await serve(disk, path) as server, connected(path) as client:
        await client.open()
        client.send(CMD_WRITE, 0, data=b"x" * 512)
        await until(lambda: script.held)
        stopping = asyncio.create_task(server.close())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not stopping.done()
        assert not Path(path).exists()
        script.release()
        assert (await client.reply()).error == 0
        assert await client.at_end()
        await stopping
        assert not server.connections
        await server.close()  # again


async def test_stop_does_not_wait_for_ever(path: str) -> None:
    script = Script(4096)
    script.hold("pwritev")
    limits = NbdLimits(stop_timeout=0.05)
    async with opened(script, writable=True) as disk:
        server = await serve(disk, path, limits=limits)
        async with connected(path) as client:
            await client.open()
            client.send(CMD_WRITE, 0, data=b"x" * 512)
            await until(lambda: script.held)
            await server.close()
            assert await client.at_end()
        script.release()
        async with disk.drained():
            assert script.content[:512] == b"x" * 512


async def test_a_cancelled_stop_goes_on(path: str) -> None:
    script = Script(4096)
    script.hold("pwritev")
    async with opened(script, writable=True) as disk, await serve(disk, path) as server, connected(path) as client:
        await client.open()
        client.send(CMD_WRITE, 0, data=b"x" * 512)
        await until(lambda: script.held)
        stopping = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        script.release()
        await server.close()
        assert not server.connections


async def test_an_export_is_taken_away(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve({"a": disk, "b": disk}, path) as server:
        async with connected(path) as first, connected(path) as second, connected(path) as third:
            await first.open("a")
            await second.open("b")
            await server.remove_export("a")
            assert await first.at_end()
            assert (await second.ask(CMD_FLUSH)).error == 0
            with pytest.raises(Exception, match="not available"):
                await third.open("a")


# Where it listens


async def test_tcp(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, ("127.0.0.1", 0), path) as server:
        assert len(server.sockets) == 2
        client = RawClient(*await asyncio.open_connection(*server.sockets[0].getsockname()))
        await client.open()
        assert (await client.ask(CMD_READ, 0, 512)).error == 0
        await client.close()


async def test_an_address_that_is_taken(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, ("127.0.0.1", 0)) as server:
        with pytest.raises(OSError, match="Failed to bind socket: Address already in use") as caught:
            await serve(disk, path, server.sockets[0].getsockname())
        assert caught.value.errno == errno.EADDRINUSE
        assert not Path(path).exists()


async def test_a_file_is_no_stale_socket(path: str) -> None:
    Path(path).write_bytes(b"precious")
    async with opened(Script(4096)) as disk:
        with pytest.raises(OSError, match="Address already in use"):
            await serve(disk, path)
    assert Path(path).read_bytes() == b"precious"


async def test_the_socket_of_a_live_server_is_left_alone(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path):
        with pytest.raises(OSError, match="Address already in use"):
            await serve(disk, path)
        async with connected(path) as client:
            await client.open()


async def test_a_stale_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
    async with opened(Script(4096)) as disk, await serve(disk, path), connected(path) as client:
        await client.open()


async def test_several_connections_are_offered_where_there_may_be_several(path: str) -> None:
    async with opened(Script(4096)) as disk:
        for number in (1, 2):
            async with await serve(disk, path, limits=NbdLimits(connections=number)), connected(path) as client:
                await client.open()
                assert bool(client.flags & FLAG_CAN_MULTI_CONN) is (number > 1)


@pytest.mark.parametrize("how", [{"offset": 4097}, {"offset": -1}, {"size": 4097}, {"offset": 1, "size": 4096}])
async def test_parts_that_there_are_not(how: dict[str, int]) -> None:
    async with opened(Script(4096)) as disk:
        with pytest.raises(OptionError, match="is not inside"):
            NbdExport(disk, **how)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="more than 4096 bytes"):
            NbdExport(disk, description="x" * 4097)
