"""A connection in memory: what one end writes the other receives in a later turn of the loop, and no socket is used.

It ends as sockets do: in good order, then the other end sees the end of the file; or broken, with ECONNRESET. Which of
the two a client of a Unix or TCP server sees depends on what the server had left unread, so tests look at both.
"""

import asyncio
import errno
import os
from collections.abc import Callable
from typing import TypeVar

__all__ = ["MemoryTransport", "join"]

P = TypeVar("P", bound=asyncio.BaseProtocol)


class MemoryTransport(asyncio.Transport):
    """One end. Nothing is ever too much for it: it does not pause."""

    def __init__(self, protocol: asyncio.BaseProtocol, *, breaks: bool) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._breaks = breaks
        self._closing = self._ended = False
        self.peer: MemoryTransport | None = None

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._closing

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._closing and self.peer is not None:
            self._loop.call_soon(self.peer._receive, bytes(data))

    def close(self) -> None:
        self._close(self._breaks)

    def abort(self) -> None:
        self._close(True)

    def _close(self, breaks: bool) -> None:
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon(self._lose, None)
        if self.peer is not None:
            self._loop.call_soon(self.peer._peer_left, breaks)

    def _receive(self, data: bytes) -> None:
        if self._closing or self._ended:
            return
        if not isinstance(self._protocol, asyncio.BufferedProtocol):
            assert isinstance(self._protocol, asyncio.Protocol)
            self._protocol.data_received(data)
            return
        rest = memoryview(data)
        while rest and not self._closing:
            room = self._protocol.get_buffer(len(rest))
            nbytes = min(len(room), len(rest))
            room[:nbytes] = rest[:nbytes]
            rest = rest[nbytes:]
            self._protocol.buffer_updated(nbytes)

    def _peer_left(self, broken: bool) -> None:
        if self._closing:
            return
        self._closing = True
        if not broken:
            assert isinstance(self._protocol, asyncio.Protocol | asyncio.BufferedProtocol)
            self._protocol.eof_received()
        self._loop.call_soon(self._lose, ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _lose(self, error: Exception | None) -> None:
        if not self._ended:
            self._ended = True
            self._protocol.connection_lost(error)


def join(client: Callable[[], P], server: asyncio.BaseProtocol, *, breaks: bool) -> P:
    """Connect the two; `breaks`: the client sees a broken connection when the server closes it."""
    protocol = client()
    near, far = MemoryTransport(protocol, breaks=False), MemoryTransport(server, breaks=breaks)
    near.peer, far.peer = far, near
    server.connection_made(far)
    protocol.connection_made(near)
    return protocol
