"""Requests of the transmission phase: how a client packs them, how a server receives and judges them.

    compact     32 magic  16 flags  16 command  64 cookie  64 offset  32 length     28 bytes
    extended    32 magic  16 flags  16 command  64 cookie  64 offset  64 length     32 bytes

`length` is that of the payload with the flag PAYLOAD_LEN (extended headers only; a write must have it), else that of
the effect. The payload of BLOCK_STATUS is a filter: 64 effect length, then 32 for each context.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple

from aioblock.base.errors import RemoteProtocolError
from aioblock.nbd import errnos
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
    CMD_DISC,
    CMD_FLAG_DF,
    CMD_FLAG_FAST_ZERO,
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLAG_PAYLOAD_LEN,
    CMD_FLAG_REQ_ONE,
    CMD_FLUSH,
    CMD_READ,
    CMD_RESIZE,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    COMMAND_NAMES,
    EXTENDED_REQUEST_MAGIC,
    FLAG_BLOCK_STATUS_PAYLOAD,
    FLAG_READ_ONLY,
    FLAG_SEND_CACHE,
    FLAG_SEND_DF,
    FLAG_SEND_FAST_ZERO,
    FLAG_SEND_FLUSH,
    FLAG_SEND_FUA,
    FLAG_SEND_RESIZE,
    FLAG_SEND_TRIM,
    FLAG_SEND_WRITE_ZEROES,
    MAX_PAYLOAD,
    MAX_QUERIES,
    REQUEST_MAGIC,
    Mode,
)
from aioblock.nbd.export import ExportInfo
from aioblock.nbd.receiver import Receiver

__all__ = ["Request", "RequestReceiver", "objection", "pack_filter", "pack_request"]

_COMPACT: Final = Struct(">IHHQQI")
_EXTENDED: Final = Struct(">IHHQQQ")
_U64: Final = Struct(">Q")


class Request(NamedTuple):
    """One request, with its payload. Offset and length (of the effect) in bytes."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    data: memoryview | None = None
    """What is to be written."""
    contexts: tuple[int, ...] | None = None
    """BLOCK_STATUS: the ids of those contexts that are asked for; None: all that were negotiated."""
    malformed: bool = False
    """The payload made no sense, and was dropped: to be refused with EINVAL."""

    @property
    def name(self) -> str:
        """The name of the command, for messages."""
        return COMMAND_NAMES.get(self.command, f"command {self.command}")


