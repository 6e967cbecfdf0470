"""The door: how much of the loop's time clients have who are not in yet, a piece at a time."""

import asyncio
from collections.abc import Callable

from aioblock.exports.nbd.door import Door
from aioblock.exports.nbd.server import serve
from aioblock.nbd.constants import CMD_READ, OPT_LIST, OPTION_MAGIC
from aioblock.nbd.requests import pack_request
from tests.kit.raw_nbd_client import connected
from tests.kit.scripted import Script, opened
from tests.kit.watching import until

MS = 0.001


async def test_alone_nobody_waits() -> None:
    door, done = Door(), []
    for number in range(1000):
        door.enter(lambda number=number: done.append(number))  # type: ignore[misc]
    await until(lambda: len(done) == 1000, 5000)
    assert done == list(range(1000))
    assert repr(door) == "<Door 0 waiting>"


async def test_work_that_comes_back_is_scheduled_once() -> None:
    turns, left = 0, 100
    door = Door()
    work_on = door._work

    def counted() -> None:
        nonlocal turns
        turns += 1
        work_on()

    def again() -> None:
        nonlocal left
        left -= 1
        if left:
            door.enter(again)

    door._work = counted  # type: ignore[method-assign]
    door.served = True  # others are there: so it takes several turns
    door.enter(again)
    while left:
        door.served = True
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert turns <= 100
    assert door._next is None


async def test_while_others_are_served_it_is_a_small_share_of_the_time() -> None:
    now = 100.0
    done: list[float] = []

    def work() -> None:
        nonlocal now
        now += 0.2 * MS
        done.append(now)

    door = Door(lambda: now)
    for _ in range(1000):
        door.enter(work)
    while now < 100.5:
        door.served = True
        door._work()
        now += 1 * MS
    assert 0.03 < len(done) * 0.2 * MS < 0.04
    door.close()
    assert repr(door) == "<Door 0 waiting>"


async def test_a_flood_of_options_is_taken_piece_by_piece(path: str) -> None:
    """Whoever is in gets answers meanwhile; whoever does not take the answers is not asked for more."""
    async with opened(Script(4096)) as disk, await serve(disk, path) as server:
        async with connected(path) as flood, connected(path) as good:
            await good.open()
            await flood.greet()
            flood.writer.transport.pause_reading()  # type: ignore[attr-defined]
            option = OPTION_MAGIC.to_bytes(8, "big") + OPT_LIST.to_bytes(4, "big") + bytes(4)
            flood.writer.write(option * 16_000)
            (connection,) = [connection for connection in server.connections if connection.export is None]
            transport = connection._transport
            assert transport is not None
            await until(transport.get_write_buffer_size, 20_000)
            unsent = transport.get_write_buffer_size()
            for _ in range(50):
                assert (await good.ask(CMD_READ, 0, 512)).error == 0
            assert transport.get_write_buffer_size() == unsent < 4096
            flood.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert await flood.reader.readexactly(100_000)
            flood.writer.transport.abort()  # type: ignore[attr-defined]


async def test_clients_come_one_by_one(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path) as server:
        door, most = server.resources.door, 0
        enter = door.enter

        def watched(work: Callable[[], None]) -> None:
            def counted() -> None:
                nonlocal most
                before = len(server.connections)
                work()
                most = max(most, len(server.connections) - before)

            enter(counted)

        door.enter = watched  # type: ignore[method-assign]
        clients = [connected(path) for _ in range(20)]
        opened_clients = await asyncio.gather(*(client.__aenter__() for client in clients))
        for client in opened_clients:
            await client.open()
        assert most == 1
        await asyncio.gather(*(client.__aexit__(None, None, None) for client in clients))


async def test_who_is_always_refused_waits_at_the_door_and_is_answered(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path) as server, connected(path) as client:
        await client.open()
        entered = 0
        enter = server.resources.door.enter

        def watched(work: Callable[[], None]) -> None:
            nonlocal entered
            entered += 1
            enter(work)

        server.resources.door.enter = watched  # type: ignore[method-assign]
        await client.ask(CMD_READ, 0, 512)
        assert entered == 0
        client.writer.write(
            b"".join(pack_request(client.mode, CMD_READ, 0, cookie, 1 << 40, 512) for cookie in range(1000))
        )
        assert [(await client.reply()).cookie for _ in range(1000)] == list(range(1000))
        assert entered > 5
        assert (await client.ask(CMD_READ, 0, 512)).error == 0
        entered = 0
        assert (await client.ask(CMD_READ, 0, 512)).error == 0
        assert entered == 0
