"""Connection: one client, from its first byte to its last: the handshake, TLS, then a Session.

Every phase has a deadline: the handshake as a whole, idleness, and a client that does not take what is sent to it.
"""

import asyncio
import logging
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from aioblock.base.errors import NbdError, message_of
from aioblock.core.authorization import distinguished_name
from aioblock.exports.nbd.client_info import NbdClientInfo
from aioblock.exports.nbd.session import Session
from aioblock.nbd.constants import REP_ERR_SHUTDOWN, REP_ERR_UNKNOWN
from aioblock.nbd.server_handshake import (
    ContextsAsked,
    Ended,
    ExportAsked,
    ListAsked,
    Ready,
    ServerEvent,
    ServerHandshake,
    TlsAsked,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioblock.exports.nbd.export import NbdExport
    from aioblock.exports.nbd.server import NbdServer

__all__ = ["Connection", "Phase"]

_log = logging.getLogger(__name__)
_PIECE: Final = 512
"""How much of a handshake is worked on at a time, in bytes: 32 options, 0.2 ms."""
_EARLY_BYTES: Final = 1 << 14


class Phase(Enum):
    """Where a connection stands."""

    HANDSHAKE = "handshake"
    TLS = "tls"
    SESSION = "session"
    CLOSED = "closed"


class Connection(asyncio.BufferedProtocol):
    """The protocol object of one client's transport."""

    def __init__(self, server: "NbdServer", number: int, peer: str) -> None:
        """`number`, `peer`: see NbdClientInfo."""
        self._server = server
        self.number = number
        self.peer = peer
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._transport: asyncio.Transport | None = None
        self._handshake = ServerHandshake(tls=server.tls_policy, mode=server.mode)
        self._session: Session | None = None
        self._door = server.resources.door
        self._piece = b""
        self._tls: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._early = bytearray()
        self._unsent = 0
        self._lost = False
        self._encrypted = False
        self.phase = Phase.HANDSHAKE
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when the transport is closed and no request is worked on any more."""

    def __repr__(self) -> str:
        return f"<Connection {self.phase.value} tasks={len(self._session.tasks) if self._session else 0}>"

    # -- the transport's calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        transport = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses
        self._transport = transport
        transport.set_write_buffer_limits(0)  # every byte that could not be sent is told: see Session.pause_writing
        self._deadline(self._server.limits.handshake_timeout, self._handshake_late)
        transport.write(self._handshake.take_output())
        if self._server.stopping:
            self.stop()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self._session is not None:
            return self._session.get_buffer()
        return memoryview(self._server.resources.scratch)[:_PIECE]

    def buffer_updated(self, nbytes: int) -> None:
        """So many came."""
        try:
            if self._session is not None:
                self._door.served = True
                self._session.received(nbytes)
            elif self.phase is Phase.TLS:  # TLS is there, and we have not been told yet
                self._early += memoryview(self._server.resources.scratch)[:nbytes]
                if len(self._early) > _EARLY_BYTES:
                    self._drop("The client sends on, without waiting for an answer")
            elif self.phase is Phase.HANDSHAKE:
                assert self._transport is not None
                self._transport.pause_reading()
                self._piece = bytes(memoryview(self._server.resources.scratch)[:nbytes])
                self._door.enter(self._work_on_piece)
        except NbdError as error:
            self._drop(str(error))

    def _work_on_piece(self) -> None:
        """Go on with the handshake, when it is its turn."""
        piece, self._piece = self._piece, b""
        if self.phase is not Phase.HANDSHAKE:
            return  # it was dropped since
        try:
            self._events(self._handshake.feed(piece))
        except NbdError as error:
            self._drop(str(error))
        self._receive_piece()

    def _receive_piece(self) -> None:
        """Receive more of the handshake, when what came is worked on and the client has taken the answers."""
        if self.phase is Phase.HANDSHAKE and not self._piece:
            assert self._transport is not None
            if not self._transport.get_write_buffer_size():
                self._transport.resume_reading()

    def eof_received(self) -> bool:
        """The client sends nothing more: what it has asked is still answered."""
        if self._session is None:
            self._drop("The client has gone")
            return False
        self._session.finish()
        return not self._encrypted  # TLS cannot be closed in one direction

    def pause_writing(self) -> None:
        """The client does not take what is sent."""
        if self._transport is not None and not self._transport.is_closing():  # one of TLS knows no size then
            self._unsent = self._transport.get_write_buffer_size()
        if self._session is not None:
            self._session.pause_writing()
        timeout = self._server.limits.send_timeout
        if timeout is not None:
            self._send_timer = self._loop.call_later(timeout, self._send_late, timeout)

    def resume_writing(self) -> None:
        """It has taken everything."""
        if self._send_timer is not None:
            self._send_timer.cancel()
        if self._session is not None:
            self._session.resume_writing()
        else:
            self._receive_piece()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is closed, by whomever. Called again: nothing happens."""
        if self._lost:
            return
        self._lost = True
        self.phase = Phase.CLOSED
        for timer in (self._timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        tasks: set[asyncio.Task[None]] = set()
        if self._session is not None:
            self._session.lost()
            tasks |= self._session.tasks
        if self._tls is not None:
            tasks.add(self._tls)
        self._when_gone(tasks)

    def _when_gone(self, tasks: "set[asyncio.Task[None]]") -> None:
        waiting = {task for task in tasks if not task.done()}
        if waiting:
            waiting.pop().add_done_callback(lambda _: self._when_gone(waiting))
        elif not self.gone.done():
            self.gone.set_result(None)
            self._server.connection_gone(self)

    # -- the handshake -----------------------------------------------------------------------------------------------

    def _events(self, events: list[ServerEvent]) -> None:
        """Do what the handshake asks for. Raises: NbdError."""
        transport, handshake, server = self._transport, self._handshake, self._server
        assert transport is not None
        queue = list(events)
        while queue:
            event = queue.pop(0)
            if isinstance(event, ListAsked):
                queue += handshake.list_exports(server.listed())
            elif isinstance(event, ExportAsked):
                info = server.info(event.name)
                if info is None:
                    queue += handshake.refuse(REP_ERR_UNKNOWN, f"Export '{event.name}' is not present")
                elif server.stopping:
                    queue += handshake.refuse(REP_ERR_SHUTDOWN, "The server is shutting down")
                else:
                    queue += handshake.accept(info)
            elif isinstance(event, ContextsAsked):
                export = server.find(event.export)
                if export is None:
                    queue += handshake.refuse(REP_ERR_UNKNOWN, f"Export '{event.export}' is not present")
                else:
                    queue += handshake.offer_contexts(export.offered(event.queries, select=event.select))
            elif isinstance(event, TlsAsked):
                self.phase = Phase.TLS
                transport.pause_reading()  # what follows belongs to TLS
                transport.write(handshake.take_output())
                self._tls = self._loop.create_task(self._start_tls(transport))
            elif isinstance(event, Ready):
                self._begin(event)
            elif isinstance(event, Ended):
                transport.write(handshake.take_output())
                self._close()
        if self.phase is Phase.HANDSHAKE and (output := handshake.take_output()):
            transport.write(output)

    async def _start_tls(self, transport: asyncio.Transport) -> None:
        assert self._server.ssl_context is not None
        try:
            encrypted = await self._loop.start_tls(
                transport,
                self,
                self._server.ssl_context,
                server_side=True,
                ssl_handshake_timeout=self._server.limits.handshake_timeout,
                ssl_shutdown_timeout=self._server.limits.stop_timeout,
            )
        except (OSError, EOFError) as error:  # SSLError is an OSError, a timeout is one too
            self._lost_in_tls(f"TLS handshake failed: {message_of(error)}")
            return
        if encrypted is None or encrypted.is_closing() or self.phase is Phase.CLOSED:
            self._lost_in_tls("TLS handshake failed: the client has gone")
            return
        self._transport, self._encrypted = encrypted, True
        encrypted.set_write_buffer_limits(1)  # as 0 of a socket: with 0, one of TLS pauses when it holds nothing
        if self._server.authorization is not None:
            name = distinguished_name(encrypted.get_extra_info("peercert") or {})
            if not self._server.authorization.allows(name):
                self._drop(f"TLS x509 authz check for {name} is denied")
                return
        self.phase = Phase.HANDSHAKE
        try:
            self._events(self._handshake.tls_started())
            early, self._early = self._early, bytearray()
            self._events(self._handshake.feed(early))
        except NbdError as error:
            self._drop(str(error))

    def _lost_in_tls(self, why: str) -> None:
        """Nobody tells the protocol of a connection that ends while TLS begins."""
        self._drop(why)
        self._loop.call_soon(self.connection_lost, None)

    def _begin(self, ready: Ready) -> None:
        """The handshake is over."""
        transport, server = self._transport, self._server
        export = server.find(ready.export.name)
        assert transport is not None
        assert export is not None  # it was accepted in this very turn
        self.phase = Phase.SESSION
        self._deadline(server.limits.idle_timeout, self._idle_late)
        transport.write(self._handshake.take_output())
        transport.resume_reading()
        self._session = Session(transport, export, ready, server.resources, self._close)
        server.session_begun(self)
        if self._transport is not None and self._transport.get_write_buffer_size():
            self._session.pause_writing()
        self._session.received_before(self._handshake.leftover)

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def _deadline(self, timeout: float | None, late: "Callable[[], None]") -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if timeout is None else self._loop.call_later(timeout, late)

    def _handshake_late(self) -> None:
        self._drop(f"The handshake took more than {self._server.limits.handshake_timeout} seconds")

    def _idle_late(self) -> None:
        session, timeout = self._session, self._server.limits.idle_timeout
        assert session is not None
        assert timeout is not None
        left = session.last_request + timeout - self._loop.time()
        if session.idle and left <= 0:
            self._drop(f"No request for {timeout} seconds")
        else:
            self._deadline(max(left, 1.0), self._idle_late)

    def _send_late(self, timeout: float) -> None:
        unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if unsent and unsent == self._unsent:
            self._drop(f"The client took nothing for {timeout} seconds")
            return
        self._unsent = unsent
        self._send_timer = self._loop.call_later(timeout, self._send_late, timeout)

    # -- end ---------------------------------------------------------------------------------------------------------

    def info(self) -> NbdClientInfo:
        """What the client does now, or did when it is gone."""
        session = self._session
        seconds = self._loop.time() - self._began
        if session is None:
            return NbdClientInfo(self.number, self.peer, self.phase.value, self._encrypted, seconds)
        return NbdClientInfo(
            self.number,
            self.peer,
            self.phase.value,
            self._encrypted,
            seconds,
            session.export_name,
            session.requests,
            session.bytes_read,
            session.bytes_written,
            session.in_flight,
            session.held,
        )

    @property
    def export(self) -> "NbdExport | None":
        """The export that the client has opened."""
        return self._session.export if self._session is not None else None

    def stop(self) -> None:
        """Finish what was accepted, then close."""
        if self._session is not None:
            self._session.finish()
        else:
            self._drop("The server stops")

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        self.phase = Phase.CLOSED
        if self._transport is not None:
            self._transport.close()

    def _drop(self, why: str) -> None:
        if self.phase is not Phase.CLOSED:
            kind = "option negotiation failed" if self._session is None else "connection dropped"
            _log.info("%s: %s", kind, why)
        self.phase = Phase.CLOSED
        self.abort()
