"""Many clients of one server, some of whom mean it no good: what the others still get, and what each costs."""

import asyncio
import errno
from contextlib import AsyncExitStack

from aioblock.exports.nbd.budget import RESERVE, Budget
from aioblock.exports.nbd.limits import NbdLimits
from aioblock.exports.nbd.server import serve
from aioblock.nbd.constants import CMD_READ, CMD_WRITE
from aioblock.nbd.requests import pack_request
from tests.kit.raw_nbd_client import RawClient, connected
from tests.kit.scripted import Script, opened
from tests.kit.watching import until

MIB = 1 << 20


async def test_clients_that_are_idle_hold_no_memory_to_receive_in(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path) as server:
        async with connected(path) as opening, connected(path) as idle, connected(path) as other:
            await idle.open()
            await other.open()
            await until(lambda: len(server.connections) == 3)
            assert {id(connection.get_buffer(-1).obj) for connection in server.connections} == {
                id(server.resources.scratch)
            }
            idle.writer.write(bytes.fromhex("256095130000"))  # a part of a head, which the others do not overwrite
            assert (await other.ask(CMD_READ, 0, 512)).error == 0
            await opening.open()
            idle.writer.write(bytes(2) + bytes(16) + (512).to_bytes(4, "big"))
            assert (await idle.reply()).error == 0


async def test_a_write_that_is_announced_takes_no_memory_before_it_comes(path: str) -> None:
    async with opened(Script(4 * MIB), writable=True) as disk, await serve(disk, path) as server:
        async with connected(path) as client:
            await client.open()
            client.writer.write(bytes.fromhex("2560951300000001") + bytes(16) + (4 * MIB).to_bytes(4, "big"))
            (connection,) = server.connections
            await until(lambda: len(connection.get_buffer(-1)) == 4 * MIB)
            assert connection.get_buffer(-1).obj is not server.resources.scratch
            client.writer.write(b"x" * (4 * MIB))
            assert (await client.reply()).error == 0
            assert (await client.ask(CMD_WRITE, 0, data=b"y")).error == 0


async def test_memory_of_long_writes_is_used_again_but_of_those_that_failed(path: str) -> None:
    script = Script(MIB)
    async with opened(script, writable=True) as disk, await serve(disk, path) as server, connected(path) as client:
        await client.open()
        for byte in b"abc":
            assert (await client.ask(CMD_WRITE, 0, data=bytes([byte]) * MIB)).error == 0
            assert repr(server.resources.memory) == f"<Memory kept={MIB}>"
            assert script.content == bytes([byte]) * MIB
        script.fail("pwritev", OSError(errno.EIO, "broken"))
        assert (await client.ask(CMD_WRITE, 0, data=bytes(MIB))).error == errno.EIO
        assert repr(server.resources.memory) == "<Memory kept=0>"


# What all hold together


def greedy(budget: Budget, nbytes: int, most: int) -> int:
    """Take requests of one length until the next does not fit; what is held then."""
    held = 0
    while held + nbytes <= most and budget.fits(held, nbytes):
        held += nbytes
        budget.held += nbytes
    return held


