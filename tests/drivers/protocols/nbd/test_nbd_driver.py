"""The driver against a scripted server: what it asks, what it makes of answers, and what it leaves behind."""

import asyncio
import errno
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import NbdError, NotSupported, OptionError, UntrustedReference
from aioblock.base.flags import DATA, OFFSET_VALID, REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK, ZERO
from aioblock.core.images import Prealloc
from aioblock.drivers.protocols.memory import MemoryDisk
from aioblock.drivers.protocols.nbd import NbdDriver
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_FLAG_FAST_ZERO,
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLAG_REQ_ONE,
    CMD_FLUSH,
    CMD_READ,
    CMD_WRITE,
    FLAG_HAS_FLAGS,
    FLAG_READ_ONLY,
    Mode,
)
from aioblock.nbd.packing import ReplyPacker, pack_extents
from aioblock.nbd.requests import Request
from aioblock.nbd.server_handshake import ServerHandshake
from tests.kit.fake_context import open_driver, read_from
from tests.kit.nbd_server import ALL_FLAGS, FakeServer, Session

SIZE = 1 << 20
CONTENT = bytes(range(251)) * 1000


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk(SIZE, CONTENT)


def flags_of(server: FakeServer, command: int) -> list[int]:
    return [request.flags & ~0x20 for request in server.requests if request.command == command]


async def test_flags_reach_the_server(path: str, disk: MemoryDisk) -> None:
    async with FakeServer(disk).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path})
        assert driver.supported_write_flags == REQ_FUA
        assert driver.supported_zero_flags == REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK
        await driver.pwritev(0, memoryview(b"x"), REQ_FUA)
        await driver.pwritev(0, memoryview(b"x"), 0)
        assert flags_of(server, CMD_WRITE) == [CMD_FLAG_FUA, 0]
        await driver.pwrite_zeroes(0, 512, REQ_FUA)
        await driver.pwrite_zeroes(0, 512, REQ_MAY_UNMAP | REQ_NO_FALLBACK)
        assert flags_of(server, 6) == [CMD_FLAG_FUA | CMD_FLAG_NO_HOLE, CMD_FLAG_FAST_ZERO]
        await driver.close()


async def test_what_a_server_does_not_offer(path: str, disk: MemoryDisk) -> None:
    async with FakeServer(disk, flags=FLAG_HAS_FLAGS, mode=Mode.SIMPLE, min_block=512).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path, "connections": 4})
        assert (driver.supported_write_flags, driver.limits.request_alignment) == (0, 512)
        assert server.opened == 1, "it does not let several connections work together"
        for verb in (driver.pwrite_zeroes(0, 512, 0), driver.pdiscard(0, 512), driver.block_status(0, 512, True)):
            with pytest.raises(NotSupported):
                await verb
        await driver.flush()
        assert server.requests == []
        await driver.close()


async def test_lengths_do_not_change(path: str, disk: MemoryDisk) -> None:
    async with FakeServer(disk).serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        await driver.truncate(SIZE, exact=True, prealloc=Prealloc.OFF, flags=0)
        await driver.truncate(512, exact=False, prealloc=Prealloc.OFF, flags=0)
        with pytest.raises(NotSupported, match="Cannot resize NBD nodes"):
            await driver.truncate(512, exact=True, prealloc=Prealloc.OFF, flags=0)
        with pytest.raises(OSError, match="Cannot grow NBD nodes"):
            await driver.truncate(2 * SIZE, exact=False, prealloc=Prealloc.OFF, flags=0)
        await driver.close()


async def test_a_read_only_export(path: str, disk: MemoryDisk) -> None:
    async with FakeServer(disk, flags=ALL_FLAGS | FLAG_READ_ONLY).serving(path):
        with pytest.raises(OSError, match="request on write denied") as caught:
            await open_driver(NbdDriver, {"path": path})
        assert caught.value.errno == errno.EACCES
        driver = await open_driver(NbdDriver, {"path": path}, read_only=True)
        with pytest.raises(OSError, match="request on write denied"):
            await driver.reopen(read_only=False, direct=False, no_flush=False)
        assert await read_from(driver, 0, 512) == CONTENT[:512]
        await driver.close()


