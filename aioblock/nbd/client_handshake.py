"""The client's side of the handshake: from the server's greeting to an open export, or to a list of exports.

greeting                         magics and flags; the oldest kind of server tells size and flags of its only export
STARTTLS                         where TLS is demanded; all that follows is encrypted
EXTENDED_HEADERS                 else STRUCTURED_REPLY, else simple replies
SET_META_CONTEXT, GO             to open; EXPORT_NAME for a server that does not know GO
LIST, and of each INFO and LIST_META_CONTEXT, ABORT     to list
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from struct import Struct
from typing import Final

from aioblock.base.errors import LocalProtocolError, OptionRefused, RemoteProtocolError
from aioblock.nbd.constants import (
    FLAG_FIXED_NEWSTYLE,
    FLAG_HAS_FLAGS,
    FLAG_NO_ZEROES,
    INFO_BLOCK_SIZE,
    INFO_DESCRIPTION,
    INFO_EXPORT,
    INFO_NAME,
    INIT_MAGIC,
    MAX_OPTION,
    MAX_OPTION_REPLIES,
    MAX_STRING,
    OLDSTYLE_MAGIC,
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_EXTENDED_HEADERS,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT,
    OPT_STARTTLS,
    OPT_STRUCTURED_REPLY,
    OPTION_MAGIC,
    OPTION_NAMES,
    OPTION_REPLY_MAGIC,
    REP_ACK,
    REP_ERR_BLOCK_SIZE_REQD,
    REP_ERR_EXT_HEADER_REQD,
    REP_ERR_INVALID,
    REP_ERR_PLATFORM,
    REP_ERR_POLICY,
    REP_ERR_SHUTDOWN,
    REP_ERR_TLS_REQD,
    REP_ERR_TOO_BIG,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
    REP_ERROR,
    REP_INFO,
    REP_META_CONTEXT,
    REP_SERVER,
    Mode,
)
from aioblock.nbd.export import ExportInfo
from aioblock.nbd.handshake import PAUSE, Handshake, Script, text_of

__all__ = ["ClientEvent", "ClientHandshake", "ListedExport"]

_OPTION: Final = Struct(">QII")
_REPLY: Final = Struct(">QIII")
_U32: Final = Struct(">I")
_SIZE_FLAGS: Final = Struct(">QH")
_OLD: Final = Struct(">QI")
_BLOCK_SIZES: Final = Struct(">HIII")
_EXPORT: Final = Struct(">HQH")
_ZEROES: Final = 124

_REFUSALS: Final = {
    REP_ERR_UNSUP: "Server does not support option {0} ({1})",
    REP_ERR_POLICY: "Denied by server for option {0} ({1})",
    REP_ERR_INVALID: "Invalid parameters for option {0} ({1})",
    REP_ERR_PLATFORM: "Server lacks support for option {0} ({1})",
    REP_ERR_TLS_REQD: "Server requires TLS for option {0} ({1})\nDid you forget a valid tls-creds?",
    REP_ERR_UNKNOWN: "Requested export not available",
    REP_ERR_SHUTDOWN: "Server shutting down before option {0} ({1})",
    REP_ERR_BLOCK_SIZE_REQD: "Server requires INFO_BLOCK_SIZE for option {0} ({1})",
    REP_ERR_TOO_BIG: "Server finds option {0} ({1}) too large",
    REP_ERR_EXT_HEADER_REQD: "Server requires extended headers for option {0} ({1})",
}


class ClientEvent(Enum):
    """What the owner of the handshake has to do next."""

    START_TLS = "start-tls"
    """Send the output, begin TLS, then call `tls_started`."""
    READY = "ready"
    """The export is open."""
    LISTED = "listed"
    """`exports` is complete; send the output, and close the connection."""


@dataclass(slots=True)
class ListedExport:
    """One export of a list."""

    info: ExportInfo
    contexts: list[str] = field(default_factory=list)
    """The metadata contexts that it offers."""
    refused: str = ""
    """Why nothing more is known than its name."""


@dataclass(slots=True)
class _Refusal:
    reply: int
    words: str


class ClientHandshake(Handshake[ClientEvent]):
    """Opens the export of a name, or lists all."""

    def __init__(
        self,
        export: str = "",
        *,
        tls: bool = False,
        mode: Mode = Mode.EXTENDED,
        contexts: Sequence[str] = (),
        list_exports: bool = False,
    ) -> None:
        """`tls`: fail rather than go on without. `mode`: the best to ask for. `contexts`: to ask for, by name.

        Raises: LocalProtocolError for a name that is too long or has a NUL in it.
        """
        for name in (export, *contexts):
            _packed_string(name)
        self._tls = tls
        self._best = mode
        self._asked = tuple(contexts)
        self._list = list_exports
        self.mode = Mode.SIMPLE
        """What headers will look like."""
        self.info = ExportInfo(export)
        """The export, once it is open."""
        self.contexts: dict[str, int] = {}
        """The metadata contexts that the server agreed to, and their ids, once the export is open."""
        self.exports: list[ListedExport] = []
        """The exports that were listed."""
        super().__init__()

    def tls_started(self) -> list[ClientEvent]:
        """TLS is there. Go on; as `feed`."""
        self._nothing_waits()
        return self._answer(None)

    def _run(self) -> Script:
        greeting = yield 16
        magic, kind = int.from_bytes(greeting[:8], "big"), int.from_bytes(greeting[8:], "big")
        if magic != INIT_MAGIC:
            raise RemoteProtocolError("Bad initial magic received: this is no NBD server")
        if kind == OLDSTYLE_MAGIC:
            yield from self._oldstyle()
            return
        if kind != OPTION_MAGIC:
            raise RemoteProtocolError(f"Bad server magic received: {kind:#x}")
        flags = int.from_bytes((yield 2), "big")
        self._zeroes = not flags & FLAG_NO_ZEROES
        self._output += _U32.pack(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES))
        if flags & FLAG_FIXED_NEWSTYLE:
            yield from self._negotiate()
        elif self._tls or self._list:
            what = "TLS" if self._tls else "a list of its exports"
            raise RemoteProtocolError(f"Server does not support STARTTLS or LIST, {what} was asked for")
        if self._list:
            yield from self._list_exports()
            self._send(OPT_ABORT)
            self._events.append(ClientEvent.LISTED)
            return
        if not flags & FLAG_FIXED_NEWSTYLE or not (yield from self._go()):
            yield from self._export_name()
        self.info.check()
        self._events.append(ClientEvent.READY)

    def _oldstyle(self) -> Script:
        """The server has one export, and asks nothing."""
        if self._tls or self._list or self.info.name:
            what = "TLS" if self._tls else "export names"
            raise RemoteProtocolError(f"Server does not support {what}: it speaks the oldest form of the protocol")
        self.info.size, flags = _OLD.unpack((yield _OLD.size))
        self.info.flags = flags & 0xFFFF | FLAG_HAS_FLAGS
        yield _ZEROES
        self.info.check()
        self._events.append(ClientEvent.READY)

    def _negotiate(self) -> Script:
        """What comes before any export: TLS, and the mode."""
        if self._tls:
            if refusal := (yield from self._plain_option(OPT_STARTTLS)):
                raise _refused(OPT_STARTTLS, refusal)
            self._nothing_waits()
            self._events.append(ClientEvent.START_TLS)
            yield PAUSE
        for option, mode in ((OPT_EXTENDED_HEADERS, Mode.EXTENDED), (OPT_STRUCTURED_REPLY, Mode.STRUCTURED)):
            if mode <= self._best:
                refusal = yield from self._plain_option(option)
                if refusal is None:
                    self.mode = mode
                    return
                if refusal.reply in (REP_ERR_TLS_REQD, REP_ERR_SHUTDOWN):
                    raise _refused(option, refusal)

    def _go(self) -> Script:
        """Open the export; False where the server does not know how. Raises: OptionRefused."""
        if self._asked and self.mode is not Mode.SIMPLE:
            found: dict[str, int] = {}
            # Refused: the export may be open without contexts; if not, that is told better by GO.
            yield from self._contexts(OPT_SET_META_CONTEXT, self.info.name, self._asked, found)
            self.contexts = {name: id for name, id in found.items() if name in self._asked}
        refusal = yield from self._info(OPT_GO, self.info, (INFO_BLOCK_SIZE,))
        if refusal is None:
            return True
        if refusal.reply == REP_ERR_UNSUP:
            return False
        raise _refused(OPT_GO, refusal)

    def _export_name(self) -> Script:
        self._send(OPT_EXPORT_NAME, self.info.name.encode())
        self.info.size, self.info.flags = _SIZE_FLAGS.unpack((yield _SIZE_FLAGS.size))
        if self._zeroes:
            yield _ZEROES

    def _list_exports(self) -> Script:
        names: list[tuple[str, str]] = []
        self._send(OPT_LIST)
        for _ in _budget(OPT_LIST):
            kind, data = yield from self._reply(OPT_LIST)
            if kind == REP_ACK:
                break
            if kind & REP_ERROR:
                raise _refused(OPT_LIST, _refusal_of(kind, data))
            names.append(_listed_name(kind, data))
        for name, description in names:
            listed = ListedExport(ExportInfo(name, description=description))
            self.exports.append(listed)
            asked = (INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE)
            refusal = yield from self._info(OPT_INFO, listed.info, asked)
            if refusal is not None:
                listed.refused = str(_refused(OPT_INFO, refusal))
            elif self.mode is not Mode.SIMPLE:
                found: dict[str, int] = {}
                yield from self._contexts(OPT_LIST_META_CONTEXT, name, (), found)
                listed.contexts = list(found)

    # -- one option --------------------------------------------------------------------------------------------------

    def _send(self, option: int, data: bytes = b"") -> None:
        self._output += _OPTION.pack(OPTION_MAGIC, option, len(data)) + data

    def _reply(self, option: int) -> Script:
        """One reply to an option: its kind, and its data."""
        magic, answered, kind, nbytes = _REPLY.unpack((yield _REPLY.size))
        if magic != OPTION_REPLY_MAGIC:
            raise RemoteProtocolError(f"Unexpected option reply magic {magic:#x}")
        if answered != option:
            raise RemoteProtocolError(f"Unexpected option type {answered} ({_name(answered)}), expected {option}")
        if nbytes > MAX_OPTION:
            raise RemoteProtocolError(f"Reply of {nbytes} bytes to option {option} ({_name(option)}) is too long")
        return kind, (yield nbytes)

    def _plain_option(self, option: int) -> Script:
        """An option without data on both sides: None, or the refusal."""
        self._send(option)
        kind, data = yield from self._reply(option)
        if kind & REP_ERROR:
            return _refusal_of(kind, data)
        if kind != REP_ACK or data:
            raise RemoteProtocolError(f"Unexpected reply type {kind} to option {option} ({_name(option)})")
        return None

    def _contexts(self, option: int, export: str, queries: Sequence[str], found: dict[str, int]) -> Script:
        """Ask for metadata contexts: None, or the refusal."""
        data = _packed_string(export) + _U32.pack(len(queries)) + b"".join(map(_packed_string, queries))
        self._send(option, data)
        for _ in _budget(option):
            kind, data = yield from self._reply(option)
            if kind == REP_ACK:
                return None
            if kind & REP_ERROR:
                found.clear()
                return _refusal_of(kind, data)
            if kind != REP_META_CONTEXT or len(data) < 5:
                raise RemoteProtocolError(f"Unexpected reply type {kind} to option {option} ({_name(option)})")
            name, id = text_of(data[4:], "The name of a metadata context"), int.from_bytes(data[:4], "big")
            if name in found or (option == OPT_SET_META_CONTEXT and id in found.values()):
                raise RemoteProtocolError(f"The metadata context '{name}' comes twice")
            found[name] = id

    def _info(self, option: int, info: ExportInfo, asked: Sequence[int]) -> Script:
        """GO or INFO: None, or the refusal."""
        numbers = b"".join(number.to_bytes(2, "big") for number in asked)
        self._send(option, _packed_string(info.name) + len(asked).to_bytes(2, "big") + numbers)
        complete = False
        for _ in _budget(option):
            kind, data = yield from self._reply(option)
            if kind & REP_ERROR:
                return _refusal_of(kind, data)
            if kind == REP_INFO and len(data) >= 2:
                complete = _take_info(info, data) or complete
            elif kind == REP_ACK and not data and complete:
                return None
            else:
                raise RemoteProtocolError(f"Unexpected reply type {kind} to option {option} ({_name(option)})")


def _take_info(info: ExportInfo, data: bytes) -> bool:
    """Fill in one piece of information; whether it is the one that no server may leave out."""
    kind = int.from_bytes(data[:2], "big")
    if kind == INFO_EXPORT:
        if len(data) != _EXPORT.size:
            raise RemoteProtocolError(f"Size and flags of an export in {len(data)} bytes")
        _, info.size, info.flags = _EXPORT.unpack(data)
        return True
    if kind == INFO_BLOCK_SIZE:
        if len(data) != _BLOCK_SIZES.size:
            raise RemoteProtocolError(f"Block sizes of an export in {len(data)} bytes")
        _, info.min_block, info.preferred_block, info.max_block = _BLOCK_SIZES.unpack(data)
        info.check()
    elif kind == INFO_NAME:
        info.canonical_name = text_of(data[2:], "The name of an export")
    elif kind == INFO_DESCRIPTION:
        info.description = text_of(data[2:], "The description of an export")
    return False


def _listed_name(kind: int, data: bytes) -> tuple[str, str]:
    """Name and description of an export in a list."""
    nbytes = int.from_bytes(data[:4], "big")
    if kind != REP_SERVER or len(data) < 4 + nbytes:
        raise RemoteProtocolError(f"Unexpected reply type {kind} of {len(data)} bytes to option {OPT_LIST} (list)")
    name = text_of(data[4 : 4 + nbytes], "The name of an export")
    return name, text_of(data[4 + nbytes :], "The description of an export")


def _budget(option: int) -> Iterator[int]:
    yield from range(MAX_OPTION_REPLIES)
    raise RemoteProtocolError(f"More than {MAX_OPTION_REPLIES} replies to option {option} ({_name(option)})")


def _packed_string(text: str) -> bytes:
    """Raises: LocalProtocolError."""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > MAX_STRING or b"\0" in data:
        raise LocalProtocolError(f"{text[:80]!r} is too long for a name, or has a NUL in it")
    return _U32.pack(len(data)) + data


def _refusal_of(kind: int, data: bytes) -> _Refusal:
    return _Refusal(kind, data[:MAX_STRING].decode("utf-8", "replace"))


def _refused(option: int, refusal: _Refusal) -> OptionRefused:
    form = _REFUSALS.get(refusal.reply, "Unknown error code when asking for option {0} ({1})")
    message = form.format(option, _name(option))
    if refusal.words:
        message += f"\nserver reported: {refusal.words}"
    return OptionRefused(message, option=option, reply=refusal.reply, words=refusal.words)


def _name(option: int) -> str:
    return OPTION_NAMES.get(option, "<unknown>").lower().replace("_", " ")
