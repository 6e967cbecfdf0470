"""Receiver: a stream cut into messages, in the form in which asyncio's BufferedProtocol brings it.

Heads of messages are parsed where they were received. A payload goes to the memory that its message names: what came
with the head is copied there, and where much of it is to come, `get_buffer` gives that very memory out, so that it is
received in place. `get_buffer` and `buffer_updated` follow each other with nothing in between: whoever takes the memory
away from a payload (`_drop_payload`) does it before or after both; and all receivers of one loop may share the memory
in which heads are received: between messages, none of them holds any.
"""

from abc import ABC, abstractmethod
from typing import Final, Generic, TypeVar

__all__ = ["SCRATCH", "Receiver"]

M = TypeVar("M")

SCRATCH: Final = 1 << 16
"""How many bytes are received by one system call, unless they belong to a long payload."""
_IN_PLACE: Final = 1 << 14
"""A payload of which less is missing is received together with what follows it: one system call for many messages."""


class Receiver(ABC, Generic[M]):
    """Bytes in, messages out. After an error it is of no use any more."""

    def __init__(self, scratch: bytearray | None = None) -> None:
        """`scratch`: memory of SCRATCH bytes that it may share with other receivers of the loop; None: its own."""
        self._buffer = scratch if scratch is not None else bytearray(SCRATCH)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._rest = b""
        """The part of a head that came last; what is in the scratch is lost when others have used it."""
        self._sink: memoryview | None = None
        """Where the payload goes that is being received; None while none is, or where it is dropped."""
        self._filled = 0
        self._missing = 0
        """How many bytes of the payload are to come."""
        self._in_place = False

    @property
    def at_boundary(self) -> bool:
        """Whether the stream may end here: no message has begun."""
        return not self._missing and not self._rest

    @property
    def incoming(self) -> int:
        """How long the payload is, in bytes, that is being received into memory; 0: none is."""
        return self._filled + self._missing if self._sink is not None else 0

    def get_buffer(self) -> memoryview:
        """Memory for what is received next; never empty. Say with `buffer_updated` how much came, if anything did."""
        if self._missing >= _IN_PLACE and self._sink is not None:
            self._in_place = True
            return self._sink[self._filled :]
        self._in_place = False
        self._start, self._end = 0, len(self._rest)
        if self._rest:
            self._buffer[: self._end] = self._rest
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> list[M]:
        """The messages that are complete with `nbytes` more. Raises: RemoteProtocolError."""
        found: list[M] = []
        if self._in_place:
            self._in_place = False
            self._filled += nbytes
            self._missing -= nbytes
            if not self._missing:
                self._sink = None
                self._payload_done(found)
            return found
        self._end += nbytes
        self._rest = b""
        while True:
            if self._missing:
                if not self._take():
                    return found
                self._payload_done(found)
            elif not self._head(found):
                if self._start < self._end:
                    self._rest = bytes(self._view[self._start : self._end])
                return found

    def feed(self, data: bytes | bytearray | memoryview) -> list[M]:
        """The messages that are complete with `data`, copied to where it belongs. Raises: RemoteProtocolError."""
        found: list[M] = []
        rest = memoryview(data)
        while rest:
            room = self.get_buffer()
            nbytes = min(len(room), len(rest))
            room[:nbytes] = rest[:nbytes]
            rest = rest[nbytes:]
            found += self.buffer_updated(nbytes)
        return found

    def _take(self) -> bool:
        """Move what was received to the payload; whether that is complete."""
        nbytes = min(self._end - self._start, self._missing)
        if self._sink is not None:
            self._sink[self._filled : self._filled + nbytes] = self._view[self._start : self._start + nbytes]
        self._start += nbytes
        self._filled += nbytes
        self._missing -= nbytes
        if self._missing:
            return False
        self._sink = None
        return True

    def _expect(self, sink: memoryview | None, nbytes: int) -> None:
        """The next `nbytes` (not 0) are a payload, and go to `sink`; None: they are dropped."""
        self._sink, self._filled, self._missing = sink, 0, nbytes

    def _drop_payload(self) -> None:
        """What is still to come of the payload is dropped."""
        self._sink = None

    @abstractmethod
    def _head(self, found: list[M]) -> bool:
        """Parse the head of a message at `_start`, up to `_end`, and move `_start` behind it; False: it is incomplete.

        A message without payload is put into `found`; for another one, `_expect` is called.
        """

    @abstractmethod
    def _payload_done(self, found: list[M]) -> None:
        """The payload is complete."""