@pytest.mark.parametrize("mode", [Mode.STRUCTURED, Mode.EXTENDED])
async def test_status_in_one_batch(path: str, mode: Mode) -> None:
    disk = MemoryDisk(SIZE)
    for at in range(0, SIZE, 128 << 10):
        disk.write(at, memoryview(b"x"))
    async with FakeServer(disk, mode=mode).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path})
        batch = await driver.extents(0, SIZE, True)
        assert list(batch.lengths) == [64 << 10] * 16
        assert list(batch.flags) == [DATA | OFFSET_VALID, ZERO | OFFSET_VALID] * 8
        assert list(batch.map) == list(range(0, SIZE, 64 << 10))
        assert len(server.requests) == 1
        assert (await driver.block_status(64 << 10, 1 << 19, True)) == (ZERO | OFFSET_VALID, 64 << 10, 64 << 10, None)
        await driver.close()


async def test_status_of_a_bitmap(path: str, disk: MemoryDisk) -> None:
    name = "qemu:dirty-bitmap:b0"
    options = {"path": path, "x-dirty-bitmap": name}
    async with FakeServer(disk, contexts=("base:allocation", name)).serving(path):
        driver = await open_driver(NbdDriver, options)
        assert (await driver.block_status(0, SIZE, True)).flags & DATA
        await driver.close()
    async with FakeServer(disk).serving(path):
        with pytest.raises(OSError, match="requested x-dirty-bitmap qemu:dirty-bitmap:b0 not found"):
            await open_driver(NbdDriver, options)


async def test_an_extent_reaches_behind_what_was_asked(path: str, disk: MemoryDisk) -> None:
    def script(session: Session, request: Request) -> bytes | None:
        if request.command != CMD_BLOCK_STATUS:
            return None
        packer = ReplyPacker(Mode.STRUCTURED)
        return packer.extents(request, 1, pack_extents([(1 << 32) - 1], [3], wide=False), last=True)

    async with FakeServer(disk, mode=Mode.STRUCTURED, script=script).serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        assert (await driver.block_status(512, 1024, True)).pnum == 1024
        assert (await driver.extents(512, 1024, True)).nbytes == 1024
        await driver.close()


@pytest.mark.parametrize(
    ("lengths", "runs"),
    [
        ([1000, 24], [(512, ZERO)]),
        ([100, 924], [(512, DATA)]),
        ([512, 100, 412], [(512, ZERO)]),
        ([512, 600, 936], [(512, ZERO), (512, DATA)]),
        ([1024, 1024], [(1024, ZERO), (1024, DATA)]),
    ],
)
async def test_extents_that_end_within_a_block(
    path: str, disk: MemoryDisk, lengths: list[int], runs: list[tuple[int, int]]
) -> None:
    def script(session: Session, request: Request) -> bytes:
        packer = ReplyPacker(Mode.EXTENDED)
        payload = pack_extents(lengths, [3, 0, 3][: len(lengths)], wide=True)
        one = payload[:16] if request.flags & CMD_FLAG_REQ_ONE else payload
        return packer.extents(request, 1, one, last=True)

    async with FakeServer(disk, script=script, min_block=512).serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        batch = await driver.extents(0, 2048, True)
        assert list(zip(batch.lengths, batch.flags & (DATA | ZERO), strict=True)) == runs
        first = await driver.block_status(0, 2048, True)
        assert (first.pnum, first.flags & (DATA | ZERO)) == runs[0]
        await driver.close()


async def test_an_error_is_told_with_the_servers_words(path: str, disk: MemoryDisk) -> None:
    def script(session: Session, request: Request) -> bytes:
        return ReplyPacker(Mode.EXTENDED).error(request, 28, "the thin pool is full")

    async with FakeServer(disk, script=script).serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        with pytest.raises(OSError) as caught:
            await driver.pwritev(0, memoryview(b"x"), 0)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.__notes__ == ["The server says: the thin pool is full"]
        await driver.close()


async def test_zeroes_that_would_be_slow(path: str, disk: MemoryDisk) -> None:
    def script(session: Session, request: Request) -> bytes:
        return ReplyPacker(Mode.EXTENDED).error(request, 95)

    async with FakeServer(disk, script=script).serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        with pytest.raises(NotSupported):
            await driver.pwrite_zeroes(0, 512, REQ_NO_FALLBACK)
        await driver.close()


