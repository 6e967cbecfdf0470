"""Many clients of one server, some of whom mean it no good: what the others still get, and what each costs."""

from aioblock.exports.nbd.server import serve
from aioblock.nbd.constants import CMD_READ, CMD_WRITE
from tests.kit.raw_nbd_client import connected
from tests.kit.scripted import Script, opened
from tests.kit.watching import until

MIB = 1 << 20


async def test_clients_that_are_idle_hold_no_memory_to_receive_in(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path) as server:
        async with connected(path) as opening, connected(path) as idle, connected(path) as other:
            await idle.open()
            await other.open()
            await until(lambda: len(server.connections) == 3)
            assert {id(connection.get_buffer(-1).obj) for connection in server.connections} == {id(server.scratch)}
            idle.writer.write(bytes.fromhex("256095130000"))  # a part of a head, which the others do not overwrite
            assert (await other.ask(CMD_READ, 0, 512)).error == 0
            await opening.open()
            idle.writer.write(bytes(2) + bytes(16) + (512).to_bytes(4, "big"))
            assert (await idle.reply()).error == 0


async def test_a_write_that_is_announced_takes_no_memory_before_it_comes(path: str) -> None:
    async with opened(Script(32 * MIB), writable=True) as disk, await serve(disk, path) as server:
        async with connected(path) as client:
            await client.open()
            client.writer.write(bytes.fromhex("2560951300000001") + bytes(16) + (32 * MIB).to_bytes(4, "big"))
            (connection,) = server.connections
            await until(lambda: len(connection.get_buffer(-1)) == 32 * MIB)
            assert connection.get_buffer(-1).obj is not server.scratch
            client.writer.write(b"x" * (32 * MIB))
            assert (await client.reply()).error == 0
            assert (await client.ask(CMD_WRITE, 0, data=b"y")).error == 0
