"""The client's side of the transmission phase: the stream of a server, cut into replies.

    simple       32 magic  32 error  64 cookie                                    16 bytes; a read's data follows
    structured   32 magic  16 flags  16 type  64 cookie             32 length     20 bytes; the payload follows
    extended     32 magic  16 flags  16 type  64 cookie  64 offset  64 length     32 bytes; the payload follows

Whatever the server sends that no server may send is a RemoteProtocolError: the connection is of no use any more, and
all that is pending has failed. What was complete before it is done.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final

from aioblock.base.errors import LocalProtocolError, RemoteProtocolError
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_READ,
    COMMAND_NAMES,
    EXTENDED_REPLY_MAGIC,
    MAX_ERROR_CHUNK,
    MAX_EXTENTS,
    MAX_STRING,
    REPLY_FLAG_DONE,
    REPLY_TYPE_BLOCK_STATUS,
    REPLY_TYPE_BLOCK_STATUS_EXT,
    REPLY_TYPE_ERROR_OFFSET,
    REPLY_TYPE_IS_ERROR,
    REPLY_TYPE_NONE,
    REPLY_TYPE_OFFSET_DATA,
    REPLY_TYPE_OFFSET_HOLE,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Mode,
)
from aioblock.nbd.receiver import Receiver
from aioblock.nbd.replies import ReadReply, Reply

__all__ = ["ReplyReceiver"]

_SIMPLE: Final = Struct(">IIQ")
_STRUCTURED: Final = Struct(">IHHQI")
_EXTENDED: Final = Struct(">IHHQQQ")
_U64: Final = Struct(">Q")
_HOLE: Final = Struct(">QI")
_ERROR: Final = Struct(">IH")


class ReplyReceiver(Receiver[Reply]):
    """Fills the replies that are awaited; gives out those that are done, failed ones too."""

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self._mode = mode
        self.pending: dict[int, Reply] = {}
        """The replies that are awaited, by cookie, in the order of their requests."""
        self.finished: list[Reply] = []
        """Where `buffer_updated` raises: the replies that were complete before what no server may send."""
        self._current: Reply | None = None
        """Whose payload is being received."""
        self._last = False
        """It is the last of its reply."""
        self._collected: memoryview | None = None
        self._interpret: Callable[[Reply, memoryview], None] | None = None

    def buffer_updated(self, nbytes: int) -> list[Reply]:
        """The replies that are done with `nbytes` more. Raises: RemoteProtocolError; see `finished`."""
        self.finished = []
        return super().buffer_updated(nbytes)

    def expect(self, cookie: int, reply: Reply) -> None:
        """Await a reply. Raises: LocalProtocolError where the cookie is in use."""
        if cookie in self.pending:
            raise LocalProtocolError(f"The cookie {cookie} is in use")
        reply.cookie = cookie
        self.pending[cookie] = reply

    def abandon(self, reply: ReadReply) -> None:
        """Nobody waits for a read any more: its buffer is not touched from now on. Its cookie stays in use."""
        reply.abandon()
        if self._current is reply and self._collected is None:
            self._drop_payload()

    def _pending(self, cookie: int) -> Reply:
        try:
            return self.pending[cookie]
        except KeyError:
            raise RemoteProtocolError(f"A reply to {cookie:#x}, which was not asked") from None

    def _finish(self, reply: Reply, found: list[Reply]) -> None:
        del self.pending[reply.cookie]
        reply.finish()
        found.append(reply)
        self.finished = found

    def _head(self, found: list[Reply]) -> bool:
        have = self._end - self._start
        if have < _SIMPLE.size:
            return False
        magic, error, cookie = _SIMPLE.unpack_from(self._buffer, self._start)
        if magic == SIMPLE_REPLY_MAGIC and self._mode is not Mode.EXTENDED:
            self._start += _SIMPLE.size
            self._simple(self._pending(cookie), error, found)
            return True
        if magic == STRUCTURED_REPLY_MAGIC and self._mode is Mode.STRUCTURED:
            if have < _STRUCTURED.size:
                return False
            _, flags, kind, cookie, length = _STRUCTURED.unpack_from(self._buffer, self._start)
            reply, size = self._pending(cookie), _STRUCTURED.size
        elif magic == EXTENDED_REPLY_MAGIC and self._mode is Mode.EXTENDED:
            if have < _EXTENDED.size:
                return False
            _, flags, kind, cookie, offset, length = _EXTENDED.unpack_from(self._buffer, self._start)
            reply, size = self._pending(cookie), _EXTENDED.size
            if offset != reply.offset:
                raise RemoteProtocolError(f"A reply at {offset} to a request at {reply.offset}")
        else:
            raise RemoteProtocolError(f"Bad magic {magic:#010x} of a reply")
        if kind == REPLY_TYPE_OFFSET_DATA:
            if have < size + 8:
                return False
            if length < 9:
                raise RemoteProtocolError(f"A chunk of {length} bytes, too short for data")
            (at,) = _U64.unpack_from(self._buffer, self._start + size)
            self._start += size + 8
            reply.count_chunk()
            self._current, self._last = reply, bool(flags & REPLY_FLAG_DONE)
            self._expect(reply.place(at, length - 8), length - 8)
            return True
        if kind == REPLY_TYPE_OFFSET_HOLE and have < size + 12:
            return False
        self._start += size
        reply.count_chunk()
        self._chunk(reply, kind, length, bool(flags & REPLY_FLAG_DONE), found)
        return True

    def _simple(self, reply: Reply, error: int, found: list[Reply]) -> None:
        if reply.chunks:
            raise RemoteProtocolError("A simple reply behind chunks of the same reply")
        if self._mode is not Mode.SIMPLE and (
            reply.command == CMD_READ or (reply.command == CMD_BLOCK_STATUS and not error)
        ):
            raise RemoteProtocolError(f"A simple reply to {COMMAND_NAMES[reply.command]}")
        if error:
            reply.fail(error)
        elif reply.command == CMD_READ and reply.nbytes:
            self._current, self._last = reply, True
            self._expect(reply.place(reply.offset, reply.nbytes), reply.nbytes)
            return
        self._finish(reply, found)

    def _chunk(self, reply: Reply, kind: int, length: int, last: bool, found: list[Reply]) -> None:
        """A chunk other than data."""
        if kind & REPLY_TYPE_IS_ERROR:
            offset_too = 8 if kind == REPLY_TYPE_ERROR_OFFSET else 0
            if not 6 + offset_too <= length <= MAX_ERROR_CHUNK:
                raise RemoteProtocolError(f"An error chunk of {length} bytes")
            self._collect(reply, length, last, _take_offset_error if offset_too else _take_error)
        elif kind == REPLY_TYPE_OFFSET_HOLE:
            if length != _HOLE.size:
                raise RemoteProtocolError(f"A chunk of {length} bytes for a hole")
            offset, nbytes = _HOLE.unpack_from(self._buffer, self._start)
            if not nbytes:
                raise RemoteProtocolError("A hole of 0 bytes")
            self._start += length
            reply.hole(offset, nbytes)
            if last:
                self._finish(reply, found)
        elif kind == REPLY_TYPE_NONE:
            if length or not last:
                raise RemoteProtocolError("A chunk without content that has some, or is not the last")
            self._finish(reply, found)
        elif kind == REPLY_TYPE_BLOCK_STATUS and self._mode is Mode.STRUCTURED:
            if not 12 <= length <= 4 + 8 * MAX_EXTENTS or (length - 4) % 8:
                raise RemoteProtocolError(f"A reply to BLOCK_STATUS of {length} bytes")
            self._collect(reply, length, last, _take_extents)
        elif kind == REPLY_TYPE_BLOCK_STATUS_EXT and self._mode is Mode.EXTENDED:
            if not 24 <= length <= 8 + 16 * MAX_EXTENTS or (length - 8) % 16:
                raise RemoteProtocolError(f"A reply to BLOCK_STATUS of {length} bytes")
            self._collect(reply, length, last, _take_wide_extents)
        else:
            raise RemoteProtocolError(f"A chunk of unknown type {kind}")

    def _collect(self, reply: Reply, nbytes: int, last: bool, interpret: Callable[[Reply, memoryview], None]) -> None:
        if reply.command != CMD_BLOCK_STATUS and interpret in (_take_extents, _take_wide_extents):
            raise RemoteProtocolError(f"Extents in a reply to {COMMAND_NAMES.get(reply.command, reply.command)}")
        self._current, self._last = reply, last
        self._collected, self._interpret = memoryview(bytearray(nbytes)), interpret
        self._expect(self._collected, nbytes)

    def _payload_done(self, found: list[Reply]) -> None:
        reply, self._current = self._current, None
        assert reply is not None
        if self._collected is not None and self._interpret is not None:
            payload, self._collected = self._collected, None
            self._interpret(reply, payload)
        if self._last:
            self._finish(reply, found)


def _take_extents(reply: Reply, payload: memoryview) -> None:
    reply.add_extents(payload, wide=False)


def _take_wide_extents(reply: Reply, payload: memoryview) -> None:
    reply.add_extents(payload, wide=True)


def _take_error(reply: Reply, payload: memoryview) -> None:
    _add_error(reply, payload, len(payload) - _ERROR.size)


def _take_offset_error(reply: Reply, payload: memoryview) -> None:
    _add_error(reply, payload, len(payload) - _ERROR.size - 8)


def _add_error(reply: Reply, payload: memoryview, room: int) -> None:
    error, nbytes = _ERROR.unpack_from(payload)
    if not error:
        raise RemoteProtocolError("An error chunk without an error")
    if nbytes > min(room, MAX_STRING):
        raise RemoteProtocolError(f"An error chunk with a message of {nbytes} bytes, which has not room for it")
    words = bytes(payload[_ERROR.size : _ERROR.size + nbytes]).decode("utf-8", "replace")
    reply.fail(error, words)
