"""One connection to an NBD server: a BufferedProtocol that shakes hands, then sends requests and fills replies.

What is received for a read goes straight into the caller's buffer. A request is on its way when `submit` returns; its
future ends once: with the reply, failed or not, or with the reason why the connection ended.

The transport may hold on to data that is being written: to the caller's own, where it is long, which must not change
before the reply. A server that refuses a write before it has all of the data drops the rest, whatever that is by then.
"""

import asyncio
import errno
import os
from typing import Final, cast

from aioblock.base.errors import NbdError
from aioblock.nbd.client_handshake import ClientEvent, ClientHandshake
from aioblock.nbd.constants import CMD_DISC
from aioblock.nbd.replies import ReadReply, Reply
from aioblock.nbd.reply_receiver import ReplyReceiver
from aioblock.nbd.requests import pack_request

__all__ = ["Connection", "Disconnected"]

_SEND_AHEAD: Final = 1 << 20
"""Bytes that may wait to be sent; with more, requests wait before they are copied."""
_COPIED: Final = 1 << 16
"""Data up to so many bytes are sent together with the head: a copy is cheaper than a system call."""
_GOODBYE_SECONDS: Final = 2.0


class Disconnected(Exception):
    """The connection ended before the reply came. `replayable`: it may be sent again, to a server that behaves."""

    def __init__(self, reason: str, *, replayable: bool) -> None:
        super().__init__(reason)
        self.replayable = replayable


