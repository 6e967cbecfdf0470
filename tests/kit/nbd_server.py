"""An NBD server for tests: a MemoryDisk behind the codec of `aioblock.nbd`, that can be told to misbehave.

`FakeServer` runs in the loop of the test; `server_thread` runs one in a thread, for tests without a loop of their own.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from aioblock.base.errors import NbdError
from aioblock.drivers.protocols.memory import MemoryDisk
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_DISC,
    CMD_FLAG_REQ_ONE,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    FLAG_CAN_MULTI_CONN,
    FLAG_HAS_FLAGS,
    FLAG_SEND_FAST_ZERO,
    FLAG_SEND_FLUSH,
    FLAG_SEND_FUA,
    FLAG_SEND_TRIM,
    FLAG_SEND_WRITE_ZEROES,
    REP_ERR_UNKNOWN,
    STATE_HOLE,
    STATE_ZERO,
    Mode,
)
from aioblock.nbd.export import ExportInfo
from aioblock.nbd.packing import ReplyPacker, pack_extents
from aioblock.nbd.requests import Request, RequestReceiver, objection
from aioblock.nbd.server_handshake import (
    ContextsAsked,
    Ended,
    ExportAsked,
    ListAsked,
    Ready,
    ServerEvent,
    ServerHandshake,
)

__all__ = ["ALL_FLAGS", "FakeServer", "Session", "server_thread"]

ALL_FLAGS = (
    FLAG_HAS_FLAGS
    | FLAG_SEND_FLUSH
    | FLAG_SEND_FUA
    | FLAG_SEND_TRIM
    | FLAG_SEND_WRITE_ZEROES
    | FLAG_SEND_FAST_ZERO
    | FLAG_CAN_MULTI_CONN
)


class Session:
    """One client of a FakeServer."""

    def __init__(self, server: "FakeServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.ready: Ready | None = None
        self.sent = self.received = 0
        self.send_limit: int | None = None
        """Bytes after which the connection is cut; None: never."""
        self.receive_limit: int | None = None

    async def send(self, data: bytes) -> None:
        """Send, or as much as the limit lets, and cut then."""
        if self.send_limit is not None and self.sent + len(data) >= self.send_limit:
            data = data[: self.send_limit - self.sent]
            self.sent += len(data)
            self.writer.write(data)
            await self.writer.drain()
            raise EOFError
        self.sent += len(data)
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self) -> bytes:
        """What comes next; EOFError at the end, or at the limit."""
        room = 1 << 16
        if self.receive_limit is not None:
            room = min(room, self.receive_limit - self.received)
        data = await self.reader.read(room) if room > 0 else b""
        self.received += len(data)
        if not data:
            raise EOFError
        return data

    def _answer(self, handshake: ServerHandshake, event: ServerEvent) -> list[ServerEvent]:
        exports, name = self.server.exports, getattr(event, "name", getattr(event, "export", None))
        match event:
            case ListAsked():
                return handshake.list_exports((export.name, export.description) for export in exports.values())
            case ExportAsked() | ContextsAsked() if name not in exports:
                return handshake.refuse(REP_ERR_UNKNOWN, f"export '{name}' not present")
            case ExportAsked():
                return handshake.accept(exports[str(name)])
            case ContextsAsked(queries=queries, select=select):
                known = self.server.contexts
                wanted = known if not queries and not select else {n: i for n, i in known.items() if n in queries}
                return handshake.offer_contexts((id, context) for context, id in wanted.items())
            case Ready():
                self.ready = event
            case Ended():
                raise EOFError
        return []

    async def run(self) -> None:
        """Serve until the client leaves, or a limit is reached."""
        handshake = ServerHandshake(mode=self.server.mode)
        while not handshake.done:
            await self.send(handshake.take_output())
            events = handshake.feed(await self.receive())
            while events:
                events = events[1:] + self._answer(handshake, events[0])
        await self.send(handshake.take_output())
        assert self.ready is not None
        self.server.opened += 1
        receiver = RequestReceiver(self.ready.mode)
        requests = receiver.feed(handshake.leftover)
        while True:
            for request in requests:
                if request.command == CMD_DISC:
                    return
                self.server.requests.append(request)
                answer = self.server.script(self, request) if self.server.script is not None else None
                if asyncio.iscoroutine(answer):
                    answer = await answer
                await self.send(self.reply(request) if answer is None else answer)
            requests = receiver.feed(await self.receive())

    def reply(self, request: Request) -> bytes:
        """What an honest server answers, once it has done what was asked."""
        assert self.ready is not None
        packer, disk = ReplyPacker(self.ready.mode), self.server.disk
        error, words = objection(request, self.ready.export, self.ready.mode)
        if error:
            return packer.error(request, error, words)
        if request.command == CMD_READ:
            data = bytearray(request.length)
            disk.read(request.offset, memoryview(data))
            return packer.read_head(request, request.offset, request.length) + data
        if request.command == CMD_WRITE:
            assert request.data is not None
            disk.write(request.offset, request.data)
        elif request.command in (CMD_TRIM, CMD_WRITE_ZEROES):
            disk.zero(request.offset, request.length)
        elif request.command == CMD_BLOCK_STATUS:
            return self._status(packer, request)
        return packer.success(request)

    def _status(self, packer: ReplyPacker, request: Request) -> bytes:
        lengths, flags, at, end = [], [], request.offset, request.offset + request.length
        while at < end and not (lengths and request.flags & CMD_FLAG_REQ_ONE):
            data, stop = self.server.disk.run_at(at, end)
            lengths.append(stop - at)
            flags.append(0 if data else STATE_HOLE | STATE_ZERO)
            at = stop
        payload = pack_extents(lengths, flags, wide=packer.mode is Mode.EXTENDED)
        assert self.ready is not None
        asked = self.ready.contexts if request.contexts is None else request.contexts
        chunks = [packer.extents(request, id, payload, last=False) for id in asked]
        return b"".join(chunks) + packer.success(request)


Script = Callable[[Session, Request], Any]


class FakeServer:
    """Serves `disk` on a Unix domain socket, or on TCP at localhost."""

    def __init__(
        self,
        disk: MemoryDisk,
        *,
        mode: Mode = Mode.EXTENDED,
        flags: int = ALL_FLAGS,
        contexts: tuple[str, ...] = ("base:allocation",),
        min_block: int = 1,
        script: Script | None = None,
        session: Callable[[Session], None] | None = None,
    ) -> None:
        """`script` is asked about each request: bytes to send, a coroutine of such, or None: the honest reply.

        `session` is told of each new client, and may set its limits.
        """
        self.disk = disk
        self.mode = mode
        self.exports = {"": ExportInfo("", disk.size, flags, min_block)}
        self.contexts = {name: number for number, name in enumerate(contexts, 1)}
        self.script = script
        self.on_session = session
        self.requests: list[Request] = []
        self.opened = 0
        """How many clients have opened the export."""
        self.sessions: list[Session] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self, path: str | None = None) -> int:
        """Listen at `path`, or on TCP: the port."""
        if path is not None:
            self._server = await asyncio.start_unix_server(self._serve, path)
            return 0
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def accept(self) -> asyncio.StreamReaderProtocol:
        """The server's end of a connection that comes by other ways (`memory_wire`)."""
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._serve)

    async def stop(self) -> None:
        """Stop listening, and cut every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        while self.tasks:
            await asyncio.wait(self.tasks)

    def cut(self) -> None:
        """Cut every connection."""
        for session in self.sessions:
            session.writer.transport.abort()
        for task in self.tasks:
            task.cancel()

    @contextlib.asynccontextmanager
    async def serving(self, path: str) -> AsyncIterator["FakeServer"]:
        """Listen at `path` meanwhile."""
        await self.start(path)
        try:
            yield self
        finally:
            await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(self, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.sessions.append(session)
        if self.on_session is not None:
            self.on_session(session)
        try:
            await session.run()
        except (EOFError, OSError, NbdError, asyncio.CancelledError):
            pass
        finally:
            self.sessions.remove(session)
            self.tasks.discard(task)
            writer.close()


@contextlib.contextmanager
def server_thread(disk: MemoryDisk, path: str, **kwargs: Any) -> Iterator[FakeServer]:
    """A FakeServer at `path` in a thread of its own."""
    loop = asyncio.SelectorEventLoop()
    thread = threading.Thread(target=loop.run_forever, name="fake NBD server")
    thread.start()

    async def start() -> FakeServer:
        server = FakeServer(disk, **kwargs)
        await server.start(path)
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
