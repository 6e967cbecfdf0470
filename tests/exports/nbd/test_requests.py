"""Requests: what becomes of each, right or wrong (rows N5 and N7 of the hostile input)."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from struct import unpack

import pytest

from aioblock.base.flags import DATA, REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK, ZERO
from aioblock.exports.nbd.export import NbdExport
from aioblock.exports.nbd.server import serve
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_DISC,
    CMD_FLAG_DF,
    CMD_FLAG_FAST_ZERO,
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLAG_REQ_ONE,
    CMD_FLUSH,
    CMD_READ,
    CMD_RESIZE,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    MAX_PAYLOAD,
    REPLY_TYPE_BLOCK_STATUS,
    REPLY_TYPE_OFFSET_DATA,
    REPLY_TYPE_OFFSET_HOLE,
    Mode,
)
from aioblock.nbd.requests import pack_request
from tests.kit.raw_nbd_client import RawClient, connected
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

SIZE = 65536
CONTENT = bytes(range(256)) * (SIZE // 256)
MODES = [Mode.SIMPLE, Mode.STRUCTURED, Mode.EXTENDED]


@asynccontextmanager
async def serving(
    script: Script, path: str, *, mode: Mode = Mode.STRUCTURED, contexts: tuple[str, ...] = (), **how: object
) -> AsyncIterator[RawClient]:
    """A client that has opened the only export; nothing is left at the end."""
    writable = not how.pop("unwritable", False)
    async with opened(script, writable=writable) as disk:
        export = NbdExport(disk, **how)  # type: ignore[arg-type]
        async with await serve(export, path) as server, connected(path) as client:
            yield await client.open(mode=mode, contexts=contexts)
        assert server.resources.budget.held == 0
        assert_idle(disk)


def data_of(client: RawClient, reply: bytes, offset: int) -> bytes:
    if client.mode is Mode.SIMPLE:
        return reply
    assert int.from_bytes(reply[:8], "big") == offset
    return reply[8:]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("offset", "nbytes"), [(0, 512), (1, 1), (SIZE - 7, 7), (0, SIZE), (100, 0)])
async def test_read_and_write(path: str, mode: Mode, offset: int, nbytes: int) -> None:
    script = Script(SIZE, content=CONTENT)
    async with serving(script, path, mode=mode) as client:
        reply = await client.ask(CMD_READ, offset, nbytes)
        assert (reply.cookie, reply.error, reply.done) == (1, 0, True)
        if nbytes:
            assert data_of(client, reply.data, offset) == CONTENT[offset : offset + nbytes]
        new = bytes(255 - byte for byte in CONTENT[offset : offset + nbytes])
        assert (await client.ask(CMD_WRITE, offset, data=new)).error == 0
        assert script.content[offset : offset + nbytes] == new
        assert script.content[:offset] == CONTENT[:offset]
        assert script.content[offset + nbytes :] == CONTENT[offset + nbytes :]


WRONG = [
    (CMD_READ, 0, SIZE, 1, errno.EINVAL),
    (CMD_READ, 0, 0, SIZE + 1, errno.EINVAL),
    (CMD_READ, 0, (1 << 64) - 1, 2, errno.EINVAL),
    (CMD_READ, 0, 0, MAX_PAYLOAD + 1, errno.EINVAL),
    (CMD_READ, CMD_FLAG_FAST_ZERO, 0, 1, errno.EINVAL),
    (CMD_READ, 0x8000, 0, 1, errno.EINVAL),
    (CMD_WRITE_ZEROES, 0, SIZE, 1, errno.ENOSPC),
    (CMD_WRITE_ZEROES, 0, 0, (1 << 32) - 1, errno.ENOSPC),
    (CMD_WRITE_ZEROES, CMD_FLAG_DF, 0, 1, errno.EINVAL),
    (CMD_TRIM, 0, SIZE - 1, 2, errno.EINVAL),
    (CMD_CACHE, 0, SIZE, 1, errno.EINVAL),
    (CMD_BLOCK_STATUS, 0, 0, 512, errno.EINVAL),
    (CMD_BLOCK_STATUS, 0, 0, 0, errno.EINVAL),
    (CMD_RESIZE, 0, 0, 0, errno.EINVAL),
    (99, 0, 0, 0, errno.EINVAL),
]


@pytest.mark.parametrize("mode", [Mode.SIMPLE, Mode.STRUCTURED])
@pytest.mark.parametrize(("command", "flags", "offset", "length", "error"), WRONG)
async def test_wrong_requests(
    path: str, mode: Mode, command: int, flags: int, offset: int, length: int, error: int
) -> None:
    script = Script(SIZE, content=CONTENT)
    async with serving(script, path, mode=mode) as client:
        client.send(command, offset, length, flags=flags, cookie=0x0123456789ABCDEF)
        reply = await client.reply()
        assert (reply.cookie, reply.error, reply.done) == (0x0123456789ABCDEF, error, True)
        assert script.calls("pwritev") == script.calls("pwrite_zeroes") == script.calls("pdiscard") == []
        assert (await client.ask(CMD_READ, 0, 1)).error == 0  # it goes on


async def test_a_wrong_write_is_refused_behind_its_data(path: str) -> None:
    script = Script(SIZE, content=CONTENT)
    async with serving(script, path) as client:
        assert (await client.ask(CMD_WRITE, SIZE - 1, data=b"xy")).error == errno.ENOSPC
        assert (await client.ask(CMD_WRITE, 0, data=bytes(200_000), flags=0x40)).error == errno.EINVAL
        assert (await client.ask(CMD_FLUSH)).error == 0
    assert script.content == CONTENT


@pytest.mark.parametrize("how", [{"read_only": True}, {"unwritable": True}])
async def test_a_read_only_export(path: str, how: dict[str, bool]) -> None:
    script = Script(SIZE, content=CONTENT)
    async with serving(script, path, **how) as client:
        assert (await client.ask(CMD_WRITE, 0, data=b"x")).error == errno.EPERM
        assert (await client.ask(CMD_WRITE_ZEROES, 0, 512)).error in (errno.EPERM, errno.EINVAL)
        assert (await client.ask(CMD_TRIM, 0, 512)).error in (errno.EPERM, errno.EINVAL)
        assert (await client.ask(CMD_FLUSH)).error == 0
    assert script.content == CONTENT
    assert not script.calls("pwritev") + script.calls("pwrite_zeroes") + script.calls("pdiscard")


@pytest.mark.parametrize(
    "stream",
    [bytes(28), bytes.fromhex("25609513") + bytes(2) + (1).to_bytes(2, "big") + bytes(16) + b"\xff" * 4],
    ids=["magic", "payload of 4 GiB"],
)
async def test_what_ends_the_connection(path: str, stream: bytes) -> None:
    async with serving(Script(SIZE), path) as client:
        client.writer.write(stream)
        assert await client.at_end()


async def test_flags_reach_the_driver(path: str) -> None:
    script = Script(
        SIZE,
        attributes={
            "supported_write_flags": REQ_FUA,
            "supported_zero_flags": REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK,
        },
    )
    async with serving(script, path) as client:
        for flags in (0, CMD_FLAG_FUA):
            assert (await client.ask(CMD_WRITE, 0, data=bytes(512), flags=flags)).error == 0
        for flags in (0, CMD_FLAG_NO_HOLE, CMD_FLAG_FAST_ZERO | CMD_FLAG_NO_HOLE, CMD_FLAG_FUA | CMD_FLAG_NO_HOLE):
            assert (await client.ask(CMD_WRITE_ZEROES, 0, 512, flags=flags)).error == 0
        assert (await client.ask(CMD_TRIM, 512, 512)).error == 0
    assert [call.flags for call in script.calls("pwritev")] == [0, REQ_FUA]
    assert [call.flags for call in script.calls("pwrite_zeroes")] == [REQ_MAY_UNMAP, 0, REQ_NO_FALLBACK, 0]
    assert [call.verb for call in script.log if call.verb in ("flush", "pdiscard")][:2] == [
        "flush",
        "pdiscard",
    ]  # the FUA
    assert [call.where for call in script.calls("pdiscard")] == [(512, 512)]


async def test_zeroes_that_are_not_fast(path: str) -> None:
    async with serving(Script(SIZE, lacks=("extents", "pwrite_zeroes")), path) as client:
        assert (await client.ask(CMD_WRITE_ZEROES, 0, 512, flags=CMD_FLAG_FAST_ZERO)).error == errno.ENOTSUP
        assert (await client.ask(CMD_WRITE_ZEROES, 0, 512)).error == 0


@pytest.mark.parametrize(
    ("failed", "told"),
    [(errno.EIO, errno.EIO), (errno.ENOSPC, errno.ENOSPC), (errno.EDQUOT, errno.ENOSPC), (errno.ENXIO, errno.EIO)],
)
async def test_errors_of_the_disk(path: str, failed: int, told: int) -> None:
    script = Script(SIZE)
    for verb in ("preadv", "pwritev"):
        script.fail(verb, OSError(failed, "a name that nobody should see"))
    async with serving(script, path) as client:
        for command, data in ((CMD_READ, b""), (CMD_WRITE, b"x" * 512)):
            client.send(command, 0, 512, data=data)
            reply = await client.reply()
            assert reply.error == told
            assert b"nobody" not in reply.data


async def test_replies_come_in_any_order(path: str) -> None:
    script = Script(SIZE, content=CONTENT)
    script.hold("preadv")
    async with serving(script, path) as client:
        for cookie in range(4):
            client.send(CMD_READ, cookie * 512, 512, cookie=cookie)
        client.send(CMD_WRITE, 8192, data=b"x" * 512, cookie=9)
        assert (await client.reply()).cookie == 9
        await until(lambda: len(script.held) == 4)
        held = {call.offset // 512: call for call in script.held}
        for cookie in (2, 0, 3, 1):
            script.release(held[cookie])
            reply = await client.reply()
            assert reply.cookie == cookie
            assert reply.data[8:] == CONTENT[cookie * 512 : cookie * 512 + 512]


async def test_a_part_of_a_disk(path: str) -> None:
    script = Script(SIZE, content=CONTENT)
    async with serving(script, path, offset=1000, size=2000) as client:
        assert client.size == 2000
        assert (await client.ask(CMD_READ, 5, 10)).data[8:] == CONTENT[1005:1015]
        assert (await client.ask(CMD_READ, 1999, 2)).error == errno.EINVAL
        assert (await client.ask(CMD_WRITE, 1999, data=b"xy")).error == errno.ENOSPC
        assert (await client.ask(CMD_WRITE, 1999, data=b"x")).error == 0
        assert (await client.ask(CMD_CACHE, 0, 2000)).error == 0
    assert script.content[2999] == ord("x")


def _changes(mode: Mode) -> list[bytes]:
    """A read, a write, a flush."""
    return [
        pack_request(mode, CMD_READ, 0, 1, 0, 8),
        pack_request(mode, CMD_WRITE, 0, 2, 0, 16) + b"y" * 16,
        pack_request(mode, CMD_FLUSH, 0, 3, 0, 0),
    ]


@asynccontextmanager
async def cutting(
    address: str, path: str
) -> AsyncIterator[tuple[Script, Callable[[Mode], AbstractAsyncContextManager[RawClient]]]]:
    """A disk and its server; what opens it for a client that then goes, and waits until the server is rid of it."""
    script = Script(SIZE)
    where: str | tuple[str, int] = path if address == "unix" else ("127.0.0.1", 0)
    async with opened(script, writable=True) as disk, await serve(disk, where) as server:
        place = path if address == "unix" else server.sockets[0].getsockname()

        @asynccontextmanager
        async def client_of(mode: Mode) -> AsyncIterator[RawClient]:
            script.content[:] = bytes(SIZE)
            async with connected(place) as client:
                yield await client.open(mode=mode)
            while server.connections:
                await asyncio.wait([connection.gone for connection in server.connections])
            assert server.resources.budget.held == 0

        yield script, client_of
        assert_idle(disk)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("address", ["unix", "tcp"])
async def test_cut_at_every_byte_of_the_requests(path: str, address: str, mode: Mode) -> None:
    """What was received whole is done, the rest never happened, and the next client finds everything in order."""
    read, write, flush = _changes(mode)
    stream = read + write + flush
    async with cutting(address, path) as (script, client_of):
        for at in range(len(stream) + 1):
            async with client_of(mode) as client:
                client.writer.write(stream[:at])
            assert script.content[:16] == (b"y" * 16 if at >= len(read + write) else bytes(16))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("address", ["unix", "tcp"])
async def test_cut_at_every_byte_of_the_replies(path: str, address: str, mode: Mode) -> None:
    """The client goes after so many bytes of what it is sent: everything that it asked is done nevertheless."""
    nbytes = {Mode.SIMPLE: 3 * 16 + 8, Mode.STRUCTURED: 28 + 8 + 2 * 16, Mode.EXTENDED: 40 + 8 + 2 * 32}[mode]
    async with cutting(address, path) as (script, client_of):
        for at in range(nbytes + 1):
            async with client_of(mode) as client:
                client.writer.write(b"".join(_changes(mode)))
                assert len(await client.reader.readexactly(at)) == at
            assert script.content[:16] == b"y" * 16


# N7: status

RUNS = [(DATA, 4096), (ZERO, 4096), (DATA, 8192), (ZERO, SIZE - 16384)]


def extents(reply: bytes, wide: bool = False) -> list[tuple[int, int]]:
    payload = reply[8:] if wide else reply[4:]
    numbers = unpack(f">{len(payload) // (8 if wide else 4)}{'Q' if wide else 'I'}", payload)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@pytest.mark.parametrize("mode", [Mode.STRUCTURED, Mode.EXTENDED])
async def test_status(path: str, mode: Mode) -> None:
    names = ("base:allocation", "qemu:allocation-depth")
    async with serving(Script(SIZE, RUNS), path, mode=mode, contexts=names, allocation_depth=True) as client:
        client.send(CMD_BLOCK_STATUS, 1024, SIZE - 1024)
        found = {}
        while True:
            reply = await client.reply()
            assert reply.kind in (REPLY_TYPE_BLOCK_STATUS, 6)
            found[int.from_bytes(reply.data[:4], "big")] = extents(reply.data, mode is Mode.EXTENDED)
            if reply.done:
                break
        assert found == {
            client.contexts[names[0]]: [(3072, 0), (4096, 3), (8192, 0), (SIZE - 16384, 3)],
            client.contexts[names[1]]: [(SIZE - 1024, 1)],
        }
        client.send(CMD_BLOCK_STATUS, 1024, 2048, flags=CMD_FLAG_REQ_ONE)
        assert extents((await client.reply()).data, mode is Mode.EXTENDED) == [(2048, 0)]
        await client.reply()
        client.send(CMD_BLOCK_STATUS, 0, SIZE, flags=CMD_FLAG_REQ_ONE)
        assert extents((await client.reply()).data, mode is Mode.EXTENDED) == [(4096, 0)]
        await client.reply()


async def test_no_more_runs_than_allowed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioblock.exports.nbd.session.MAX_RUNS", 3)
    many = Script(SIZE, [((DATA, ZERO)[number % 2], 512) for number in range(SIZE // 512)])
    async with serving(many, path, contexts=("base:allocation",)) as client:
        client.send(CMD_BLOCK_STATUS, 0, SIZE)
        assert extents((await client.reply()).data) == [(512, 0), (512, 3), (512, 0)]


async def test_others_are_served_while_a_long_answer_is_made(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioblock.blockio.extents.RUNS_A_BATCH", 16)
    many = Script(SIZE, [((DATA, ZERO)[number % 2], 256) for number in range(SIZE // 256)])
    async with opened(many, writable=True) as disk:
        async with await serve(disk, path), connected(path) as first, connected(path) as second:
            await first.open(contexts=("base:allocation",))
            await second.open()
            first.send(CMD_BLOCK_STATUS, 0, SIZE)
            answer = asyncio.create_task(first.reply())
            turns = 0
            while not answer.done():
                await second.ask(CMD_FLUSH)
                turns += 1
            assert turns > 2
            assert len(extents(answer.result().data)) == SIZE // 256


async def test_goodbye_waits_for_what_was_asked(path: str) -> None:
    script = Script(SIZE, content=CONTENT)
    script.hold("preadv")
    async with serving(script, path) as client:
        client.send(CMD_READ, 0, 512, cookie=7)
        client.send(CMD_DISC)
        client.send(CMD_WRITE, 0, data=b"x" * 512)  # nobody listens any more
        await until(lambda: script.held)
        script.release()
        reply = await client.reply()
        assert (reply.cookie, reply.kind) == (7, REPLY_TYPE_OFFSET_DATA)
        assert await client.at_end()
    assert script.content == CONTENT


# -- sparse reads --------------------------------------------------------------------------------------------------

SPARSE = 1 << 20
HALVES = [(DATA, 65536), (ZERO, 65536)] * 8


async def chunks_of(client: RawClient, offset: int, nbytes: int, flags: int = 0) -> list[tuple[str, int, int]]:
    """What a read is answered with: kind, offset, length. Together they are the range, once."""
    client.send(CMD_READ, offset, nbytes, flags=flags)
    found: list[tuple[str, int, int]] = []
    done = False
    while not done:
        chunk = await client.reply()
        assert not chunk.error
        done = chunk.done
        if chunk.kind == REPLY_TYPE_OFFSET_HOLE:
            found.append(("hole", *unpack(">QI", chunk.data)))
        else:
            assert chunk.kind == REPLY_TYPE_OFFSET_DATA
            found.append(("data", *unpack(">Q", chunk.data[:8]), len(chunk.data) - 8))
    at = offset
    for _, start, length in found:
        assert start == at
        at += length
    assert at == offset + nbytes
    return found


@pytest.mark.parametrize("mode", [Mode.STRUCTURED, Mode.EXTENDED])
async def test_zeroes_in_long_reads_are_not_sent(path: str, mode: Mode) -> None:
    async with serving(Script(SPARSE, runs=HALVES), path, mode=mode) as client:
        assert await chunks_of(client, 32768, 131072) == [
            ("data", 32768, 32768),
            ("hole", 65536, 65536),
            ("data", 131072, 32768),
        ]
        assert await chunks_of(client, 65536, 65536) == [("hole", 65536, 65536)]
        assert len(await chunks_of(client, 0, SPARSE)) == 16


async def test_a_client_that_wants_one_chunk_gets_the_zeroes(path: str) -> None:
    async with serving(Script(SPARSE, runs=HALVES), path) as client:
        assert await chunks_of(client, 0, SPARSE, CMD_FLAG_DF) == [("data", 0, SPARSE)]


async def test_many_small_runs_are_not_all_looked_at(path: str) -> None:
    async with serving(Script(SPARSE, runs=[(DATA, 4096), (ZERO, 4096)] * 128), path) as client:
        found = await chunks_of(client, 0, SPARSE)
        assert len(found) == 33
        assert found[-1] == ("data", 32 * 4096, SPARSE - 32 * 4096)


async def test_a_long_read_that_fails_in_the_middle_is_one_error(path: str) -> None:
    script = Script(SPARSE, runs=HALVES)
    script.fail("preadv", OSError(errno.EIO, "gone"), number=2)
    async with serving(script, path) as client:
        client.send(CMD_READ, 0, SPARSE)
        assert (await client.reply()).error == errno.EIO
        assert (await client.ask(CMD_FLUSH)).error == 0
