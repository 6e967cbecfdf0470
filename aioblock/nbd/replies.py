"""Replies as the client awaits them: each takes the parts that arrive, and says at the end whether it succeeded.

A read succeeds only if its chunks cover it exactly once. What is impossible in itself (a part outside the range, or
twice) breaks the protocol; a part that never came fails the one request.
"""

import errno
import os
import sys
from array import array
from bisect import bisect
from struct import Struct
from typing import Any, Final

from aioblock.base.buffers import ZEROES
from aioblock.base.errors import RemoteProtocolError
from aioblock.nbd.constants import CMD_BLOCK_STATUS, CMD_READ, COMMAND_NAMES, MAX_EXTENTS
from aioblock.nbd.errnos import from_wire

__all__ = ["Extents", "ReadReply", "Reply", "StatusReply"]

_CONTEXT: Final = Struct(">I")
_SWAP: Final = sys.byteorder == "little"


class Reply:
    """What is awaited for one request. Offset and length in bytes."""

    __slots__ = ("budget", "chunks", "command", "cookie", "done", "error", "nbytes", "offset", "owner")

    def __init__(self, command: int, offset: int = 0, nbytes: int = 0) -> None:
        self.command = command
        self.offset = offset
        self.nbytes = nbytes
        self.cookie = -1
        """Set when it is awaited."""
        self.budget = 64
        """How many chunks it may have."""
        self.chunks = 0
        self.done = False
        self.error: OSError | None = None
        """Why it failed; the first reason. Counts once it is `done`."""
        self.owner: Any = None
        """Whoever waits for it; not used here."""

    def __repr__(self) -> str:
        name = COMMAND_NAMES.get(self.command, self.command)
        state = ("failed" if self.error else "done") if self.done else "pending"
        return f"<{type(self).__name__} {name} {self.cookie} at {self.offset} of {self.nbytes}, {state}>"

    def fail(self, error: int, words: str = "") -> None:
        """The server reports an error of the protocol."""
        if self.error is None:
            code = from_wire(error)
            self.error = OSError(code, os.strerror(code))
            if words:
                self.error.add_note(f"The server says: {words}")

    def finish(self) -> None:
        """Nothing more comes."""
        self.done = True

    def count_chunk(self) -> None:
        """One more chunk has begun. Raises: RemoteProtocolError where it never ends."""
        self.chunks += 1
        if self.chunks > self.budget:
            raise RemoteProtocolError(f"A reply of more than {self.budget} chunks")

    # What only some replies may have; the others are as these say.

    def place(self, offset: int, nbytes: int) -> memoryview | None:
        """Where data of a read belongs; None: nowhere, it is dropped. Raises: RemoteProtocolError."""
        raise RemoteProtocolError(f"Data in a reply to {COMMAND_NAMES.get(self.command, self.command)}")

    def hole(self, offset: int, nbytes: int) -> None:
        """A part of a read is zeroes. Raises: RemoteProtocolError."""
        self.place(offset, nbytes)

    def add_extents(self, payload: memoryview, *, wide: bool) -> None:
        """The extents of one context. Raises: RemoteProtocolError."""
        raise RemoteProtocolError(f"Extents in a reply to {COMMAND_NAMES.get(self.command, self.command)}")


