"""The connection is cut at every byte of every message, in both directions: each request ends exactly once."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aioblock.base.errors import NbdError, NotSupported
from aioblock.drivers.protocols.memory import MemoryDisk
from aioblock.drivers.protocols.nbd import NbdDriver
from aioblock.drivers.protocols.nbd.address import Address
from aioblock.drivers.protocols.nbd.connection import Connection
from aioblock.nbd.constants import CMD_FLUSH, CMD_READ, CMD_WRITE, CMD_WRITE_ZEROES, Mode
from aioblock.nbd.packing import ReplyPacker
from tests.kit.fake_context import open_driver, read_from
from tests.kit.memory_wire import join
from tests.kit.nbd_server import FakeServer, Session

SIZE = 4096
NBYTES = 16
OLD, NEW = bytes(range(NBYTES)), bytes(range(100, 100 + NBYTES))
Outcome = dict[str, Any]


async def work(driver: NbdDriver) -> Outcome:
    """A few requests at the same time, then a flush; what each came to."""

    async def status() -> int:
        try:
            return (await driver.block_status(0, SIZE, True)).pnum
        except NotSupported:
            return SIZE  # simple replies have no status

    verbs = {
        "read": read_from(driver, 0, NBYTES),
        "write": driver.pwritev(64, memoryview(NEW), 0),
        "status": status(),
        "zeroes": driver.pwrite_zeroes(256, NBYTES, 0),
    }
    found = await asyncio.gather(*verbs.values(), return_exceptions=True)
    outcome = dict(zip(verbs, found, strict=True))
    try:
        outcome["flush"] = await driver.flush()
    except OSError as error:
        outcome["flush"] = error
    return outcome


def check(outcome: Outcome) -> None:
    for verb, result in outcome.items():
        if isinstance(result, BaseException):
            assert isinstance(result, OSError) and result.errno == errno.EIO, (verb, result)
        elif verb == "read":
            assert result == OLD
        elif verb == "status":
            assert result == SIZE


class Harness:
    """A server of which the first session is cut, and a client.

    `transport`: unix, tcp, or none: in memory, where the client sees the end of the file, or a reset.
    """

    def __init__(self, place: Path, mode: Mode, options: dict[str, Any], transport: str) -> None:
        self.disk = MemoryDisk(SIZE, OLD)
        self.server = FakeServer(self.disk, mode=mode, session=self._limit)
        self.options = options
        self.transport = transport
        self.path = str(place / "socket")
        self.limit: Callable[[Session], None] = lambda session: None
        self.first: Session | None = None
        self._patch = pytest.MonkeyPatch()

    def _limit(self, session: Session) -> None:
        if self.first is None:
            self.first = session
            self.limit(session)

    async def run(self, limit: Callable[[Session], None]) -> Outcome | Exception:
        self.limit, self.first = limit, None
        driver: NbdDriver | None = None
        try:
            driver = await open_driver(NbdDriver, self.options)
            outcome = await work(driver)
            outcome["after"] = await read_from(driver, 0, NBYTES)
        except (OSError, NbdError) as error:
            assert driver is None, "what comes behind a lost connection is served by a new one"
            return error
        finally:
            if driver is not None:
                assert driver.links.in_flight == 0
                await driver.close()
        assert outcome.pop("after") == OLD
        check(outcome)
        return outcome

    async def __aenter__(self) -> "Harness":
        if self.transport == "unix":
            await self.server.start(self.path)
        elif self.transport == "tcp":
            port = await self.server.start()
            self.options = {"host": "127.0.0.1", "port": str(port)} | self.options
            return self
        else:
            self._patch.setattr("aioblock.drivers.protocols.nbd.connecting.dial", self._dial)
        self.options = {"path": self.path} | self.options
        return self

    async def _dial(self, address: Address, protocol: Callable[[], Connection]) -> Connection:
        return join(protocol, self.server.accept(), breaks=self.transport == "reset")

    async def __aexit__(self, *error: object) -> None:
        self._patch.undo()
        await self.server.stop()


def _send(at: int) -> Callable[[Session], None]:
    return lambda session: setattr(session, "send_limit", at)


def _receive(at: int) -> Callable[[Session], None]:
    return lambda session: setattr(session, "receive_limit", at)


DIRECTIONS = {"sent": _send, "received": _receive}


async def cut(harness: Harness, direction: str, begin: int, step: int) -> None:
    """Cut at `begin`, and then at every `step` bytes; what must hold for each."""
    asyncio.get_running_loop().set_debug(False)  # thousands of connections: ten times as fast without tracebacks
    whole = await harness.run(lambda session: None)
    assert isinstance(whole, dict)
    assert not any(isinstance(result, BaseException) for result in whole.values())
    assert harness.first is not None
    total = getattr(harness.first, direction)
    opened = failed = 0
    for at in range(begin, total, step):
        harness.server.requests.clear()
        outcome = await harness.run(DIRECTIONS[direction](at))
        changes = [request.command for request in harness.server.requests if request.command != CMD_READ]
        assert changes.count(CMD_WRITE) <= 1 and changes.count(CMD_WRITE_ZEROES) <= 1, "nothing is done twice"
        if isinstance(outcome, Exception):
            failed += 1
            assert not opened, f"opening fails at {at}, but did not before"
            continue
        opened += 1
        if isinstance(outcome["write"], OSError):
            assert isinstance(outcome["flush"], OSError) or harness.server.opened > 1
    assert opened and failed, "some cuts are in the handshake, and some behind it"
    assert not harness.server.tasks or await _gone(harness.server)


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])  # no socket is used: the other loop would do the same
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("end", ["end of file", "reset"])
async def test_cut_at_every_byte(tmp_path: Path, mode: Mode, direction: str, end: str) -> None:
    async with Harness(tmp_path, mode, {}, end) as harness:
        await cut(harness, direction, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("transport", "begin"), [("unix", 0), ("tcp", 2)])
async def test_cut_on_real_sockets(tmp_path: Path, mode: Mode, transport: str, begin: int, direction: str) -> None:
    """At some bytes only: what differs from the test above is how the end of the connection is told."""
    async with Harness(tmp_path, mode, {}, transport) as harness:
        await cut(harness, direction, begin, 4)


async def _gone(server: FakeServer) -> bool:
    await asyncio.wait(server.tasks, timeout=5)
    return not server.tasks


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_with_a_reconnect_delay_nobody_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, direction: str
) -> None:
    monkeypatch.setattr("aioblock.drivers.protocols.nbd.driver._PAUSE", 0.0)
    asyncio.get_running_loop().set_debug(False)
    options = {"reconnect-delay": 20, "open-timeout": 20}
    async with Harness(tmp_path, mode, options, "reset") as harness:
        await harness.run(lambda session: None)
        assert harness.first is not None
        for at in range(getattr(harness.first, direction)):
            outcome = await harness.run(DIRECTIONS[direction](at))
            assert isinstance(outcome, dict)
            assert not [result for result in outcome.values() if isinstance(result, BaseException)], at
        assert bytes(harness.disk.content()[64 : 64 + NBYTES]) == NEW


async def test_reads_go_on_over_another_connection(tmp_path: Path) -> None:
    disk = MemoryDisk(SIZE, OLD)
    stuck: list[Session] = []
    reached = asyncio.Event()

    async def never() -> bytes:
        await asyncio.get_running_loop().create_future()
        return b""

    def script(session: Session, request: Any) -> Any:
        if not stuck or session in stuck:
            stuck[:] = [session]
            reached.set()
            return never()
        return None

    path = str(tmp_path / "socket")
    async with FakeServer(disk, script=script).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path, "connections": 2})
        assert server.opened == 2
        reads = [asyncio.ensure_future(read_from(driver, 0, NBYTES)) for _ in range(4)]
        await reached.wait()
        stuck[0].writer.transport.abort()
        assert await asyncio.gather(*reads) == [OLD] * 4
        await driver.close()


async def test_a_write_is_not_sent_again_unasked(tmp_path: Path) -> None:
    disk = MemoryDisk(SIZE, OLD)

    def script(session: Session, request: Any) -> Any:
        if request.command == CMD_WRITE:
            session.writer.transport.abort()
            return b""
        return None

    path = str(tmp_path / "socket")
    async with FakeServer(disk, script=script).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path, "connections": 2})
        with pytest.raises(OSError) as caught:
            await driver.pwritev(0, memoryview(NEW), 0)
        assert caught.value.errno == errno.EIO
        assert [request.command for request in server.requests] == [CMD_WRITE]
        await driver.close()


async def test_a_flush_behind_a_lost_connection_fails_once(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with FakeServer(MemoryDisk(SIZE, OLD)).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path})
        await driver.pwritev(0, memoryview(OLD), 0)
        await driver.flush()
        server.cut()
        assert await _gone(server)
        await driver.flush()  # all was flushed
        await driver.pwritev(0, memoryview(NEW), 0)
        server.cut()
        assert await _gone(server)
        with pytest.raises(OSError, match="not flushed"):
            await driver.flush()
        await driver.flush()
        assert await read_from(driver, 0, NBYTES) == NEW
        assert server.opened == 3 and server.requests[-2].command == CMD_FLUSH
        await driver.close()


async def test_a_server_that_breaks_the_protocol_is_not_asked_again(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    server = FakeServer(MemoryDisk(SIZE, OLD), script=lambda session, request: b"HTTP/1.1 400 Bad Request\r\n\r\n")
    async with server.serving(path):
        driver = await open_driver(NbdDriver, {"path": path, "reconnect-delay": 20, "connections": 2})
        results = await asyncio.gather(*(read_from(driver, 0, NBYTES) for _ in range(4)), return_exceptions=True)
        assert [type(result) for result in results] == [OSError] * 4
        assert len(server.requests) <= 4
        await driver.close()


async def test_a_request_that_ends_every_connection_is_given_up(tmp_path: Path) -> None:
    def script(session: Session, request: Any) -> Any:
        session.writer.transport.abort()
        return b""

    path = str(tmp_path / "socket")
    async with FakeServer(MemoryDisk(SIZE, OLD), script=script).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path, "reconnect-delay": 30})
        with pytest.raises(OSError):
            await read_from(driver, 0, NBYTES)
        assert len(server.requests) == 10
        await driver.close()


async def test_requests_that_fail_at_once_leave_others_a_turn(tmp_path: Path) -> None:
    """Such as who looks for the server meanwhile."""
    path, turns = str(tmp_path / "socket"), 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with FakeServer(MemoryDisk(SIZE, OLD)).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path, "reconnect-delay": 1})
        server.cut()
        assert await _gone(server)
    driver.links._reconnect_delay = 1e-9  # it is over at once
    counting = asyncio.ensure_future(count())
    for _ in range(10):
        with pytest.raises(OSError):
            await read_from(driver, 0, NBYTES)
    assert turns >= 10
    counting.cancel()
    await driver.close()


async def test_another_export_is_not_taken_for_the_same(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with FakeServer(MemoryDisk(SIZE, OLD)).serving(path) as server:
        driver = await open_driver(NbdDriver, {"path": path})
        server.cut()
        server.exports[""].size = 2 * SIZE
        with pytest.raises(OSError):
            await read_from(driver, 0, NBYTES)
        server.exports[""].size = SIZE
        assert await read_from(driver, 0, NBYTES) == OLD
        await driver.close()


async def test_a_server_that_shuts_down_is_left(tmp_path: Path) -> None:
    left = asyncio.Event()

    def script(session: Session, request: Any) -> Any:
        if server.opened == 1:
            return ReplyPacker(Mode.EXTENDED).error(request, 108, "good night")
        return None

    async def watched(session: Session) -> None:
        try:
            await Session.run(session)
        finally:
            left.set()

    def watch(session: Session) -> None:
        session.run = lambda: watched(session)  # type: ignore[method-assign]

    path = str(tmp_path / "socket")
    server = FakeServer(MemoryDisk(SIZE, OLD), script=script, session=watch)
    async with server.serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        with pytest.raises(OSError) as caught:
            await read_from(driver, 0, NBYTES)
        assert caught.value.errno == errno.ESHUTDOWN
        await left.wait()
        assert server.requests[-1].command == CMD_READ and driver.links.in_flight == 0
        assert await read_from(driver, 0, NBYTES) == OLD
        await driver.close()


async def test_the_first_connection_that_comes_is_used(tmp_path: Path) -> None:
    """Of several that are wanted; the others are never let in."""
    path = str(tmp_path / "socket")
    gate = asyncio.Event()

    async def held(session: Session) -> None:
        if server.opened >= 3:
            await gate.wait()
        await Session.run(session)

    def hold(session: Session) -> None:
        session.run = lambda: held(session)  # type: ignore[method-assign]

    server = FakeServer(MemoryDisk(SIZE, OLD), session=hold)
    async with server.serving(path):
        driver = await open_driver(NbdDriver, {"path": path, "connections": 2, "reconnect-delay": 30})
        server.cut()
        assert await _gone(server)
        assert await read_from(driver, 0, NBYTES) == OLD
        assert server.opened == 3
        await driver.close()
