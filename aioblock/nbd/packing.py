"""Replies as a server packs them."""

import sys
from array import array
from collections.abc import Iterable
from struct import Struct
from typing import Final

from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_READ,
    EXTENDED_REPLY_MAGIC,
    MAX_STRING,
    REPLY_FLAG_DONE,
    REPLY_TYPE_BLOCK_STATUS,
    REPLY_TYPE_BLOCK_STATUS_EXT,
    REPLY_TYPE_ERROR,
    REPLY_TYPE_ERROR_OFFSET,
    REPLY_TYPE_NONE,
    REPLY_TYPE_OFFSET_DATA,
    REPLY_TYPE_OFFSET_HOLE,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Mode,
)
from aioblock.nbd.requests import Request

__all__ = ["ReplyPacker", "pack_extents"]

_SIMPLE: Final = Struct(">IIQ")
_STRUCTURED: Final = Struct(">IHHQI")
_EXTENDED: Final = Struct(">IHHQQQ")
_U64: Final = Struct(">Q")
_HOLE: Final = Struct(">QI")


def pack_extents(lengths: Iterable[int], flags: Iterable[int], *, wide: bool) -> bytes:
    """Extents (lengths in bytes, none 0) in the form in which a reply carries them; `wide` in extended mode."""
    kind = "Q" if wide else "I"
    first = array(kind, lengths)
    numbers = array(kind, bytes(2 * len(first) * first.itemsize))
    numbers[::2] = first
    numbers[1::2] = array(kind, flags)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


class ReplyPacker:
    """Packs replies in the mode that was negotiated. What it returns is complete, but for the data of a read."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode

    def read_head(self, request: Request, offset: int, nbytes: int, *, last: bool = True) -> bytes:
        """What goes before `nbytes` of data at `offset`. In simple mode: all of the read, in one piece."""
        if self.mode is Mode.SIMPLE:
            return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)
        return self._chunk(request, REPLY_TYPE_OFFSET_DATA, 8 + nbytes, last) + _U64.pack(offset)

    def hole(self, request: Request, offset: int, nbytes: int, *, last: bool = True) -> bytes:
        """A part of a read is zeroes. Not in simple mode."""
        return self._chunk(request, REPLY_TYPE_OFFSET_HOLE, _HOLE.size, last) + _HOLE.pack(offset, nbytes)

    def extents(self, request: Request, context: int, payload: bytes, *, last: bool) -> bytes:
        """The extents of one context, packed by `pack_extents`. Not in simple mode."""
        if self.mode is Mode.EXTENDED:
            head = _U64.pack(context << 32 | len(payload) // 16)
            kind = REPLY_TYPE_BLOCK_STATUS_EXT
        else:
            head = context.to_bytes(4, "big")
            kind = REPLY_TYPE_BLOCK_STATUS
        return self._chunk(request, kind, len(head) + len(payload), last) + head + payload

    def success(self, request: Request) -> bytes:
        """It is done, and there is nothing (more) to send."""
        if self.mode is Mode.EXTENDED or (self.mode is Mode.STRUCTURED and request.command in _WITH_PAYLOAD):
            return self._chunk(request, REPLY_TYPE_NONE, 0, True)
        return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def error(
        self, request: Request, error: int, words: str = "", *, at: int | None = None, last: bool = True
    ) -> bytes:
        """It failed: `error` of the protocol, not 0; `at`: the offset in a read. `words` are cut to 4096 bytes."""
        if self.mode is Mode.SIMPLE:
            return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, error, request.cookie)
        text = words.encode("utf-8", "replace")[:MAX_STRING].decode("utf-8", "ignore").encode()
        payload = error.to_bytes(4, "big") + len(text).to_bytes(2, "big") + text
        kind = REPLY_TYPE_ERROR
        if at is not None:
            kind, payload = REPLY_TYPE_ERROR_OFFSET, payload + _U64.pack(at)
        return self._chunk(request, kind, len(payload), last) + payload

    def _chunk(self, request: Request, kind: int, length: int, last: bool) -> bytes:
        flags = REPLY_FLAG_DONE if last else 0
        if self.mode is Mode.EXTENDED:
            return _EXTENDED.pack(EXTENDED_REPLY_MAGIC, flags, kind, request.cookie, request.offset, length)
        return _STRUCTURED.pack(STRUCTURED_REPLY_MAGIC, flags, kind, request.cookie, length)


_WITH_PAYLOAD: Final = frozenset((CMD_READ, CMD_BLOCK_STATUS))