class ReadReply(Reply):
    """Fills a buffer."""

    __slots__ = ("_buffer", "_edge", "_islands")

    def __init__(self, offset: int, buffer: memoryview) -> None:
        """`buffer` of bytes, as long as the read. Failed: what it holds is undefined."""
        super().__init__(CMD_READ, offset, len(buffer))
        self.budget = 1024 + len(buffer) // 64
        self._buffer: memoryview | None = buffer
        self._edge = 0
        """Up to here, from its begin, all is there."""
        self._islands: list[tuple[int, int]] = []
        """Parts behind the edge that are there, ascending."""

    def abandon(self) -> None:
        """Nobody waits any more: the buffer is not touched from now on. See `ReplyReceiver.abandon`."""
        self._buffer = None

    def place(self, offset: int, nbytes: int) -> memoryview | None:
        start = offset - self.offset
        end = start + nbytes
        if start < 0 or end > self.nbytes:
            raise RemoteProtocolError(
                f"Data at {offset} of {nbytes} bytes in a reply to READ at {self.offset} of {self.nbytes} bytes"
            )
        if start == self._edge and not self._islands:
            self._edge = end
        else:
            self._add_island(start, end)
        return self._buffer[start:end] if self._buffer is not None else None

    def _add_island(self, start: int, end: int) -> None:
        islands = self._islands
        at = bisect(islands, (start, end))
        before = islands[at - 1][1] if at else self._edge
        if start < before or (at < len(islands) and islands[at][0] < end):
            raise RemoteProtocolError(f"Data at {self.offset + start} comes twice in a reply to READ")
        if start == before and at:
            at -= 1
            start = islands.pop(at)[0]
        if at < len(islands) and islands[at][0] == end:
            end = islands.pop(at)[1]
        islands.insert(at, (start, end))
        if islands[0][0] == self._edge:
            self._edge = islands.pop(0)[1]

    def hole(self, offset: int, nbytes: int) -> None:
        into = self.place(offset, nbytes)
        if into is None:
            return
        for start in range(0, nbytes, len(ZEROES)):
            end = min(start + len(ZEROES), nbytes)
            into[start:end] = ZEROES[: end - start]

    def finish(self) -> None:
        if self.error is None and self._edge != self.nbytes:
            self.error = OSError(errno.EIO, os.strerror(errno.EIO))
            self.error.add_note(f"The server left out what lies at {self.offset + self._edge}")
        self._buffer = None
        self.done = True


class Extents:
    """The extents of one context, one behind the other. Arrays of unsigned numbers, of 4 or 8 bytes each."""

    __slots__ = ("flags", "lengths")

    def __init__(self, lengths: "array[int]", flags: "array[int]") -> None:
        self.lengths = lengths
        """In bytes."""
        self.flags = flags
        """STATE_HOLE and so on, as the context defines them."""

    def __repr__(self) -> str:
        return f"Extents({list(zip(self.lengths, self.flags, strict=True))})"


class StatusReply(Reply):
    """Collects the extents of every context that was asked for."""

    __slots__ = ("_one", "_wanted", "extents")

    def __init__(self, offset: int, nbytes: int, contexts: frozenset[int], *, one: bool = False) -> None:
        """`contexts`: the ids of those that were asked for. `one`: a single extent of each (REQ_ONE)."""
        super().__init__(CMD_BLOCK_STATUS, offset, nbytes)
        self.budget += len(contexts)
        self._wanted = contexts
        self._one = one
        self.extents: dict[int, Extents] = {}
        """By context; they begin at `offset`, and end where the request ends or before, each at another place."""

    def add_extents(self, payload: memoryview, *, wide: bool) -> None:
        (context,) = _CONTEXT.unpack_from(payload)
        if context not in self._wanted or context in self.extents:
            raise RemoteProtocolError(f"Extents of context {context} were not asked for, or come twice")
        numbers = array("Q" if wide else "I", bytes(payload[8 if wide else 4 :]))
        if _SWAP:
            numbers.byteswap()
        count = len(numbers) // 2
        if wide and int.from_bytes(payload[4:8], "big") != count:
            raise RemoteProtocolError("A reply to BLOCK_STATUS whose number of extents does not fit its length")
        if count > MAX_EXTENTS or (self._one and count > 1):
            raise RemoteProtocolError(f"A reply to BLOCK_STATUS with {count} extents")
        lengths = numbers[::2]
        if not count or 0 in lengths:
            raise RemoteProtocolError("A reply to BLOCK_STATUS with an empty extent")
        self.extents[context] = self._clamped(lengths, numbers[1::2])

    def _clamped(self, lengths: "array[int]", flags: "array[int]") -> Extents:
        """Cut off what lies behind the range that was asked for: the last extent may reach farther."""
        beyond = sum(lengths) - self.nbytes
        while beyond > 0:
            last = lengths.pop()
            if last > beyond:
                lengths.append(last - beyond)
                break
            beyond -= last
            flags.pop()
        return Extents(lengths, flags)

    def finish(self) -> None:
        if self.error is None and self.extents.keys() != self._wanted:
            self.error = OSError(errno.EIO, os.strerror(errno.EIO))
            self.error.add_note("The server left out the extents of a context")
        self.done = True
