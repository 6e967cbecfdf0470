"""Links: the connections to one export, as one thing that requests go through.

A request goes to the connection with the fewest in flight. When connections are lost:

- what only reads is sent again, over another connection or a new one; for `reconnect_delay` seconds, or once;
- what changes is sent again only with a `reconnect_delay`, whose user wants it so: an old write that the server has
  not forgotten may come after a newer one;
- without, it fails with EIO, and the next request connects anew. What was written and not flushed may be lost then, if
  the server was; so the next flush fails, too.

A server that breaks the protocol is not asked the same again.
"""

import asyncio
import errno
import os
import time
from collections.abc import Callable
from typing import Final

from aioblock.base.errors import NbdError, RemoteProtocolError
from aioblock.drivers.protocols.nbd.connecting import Endpoint, connect
from aioblock.drivers.protocols.nbd.connection import Connection, Disconnected
from aioblock.nbd.constants import CMD_FLUSH, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, FLAG_CAN_MULTI_CONN, FLAG_READ_ONLY
from aioblock.nbd.export import ExportInfo
from aioblock.nbd.replies import Reply

__all__ = ["Links"]

_MAX_REPLAYS: Final = 10
"""How often a request is sent: one that ends every connection is not sent for ever."""
_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_CHANGING: Final = frozenset((CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES))


class Links:
    """The connections to one export; there is one at least when it is made."""

    def __init__(self, endpoint: Endpoint, first: Connection, *, wanted: int = 1, reconnect_delay: float = 0.0) -> None:
        """`wanted`: how many connections to have where the server lets several work together."""
        self.info: ExportInfo = first.handshake.info
        self.contexts = first.handshake.contexts
        self.mode = first.handshake.mode
        self.wanted = wanted if self.info.flags & FLAG_CAN_MULTI_CONN else 1
        self._endpoint = endpoint
        self._reconnect_delay = reconnect_delay
        self._open = [first]
        self._connecting: asyncio.Task[None] | None = None
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends when a connection has come, or nobody tries any more."""
        self._since = 0.0
        """When the last connection was lost."""
        self._written = self._flushed = 0
        """How many writes were done, and how many of them a flush has covered."""
        self._lost_writes = False
        """Writes that no flush has covered may be lost, and nobody was told yet."""
        self._closed = False

    def __repr__(self) -> str:
        return f"<Links {self._endpoint.address} {self._open!r}>"

    @property
    def in_flight(self) -> int:
        """How many replies are awaited."""
        return sum(connection.in_flight for connection in self._open)

    async def open_all(self) -> None:
        """Make all connections that are wanted. Raises: OSError, NbdError; those that are open stay."""
        while len(self._open) < self.wanted:
            self._open.append(await self._connect())

    async def close(self) -> None:
        """Close every connection. What is in flight fails."""
        self._closed = True
        task = self._connecting
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        connections, self._open = self._open, []
        await asyncio.gather(*(connection.close() for connection in connections))

    # -- requests ----------------------------------------------------------------------------------------------------

    async def request(
        self,
        make_reply: Callable[[], Reply],
        command: int,
        flags: int = 0,
        offset: int = 0,
        length: int = 0,
        data: memoryview | None = None,
    ) -> Reply:
        """Send a request and await its reply; again, where it may be, when the connection is lost meanwhile.

        Cancelled: the reply is dropped when it comes. Raises: OSError.
        """
        for attempt in range(_MAX_REPLAYS):
            connection = await self._pick()
            if data is not None:
                while (waiter := connection.writable()) is not None:
                    await asyncio.shield(waiter)
            reply = make_reply()
            try:
                await connection.submit(reply, command, flags, offset, length, data)
            except asyncio.CancelledError:
                connection.abandon(reply)
                raise
            except Disconnected as why:
                self._forget(connection)
                if not why.replayable or not self._may_replay(command, attempt):
                    break
                continue
            except OSError as error:
                if error.errno == errno.ESHUTDOWN:  # the protocol wants its client to leave then
                    self._forget(connection)
                    await connection.close("the server is shutting down")
                raise
            if command in _CHANGING:
                self._written += 1
            return reply
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _may_replay(self, command: int, attempt: int) -> bool:
        if self._reconnect_delay:
            return True
        if command in _CHANGING or command == CMD_FLUSH:
            return False
        return bool(self._open) or not attempt

    async def flush(self, make_reply: Callable[[], Reply]) -> None:
        """Flush what was written through any connection. Raises: OSError, also where writes may be lost."""
        covered = self._written
        await self.request(make_reply, CMD_FLUSH)
        if self._lost_writes:
            self._lost_writes = False
            raise OSError(errno.EIO, "The connection was lost with data that was not flushed")
        self._flushed = max(self._flushed, covered)

    async def _pick(self) -> Connection:
        """The connection to use; waits for one where none is left. Raises: OSError."""
        while True:
            best: Connection | None = None
            for connection in self._open:
                if not connection.lost and (best is None or connection.in_flight < best.in_flight):
                    best = connection
            if best is not None:
                return best
            await self._await_connection()

    # -- connecting again --------------------------------------------------------------------------------------------

    def _forget(self, connection: Connection) -> None:
        """A connection is lost."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        if not self._open:
            self._since = time.monotonic()
            if self._written > self._flushed and not self._reconnect_delay:
                self._lost_writes = True
                self._flushed = self._written
        if self._reconnect_delay:
            self._begin()

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if self._news.done():
            self._news = loop.create_future()
        if self._connecting is None or self._connecting.done():
            self._connecting = loop.create_task(self._keep_connecting())

    async def _await_connection(self) -> None:
        """Wait until there is a connection. Raises: OSError where there is none in time."""
        for connection in list(self._open):
            self._forget(connection)  # lost while nothing was in flight
        left = self._since + self._reconnect_delay - time.monotonic()
        if self._closed or (self._reconnect_delay and left <= 0):
            await asyncio.sleep(0)  # whoever asks again and again leaves a turn to who connects
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._begin()
        await asyncio.wait((self._news,), timeout=left if self._reconnect_delay else None)
        if not self._open:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def _keep_connecting(self) -> None:
        """Connect until all connections are there; without a delay, once."""
        pause = _PAUSE
        try:
            while len(self._open) < self.wanted:
                try:
                    self._open.append(await self._connect())
                    self._tell()
                except (OSError, NbdError):
                    if not self._reconnect_delay:
                        return
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._tell()

    def _tell(self) -> None:
        if not self._news.done():
            self._news.set_result(None)

    async def _connect(self) -> Connection:
        """One more connection, to the very same export. Raises: OSError, NbdError."""
        if self._endpoint.address.kind == "fd":
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))  # the number may be another file's by now
        connection = await connect(self._endpoint)
        try:
            self._check(connection)
        except BaseException:
            connection.cut()
            await asyncio.shield(connection.closed)
            raise
        return connection

    def _check(self, connection: Connection) -> None:
        """The export must be able to take what the first one could. Raises: RemoteProtocolError."""
        handshake, old = connection.handshake, self.info
        new = handshake.info
        missing = (old.flags & ~FLAG_READ_ONLY) & ~new.flags or (new.flags & ~old.flags & FLAG_READ_ONLY)
        if (new.size, new.min_block, handshake.mode, handshake.contexts) != (
            old.size,
            old.min_block,
            self.mode,
            self.contexts,
        ) or missing:
            raise RemoteProtocolError("The export is not the same any more")