def test_those_who_take_all_that_they_get_leave_room_for_more() -> None:
    budget = Budget(256 * MIB)
    shares = [greedy(budget, MIB // 4, 32 * MIB) for _ in range(8)]
    assert shares[:6] == [32 * MIB] * 6
    assert shares == sorted(shares, reverse=True) and shares[-1] >= 4 * MIB
    assert 0 < budget.total - budget.held < 32 * MIB
    assert greedy(budget, MIB, MIB) == MIB


def test_long_requests_never_take_everything() -> None:
    budget = Budget(256 * MIB)
    assert [greedy(budget, 32 * MIB, 32 * MIB) // MIB for _ in range(10)] == [32] * 7 + [0] * 3
    assert budget.fits(0, 16 * MIB) and not budget.fits(0, 16 * MIB + 1)


def test_one_alone_may_have_a_request_of_any_length() -> None:
    budget = Budget(MIB)
    assert budget.fits(0, 32 * MIB)
    budget.held = 512
    assert not budget.fits(0, 32 * MIB) and budget.fits(0, RESERVE)


async def test_only_those_are_called_for_whom_there_is_room() -> None:
    budget = Budget(64 * MIB)
    called: list[str] = []
    budget.held = 64 * MIB
    for name, nbytes in (("long", 24 * MIB), ("short", 4 * MIB), ("gone", 4 * MIB)):
        assert not budget.fits(0, nbytes)
        budget.wait(again := (lambda name=name: called.append(name)), 0, nbytes)  # type: ignore[misc]
    budget.forget(again)
    for give, expected in ((7, []), (1, ["short"]), (39, ["short"]), (1, ["short", "long"]), (16, ["short", "long"])):
        budget.give_back(give * MIB)
        await asyncio.sleep(0)
        assert called == expected
    assert budget.held == 0


def announce(client: RawClient, nbytes: int) -> None:
    client.writer.write(pack_request(client.mode, CMD_WRITE, 0, 1, 0, nbytes))


async def test_writes_that_are_only_announced_count_and_others_go_on(path: str) -> None:
    """Seven hold all that long ones may have; the eighth is not received before one of them is gone."""
    limits = NbdLimits(client_bytes=4 * MIB, total_bytes=32 * MIB)
    async with opened(Script(4 * MIB), writable=True) as disk, await serve(disk, path, limits=limits) as server:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(path)) for _ in range(9)]
            for client in clients:
                await client.open()
            *hogs, waiting, other = clients
            for number, client in enumerate(hogs, 1):
                announce(client, 4 * MIB)
                await until(lambda held=number * 4 * MIB: server.resources.budget.held == held)  # type: ignore[misc]
            announce(waiting, 4 * MIB)
            waiting.writer.write(b"x" * (4 * MIB))
            for _ in range(20):
                assert (await other.ask(CMD_WRITE, 0, data=b"y" * MIB)).error == 0
                assert (await other.ask(CMD_READ, 0, 2 * MIB)).error == 0
            assert server.resources.budget.held == 7 * 4 * MIB
            answer = asyncio.create_task(waiting.reply())
            hogs[0].writer.transport.abort()  # type: ignore[attr-defined]
            assert (await answer).error == 0
            assert (await waiting.ask(CMD_READ, 0, 1)).data[-1:] == b"x"
        while server.connections:
            await asyncio.wait([connection.gone for connection in server.connections])
        assert server.resources.budget.held == 0


async def test_a_long_write_waits_for_what_its_client_has_in_flight(path: str) -> None:
    script = Script(4 * MIB)
    script.hold("preadv")
    limits = NbdLimits(client_bytes=4 * MIB)
    async with opened(script, writable=True) as disk, await serve(disk, path, limits=limits) as server:
        async with connected(path) as client:
            await client.open()
            client.send(CMD_READ, 0, MIB, cookie=2)
            await until(lambda: script.held)
            announce(client, 4 * MIB)
            client.writer.write(b"x" * (4 * MIB))
            for _ in range(50):
                await asyncio.sleep(0)
            assert server.resources.budget.held < 2 * MIB
            script.release()
            assert [(await client.reply()).cookie for _ in range(2)] == [2, 1]
            for _ in range(2):  # again, with nothing else in flight
                assert (await client.ask(CMD_WRITE, 0, data=b"z" * (4 * MIB))).error == 0
            assert (await client.ask(CMD_READ, 0, 1)).data[-1:] == b"z"
            assert server.resources.budget.held == 0


# The end


async def test_stop_with_clients_that_take_nothing_send_nothing_and_say_nothing(path: str) -> None:
    limits = NbdLimits(stop_timeout=0.05)
    async with opened(Script(4 * MIB), writable=True) as disk, AsyncExitStack() as stack:
        server = await serve(disk, path, limits=limits)
        silent, stalled, dripping, idle = [await stack.enter_async_context(connected(path)) for _ in range(4)]
        for client in (stalled, dripping, idle):
            await client.open()
        stalled.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for cookie in range(4):
            stalled.send(CMD_READ, 0, 4 * MIB, cookie=cookie)
        announce(dripping, 4 * MIB)
        await until(lambda: server.resources.budget.held > 8 * MIB, 2000)
        await server.close()
        assert not server.connections and server.resources.budget.held == 0
        for client in (silent, dripping, idle):
            await client.at_end()