class Connection(asyncio.BufferedProtocol):
    """A connection. Nobody else uses the transport."""

    def __init__(self, handshake: ClientHandshake) -> None:
        self.handshake = handshake
        self.closed = asyncio.get_running_loop().create_future()
        """Ends when the connection has."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._scratch = memoryview(bytearray(1 << 16))
        self._event: asyncio.Future[ClientEvent] = self._loop.create_future()
        self._receiver: ReplyReceiver | None = None
        self._cookie = 0
        self._lost: Disconnected | None = None
        self._error: NbdError | None = None
        self._paused: asyncio.Future[None] | None = None
        self._in_tls = False

    def __repr__(self) -> str:
        state = "lost" if self._lost else "open" if self._receiver else "shaking hands"
        return f"<Connection {state}, {self.in_flight} in flight>"

    @property
    def in_flight(self) -> int:
        """How many replies are awaited, those of cancelled requests too."""
        return len(self._receiver.pending) if self._receiver is not None else 0

    @property
    def lost(self) -> bool:
        """Whether no request can be sent any more."""
        return self._lost is not None

    # -- the handshake -----------------------------------------------------------------------------------------------

    async def next_event(self) -> ClientEvent:
        """Wait for what the handshake wants. Raises: NbdError; OSError where the connection ends."""
        event = await asyncio.shield(self._event)
        if not self._event.cancelled() and self._lost is None:
            self._event = self._loop.create_future()
        return event

    @property
    def transport(self) -> asyncio.Transport:
        """The transport that it has now."""
        assert self._transport is not None
        return self._transport

    def begin_tls(self) -> None:
        """From now on until `tls_started` nobody tells this protocol of the end of the connection."""
        self._in_tls = True

    def tls_started(self, transport: asyncio.Transport) -> None:
        """TLS is there, on a new transport. Raises: NbdError."""
        self._in_tls = False
        self._adopt(transport)
        self._shaken(self.handshake.tls_started())

    def _adopt(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=_SEND_AHEAD)

    def _shaken(self, events: list[ClientEvent]) -> None:
        self.transport.write(self.handshake.take_output())
        for event in events:
            if event is ClientEvent.READY:
                self._receiver = ReplyReceiver(self.handshake.mode)
                if leftover := self.handshake.leftover:
                    self._settle(self._receiver.feed(leftover))
            if not self._event.done():
                self._event.set_result(event)

    # -- requests ----------------------------------------------------------------------------------------------------

    def writable(self) -> "asyncio.Future[None] | None":
        """What to wait for before a request with data is sent; None: nothing."""
        return self._paused

    def submit(
        self, reply: Reply, command: int, flags: int, offset: int, length: int, data: memoryview | None = None
    ) -> "asyncio.Future[None]":
        """Send a request; the future ends with its reply. Raises: Disconnected."""
        if self._lost is not None or self._receiver is None:
            raise self._lost or Disconnected("not connected", replayable=True)
        self._cookie = cookie = (self._cookie + 1) & 0xFFFFFFFFFFFFFFFF
        waiter = reply.owner = self._loop.create_future()
        self._receiver.expect(cookie, reply)
        head = pack_request(self.handshake.mode, command, flags, cookie, offset, length)
        if data is None:
            self.transport.write(head)
        elif len(data) <= _COPIED:
            self.transport.write(b"".join((head, data)))
        else:
            self.transport.write(head)
            self.transport.write(data)
        return waiter

    def abandon(self, reply: Reply) -> None:
        """Nobody waits for it any more: the buffer of a read is not touched from now on."""
        if self._receiver is not None and isinstance(reply, ReadReply):
            self._receiver.abandon(reply)

    @staticmethod
    def _settle(done: list[Reply]) -> None:
        for reply in done:
            waiter: asyncio.Future[None] = reply.owner
            reply.owner = None
            if waiter.done():
                continue
            if reply.error is not None:
                waiter.set_exception(reply.error)
            else:
                waiter.set_result(None)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def close(self, why: str = "closed") -> None:
        """Say goodbye, and close. What is in flight may be replayed. Cancelled: it is cut off."""
        if self._transport is None:
            return
        if self._receiver is not None and self._lost is None:
            self._transport.write(pack_request(self.handshake.mode, CMD_DISC, 0, 0, 0, 0))
        self._lose(Disconnected(why, replayable=True))
        self._transport.close()
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await asyncio.shield(self.closed)
        except TimeoutError:
            pass
        finally:
            self._transport.abort()
        await asyncio.shield(self.closed)

    def cut(self, reason: str = "cut off") -> None:
        """End it without another word; what is in flight may be replayed."""
        self._lose(Disconnected(reason, replayable=True))
        if self._transport is not None:
            self._transport.abort()
        if self._in_tls:
            self._loop.call_soon(self.connection_lost, None)

    def _fail(self, error: NbdError) -> None:
        """The server does what no server may."""
        self._error = error
        self._lose(Disconnected(str(error), replayable=False))
        if self._transport is not None:
            self._transport.abort()

    def _lose(self, reason: Disconnected) -> None:
        """No request is sent from now on, and none that is in flight has a reply."""
        if self._lost is None:
            self._lost = reason
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)
        self._paused = None
        if not self._event.done():
            self._event.set_exception(
                self._error or ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            )
            self._event.exception()  # perhaps nobody waits for it
        if self._receiver is None:
            return
        pending = list(self._receiver.pending.values())
        self._receiver.pending.clear()
        for reply in pending:
            waiter, reply.owner = reply.owner, None
            if isinstance(reply, ReadReply):
                self._receiver.abandon(reply)
            if waiter is not None and not waiter.done():
                waiter.set_exception(Disconnected(str(self._lost), replayable=self._lost.replayable))

    # -- asyncio's calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._adopt(cast("asyncio.Transport", transport))  # uvloop's are no instances of it

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._receiver is None or self._lost is not None:
            return self._scratch
        return self._receiver.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._lost is not None:
            return
        try:
            if self._receiver is not None:
                self._settle(self._receiver.buffer_updated(nbytes))
            else:
                self._shaken(self.handshake.feed(self._scratch[:nbytes]))
        except NbdError as error:
            if self._receiver is not None:
                self._settle(self._receiver.finished)
            self._fail(error)

    def eof_received(self) -> bool:
        self._lose(Disconnected("the server has closed the connection", replayable=True))
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(Disconnected(str(error or "the connection is lost"), replayable=True))
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        if self._paused is None and self._lost is None:
            self._paused = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)
        self._paused = None