def pack_request(mode: Mode, command: int, flags: int, cookie: int, offset: int, length: int) -> bytes:
    """The head of a request; in extended mode a write, which has a payload, is flagged so."""
    if mode is Mode.EXTENDED:
        if command == CMD_WRITE:
            flags |= CMD_FLAG_PAYLOAD_LEN
        return _EXTENDED.pack(EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
    return _COMPACT.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


def pack_filter(length: int, contexts: tuple[int, ...]) -> bytes:
    """The payload of a BLOCK_STATUS that asks for some contexts only; `length` of the effect in bytes."""
    return _U64.pack(length) + b"".join(context.to_bytes(4, "big") for context in contexts)


class RequestReceiver(Receiver[Request]):
    """The server's side: the stream of a client, cut into requests.

    What is wrong in itself (magic, a payload beyond `max_payload`) ends the connection; what can be answered is a
    Request for `objection` to judge.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        max_payload: int = MAX_PAYLOAD,
        allocate: Callable[[int], memoryview] = lambda nbytes: memoryview(bytearray(nbytes)),
        scratch: bytearray | None = None,
    ) -> None:
        """`allocate`: where the memory for the payload of a write comes from. `scratch`: see Receiver."""
        super().__init__(scratch)
        self._extended = mode is Mode.EXTENDED
        self._head_bytes = _EXTENDED.size if self._extended else _COMPACT.size
        self._unpack = _EXTENDED.unpack_from if self._extended else _COMPACT.unpack_from
        self._magic = EXTENDED_REQUEST_MAGIC if self._extended else REQUEST_MAGIC
        self._max_payload = max_payload
        self._allocate = allocate
        self._request: Request | None = None
        self._filter: memoryview | None = None

    def _head(self, found: list[Request]) -> bool:
        if self._end - self._start < self._head_bytes:
            return False
        magic, flags, command, cookie, offset, length = self._unpack(self._buffer, self._start)
        if magic != self._magic:
            raise RemoteProtocolError(f"Bad magic {magic:#010x} of a request")
        self._start += self._head_bytes
        if command == CMD_WRITE and not self._extended:
            return self._with_payload(Request(command, flags, cookie, offset, length), length, found)
        if self._extended and flags & CMD_FLAG_PAYLOAD_LEN:
            return self._with_payload(Request(command, flags, cookie, offset, length), length, found)
        # A write in extended mode without that flag has no payload that one could rely on.
        found.append(Request(command, flags, cookie, offset, length, malformed=command == CMD_WRITE))
        return True

    def _with_payload(self, request: Request, nbytes: int, found: list[Request]) -> bool:
        if nbytes > self._max_payload:
            raise RemoteProtocolError(f"{request.name} has a payload of {nbytes} bytes, more than {self._max_payload}")
        sink = None
        if request.command == CMD_WRITE:
            sink = self._allocate(nbytes)
            request = request._replace(data=sink)
        elif request.command == CMD_BLOCK_STATUS and 8 <= nbytes <= 8 + 4 * MAX_QUERIES and nbytes % 4 == 0:
            sink = self._filter = memoryview(bytearray(nbytes))
        else:
            request = request._replace(malformed=True)
        if not nbytes:
            found.append(request)
            return True
        self._request = request
        self._expect(sink, nbytes)
        return True

    def _payload_done(self, found: list[Request]) -> None:
        request = self._request
        assert request is not None
        self._request = None
        if self._filter is not None:
            payload, self._filter = bytes(self._filter), None
            ids = tuple(int.from_bytes(payload[at : at + 4], "big") for at in range(8, len(payload), 4))
            request = request._replace(length=int.from_bytes(payload[:8], "big"), contexts=ids)
        found.append(request)


_CHANGING: Final = frozenset((CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES, CMD_RESIZE))
_NEEDS: Final = {
    CMD_READ: 0,
    CMD_WRITE: 0,
    CMD_DISC: 0,
    CMD_FLUSH: FLAG_SEND_FLUSH,
    CMD_TRIM: FLAG_SEND_TRIM,
    CMD_CACHE: FLAG_SEND_CACHE,
    CMD_WRITE_ZEROES: FLAG_SEND_WRITE_ZEROES,
    CMD_BLOCK_STATUS: 0,
    CMD_RESIZE: FLAG_SEND_RESIZE,
}
"""The flag with which an export offers a command."""
_FLAGS: Final = {
    CMD_READ: CMD_FLAG_DF,
    CMD_WRITE_ZEROES: CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
    CMD_BLOCK_STATUS: CMD_FLAG_REQ_ONE,
}
"""The flags that a command may have, beside FUA, which every one may, and PAYLOAD_LEN."""


def objection(request: Request, export: ExportInfo, mode: Mode, *, max_payload: int = MAX_PAYLOAD) -> tuple[int, str]:
    """Why a server refuses a request, as the protocol's error and words for it; (0, "") if it does not.

    Ranges, flags, alignment and what the export offers; whether a context was negotiated is left to the caller.
    """
    command, length = request.command, request.length
    needed = _NEEDS.get(command)
    if needed is None or needed & ~export.flags:
        return errnos.EINVAL, f"{request.name} is not supported"
    allowed = _FLAGS.get(command, 0)
    if export.flags & FLAG_SEND_FUA:
        allowed |= CMD_FLAG_FUA
    if not export.flags & FLAG_SEND_DF:
        allowed &= ~CMD_FLAG_DF
    if not export.flags & FLAG_SEND_FAST_ZERO:
        allowed &= ~CMD_FLAG_FAST_ZERO
    if mode is Mode.EXTENDED and (
        command == CMD_WRITE or (command == CMD_BLOCK_STATUS and export.flags & FLAG_BLOCK_STATUS_PAYLOAD)
    ):
        allowed |= CMD_FLAG_PAYLOAD_LEN
    if request.flags & ~allowed or request.malformed:
        return errnos.EINVAL, f"{request.name} with flags {request.flags:#x} is not supported"
    if command in _CHANGING and export.flags & FLAG_READ_ONLY:
        return errnos.EPERM, "The export is read-only"
    if command in (CMD_DISC, CMD_FLUSH, CMD_RESIZE):
        return 0, ""
    if command == CMD_READ and length > max_payload:
        return errnos.EINVAL, f"READ of {length} bytes is longer than {max_payload}"
    if command == CMD_BLOCK_STATUS and not length:
        return errnos.EINVAL, "BLOCK_STATUS of 0 bytes"
    if request.offset + length > export.size:
        error = errnos.ENOSPC if command in (CMD_WRITE, CMD_WRITE_ZEROES) else errnos.EINVAL
        return error, f"{request.name} at {request.offset} of {length} bytes ends behind {export.size}, the end"
    if (request.offset | length) % export.min_block:
        return errnos.EINVAL, f"{request.name} is not aligned to {export.min_block} bytes"
    return 0, ""