async def test_requests_are_all_in_flight_at_once(path: str, disk: MemoryDisk) -> None:
    """The server answers only when it has seen the last of them, in reverse order."""
    held: list[tuple[Session, Request]] = []

    async def script(session: Session, request: Request) -> bytes:
        held.append((session, request))
        if len(held) < 100:
            return b""
        return b"".join(session.reply(request) for session, request in reversed(held))

    async with FakeServer(disk, script=script).serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        found = await asyncio.gather(*(read_from(driver, number * 512, 512) for number in range(100)))
        assert b"".join(found) == CONTENT[: 100 * 512]
        assert driver.links.in_flight == 0
        await driver.close()


async def test_many_connections_share_the_work(path: str, disk: MemoryDisk) -> None:
    async with FakeServer(disk).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path, "connections": 4})
        assert server.opened == 4
        gate = asyncio.Barrier(4)

        async def script(session: Session, request: Request) -> bytes:
            await gate.wait()  # each session serves one at a time
            return session.reply(request)

        server.script = script
        assert await asyncio.gather(*(read_from(driver, 0, 512) for _ in range(8))) == [CONTENT[:512]] * 8
        await driver.close()


# Cancellation


class Gate:
    """Sends a reply in two parts, and waits in between."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    def __call__(self, session: Session, request: Request) -> Coroutine[Any, Any, bytes] | None:
        return self._send(session, request) if request.command == CMD_READ and not self.go.is_set() else None

    async def _send(self, session: Session, request: Request) -> bytes:
        data = session.reply(request)
        await session.send(data[: self.first])
        self.reached.set()
        await self.go.wait()
        return data[self.first :]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("first", [1, 16, 30, 41, 1000, 200_000])
async def test_a_cancelled_read_never_touches_the_buffer_again(
    path: str, disk: MemoryDisk, mode: Mode, first: int
) -> None:
    gate = Gate(first)
    async with FakeServer(disk, mode=mode, script=gate).serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        buffer = bytearray(250_000)
        read = asyncio.ensure_future(driver.preadv(0, memoryview(buffer), 0))
        await gate.reached.wait()
        for _ in range(3):
            await asyncio.sleep(0)  # so that some of it has come
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        buffer[:] = b"\xa5" * len(buffer)
        gate.go.set()
        assert await read_from(driver, 512, 512) == CONTENT[512:1024], "what comes behind is not disturbed"
        assert buffer == b"\xa5" * len(buffer)
        assert driver.links.in_flight == 0
        await driver.close()


async def _cancelled_at(step: int, begin: Callable[[], Coroutine[Any, Any, Any]]) -> bool:
    """Cancel a coroutine after so many turns of the loop; whether it was done by then."""
    task = asyncio.ensure_future(begin())
    for _ in range(step):
        if task.done():
            break
        await asyncio.sleep(0)
    task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(result, NbdDriver):
        await result.close()
        return True
    assert isinstance(result, asyncio.CancelledError), result
    return False


async def test_opening_is_cancelled_anywhere(path: str, disk: MemoryDisk) -> None:
    """Nothing is left behind: the fixtures look for tasks and descriptors."""
    async with FakeServer(disk).serving(path) as server:
        step = 0
        while not await _cancelled_at(step, lambda: open_driver(NbdDriver, {"path": path, "connections": 2})):
            step += 1
        assert step > 5
        while server.tasks:
            await asyncio.wait(server.tasks)


async def test_closing_does_not_wait_for_a_server_that_does_not(path: str, disk: MemoryDisk) -> None:
    gate = Gate(10)
    async with FakeServer(disk, script=gate).serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        read = asyncio.ensure_future(read_from(driver, 0, 512))
        await gate.reached.wait()
        await driver.close()
        with pytest.raises(OSError):
            await read


async def test_a_long_write_that_is_refused_at_once(path: str, disk: MemoryDisk) -> None:
    """The reply comes while most of the data waits to be sent; what follows is not disturbed."""

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(server, reader, writer)
        handshake = ServerHandshake(mode=Mode.SIMPLE)
        while not handshake.done:
            await session.send(handshake.take_output())
            events = handshake.feed(await session.receive())
            while events:
                events = events[1:] + session._answer(handshake, events[0])
        await session.send(handshake.take_output())
        packer, cookie = ReplyPacker(Mode.SIMPLE), int.from_bytes((await reader.readexactly(28))[8:16], "big")
        await session.send(packer.error(Request(CMD_WRITE, 0, cookie, 0, 0), 28))
        await refused.wait()
        await reader.readexactly(len(data))
        cookie = int.from_bytes((await reader.readexactly(28))[8:16], "big")
        await session.send(packer.success(Request(CMD_FLUSH, 0, cookie, 0, 0)))
        await reader.read()
        writer.close()

    server, refused, data = FakeServer(disk), asyncio.Event(), bytearray(b"a" * (8 << 20))
    listening = await asyncio.start_unix_server(early, path)
    driver = await open_driver(NbdDriver, {"path": path})
    with pytest.raises(OSError) as caught:
        await driver.pwritev(0, memoryview(data), 0)
    assert caught.value.errno == errno.ENOSPC
    data[:] = bytes(len(data))
    refused.set()
    await driver.flush()
    await driver.close()
    listening.close()


# Opening


async def test_a_refused_export(path: str, disk: MemoryDisk) -> None:
    async with FakeServer(disk).serving(path):
        with pytest.raises(NbdError, match="Requested export not available"):
            await open_driver(NbdDriver, {"path": path, "export": "x"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connections": 0}, "connections must be from 1 to 64"),
        ({"reconnect-delay": -1}, "expects a number of seconds"),
        ({"tls-hostname": "h"}, "tls-hostname can only be used with tls-creds"),
        ({"tls-creds": "t"}, "No TLS credentials with id 't'"),
    ],
)
async def test_options_that_make_no_sense(path: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        await open_driver(NbdDriver, {"path": path} | options)


async def test_nobody_listens(path: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"Failed to connect to '{path}': No such file or directory"):
        await open_driver(NbdDriver, {"path": path})
    with pytest.raises(ConnectionRefusedError, match=r"Failed to connect to '127\.0\.0\.1:1': Connection refused"):
        await open_driver(NbdDriver, {"host": "127.0.0.1", "port": "1"})


async def test_a_server_that_comes_late(path: str, disk: MemoryDisk) -> None:
    opening = asyncio.ensure_future(open_driver(NbdDriver, {"path": path, "open-timeout": 20}))
    await asyncio.sleep(0)
    async with FakeServer(disk).serving(path):
        driver = await opening
        assert await read_from(driver, 0, 10) == CONTENT[:10]
        await driver.close()


async def test_no_server_at_all(path: str) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, path)
    with pytest.raises(ConnectionResetError):
        await open_driver(NbdDriver, {"path": path})
    server.close()


# In a graph


async def test_names_in_a_graph(path: str, disk: MemoryDisk) -> None:
    async with FakeServer(disk).serving(path):
        for name in (f"nbd:unix:{path}", f"nbd+unix:///?socket={path}"):
            async with await aioblock.open(name, format="raw") as opened:
                assert opened.name == f"nbd+unix://?socket={path}"
                assert await opened.pread(0, 10) == CONTENT[:10]


async def test_a_name_inside_an_image_is_followed_only_if_trusted(path: str, disk: MemoryDisk, tmp_path: Path) -> None:
    image = str(tmp_path / "image.qcow2")
    name = f"nbd:unix:{path}"
    async with FakeServer(disk).serving(path) as server:
        options = {"size": SIZE, "backing_file": name, "backing_fmt": "raw"}
        await aioblock.create(image, "qcow2", options, trust=aioblock.TRUST_ALL)
        seen = server.opened
        with pytest.raises(UntrustedReference):
            await aioblock.open(image)
        assert server.opened == seen
        async with await aioblock.open(image, trust=aioblock.TRUST_ALL) as opened:
            assert await opened.pread(0, 10) == CONTENT[:10]


async def test_nothing_is_relative_to_an_export(path: str, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    (tmp_path / "base").write_bytes(CONTENT)
    await aioblock.create(str(image), "qcow2", {"size": SIZE, "backing_file": "base", "backing_fmt": "raw"})
    async with FakeServer(MemoryDisk(content=image.read_bytes())).serving(path):
        with pytest.raises(OptionError, match="Cannot generate a base directory for NBD nodes"):
            await aioblock.open(f"nbd:unix:{path}", trust=aioblock.TRUST_ALL)
        name = "json:" + json.dumps(
            {
                "driver": "qcow2",
                "file": {"driver": "nbd", "path": path},
                "backing": {"driver": "raw", "file": {"driver": "null-co"}},
            }
        )
        await (await aioblock.open(name)).close()
