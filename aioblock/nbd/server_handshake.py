"""The server's side of the handshake. What it does not know, it asks its owner, by events, and waits for the answer.

A client may ask as much as it likes, within a budget, until it has chosen an export. No option changes anything outside
the handshake. TLS forgets all that was negotiated before it.
"""

from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from struct import Struct
from typing import Final, NamedTuple

from aioblock.base.errors import RemoteProtocolError
from aioblock.nbd.constants import (
    FLAG_BLOCK_STATUS_PAYLOAD,
    FLAG_FIXED_NEWSTYLE,
    FLAG_HAS_FLAGS,
    FLAG_NO_ZEROES,
    FLAG_SEND_DF,
    INFO_BLOCK_SIZE,
    INFO_DESCRIPTION,
    INFO_EXPORT,
    INFO_NAME,
    INIT_MAGIC,
    MAX_OPTION,
    MAX_OPTIONS,
    MAX_QUERIES,
    MAX_STRING,
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
    REP_ERR_INVALID,
    REP_ERR_POLICY,
    REP_ERR_TLS_REQD,
    REP_ERR_TOO_BIG,
    REP_ERR_UNSUP,
    REP_INFO,
    REP_META_CONTEXT,
    REP_SERVER,
    Mode,
)
from aioblock.nbd.export import ExportInfo
from aioblock.nbd.handshake import PAUSE, Handshake, Script, text_of

__all__ = [
    "ContextsAsked",
    "Ended",
    "ExportAsked",
    "ListAsked",
    "Ready",
    "ServerEvent",
    "ServerHandshake",
    "TlsAsked",
    "TlsPolicy",
]

_OPTION: Final = Struct(">QII")
_REPLY: Final = Struct(">QIII")
_SIZE_FLAGS: Final = Struct(">QH")
_GREETING: Final = Struct(">QQH")
_KNOWN_CLIENT_FLAGS: Final = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES


class TlsPolicy(Enum):
    """Whether clients may, or must, use TLS."""

    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


class ListAsked(NamedTuple):
    """The client asks for all exports: answer with `list_exports` or `refuse`."""


class ExportAsked(NamedTuple):
    """The client asks for an export: answer with `accept` or `refuse`."""

    name: str
    open: bool
    """It wants to use it (GO, EXPORT_NAME), not only to know about it (INFO)."""


class ContextsAsked(NamedTuple):
    """The client asks for metadata contexts of an export: answer with `offer_contexts` or `refuse`."""

    export: str
    queries: tuple[str, ...]
    """Names, or with a colon at the end all of that namespace (not to select them); none: all (not to select them)."""
    select: bool
    """It wants to use them (SET_META_CONTEXT), not only to know about them (LIST_META_CONTEXT)."""


class TlsAsked(NamedTuple):
    """Send the output, begin TLS, then call `tls_started`. What was not yet fed belongs to TLS."""


class Ready(NamedTuple):
    """The handshake is over, the export is in use. What the client sent already is in `leftover`."""

    export: ExportInfo
    """A copy of what was given to `accept`, with the flags that the client was told."""
    mode: Mode
    contexts: dict[int, str]
    """The metadata contexts that the client selected, by id."""


class Ended(NamedTuple):
    """The client is done: send the output, and close the connection."""


ServerEvent = ListAsked | ExportAsked | ContextsAsked | TlsAsked | Ready | Ended


class _Refuse(NamedTuple):
    reply: int
    words: str


class ServerHandshake(Handshake[ServerEvent]):
    """Serves one client until it has chosen an export. The first output is there at once."""

    def __init__(self, *, tls: TlsPolicy = TlsPolicy.OFF, mode: Mode = Mode.EXTENDED) -> None:
        """`mode`: the best that clients may have."""
        self._policy = tls
        self._best = mode
        self.encrypted = False
        self.mode = Mode.SIMPLE
        self._contexts: dict[int, str] = {}
        self._contexts_of: str | None = None
        """The export for which they were selected."""
        self._zeroes = True
        super().__init__()

    # -- answers -----------------------------------------------------------------------------------------------------

    def tls_started(self) -> list[ServerEvent]:
        """TLS is there. Go on; as `feed`."""
        self._nothing_waits()
        return self._answer(None)

    def list_exports(self, exports: Iterable[tuple[str, str]]) -> list[ServerEvent]:
        """Names and descriptions of all exports. As `feed`."""
        return self._answer(list(exports))

    def accept(self, export: ExportInfo) -> list[ServerEvent]:
        """The export is there, and may be used. DF and the filter of BLOCK_STATUS are offered where the mode has them.

        As `feed`.
        """
        return self._answer(replace(export))

    def offer_contexts(self, contexts: Iterable[tuple[int, str]]) -> list[ServerEvent]:
        """Ids and names of the metadata contexts that the client may have. As `feed`."""
        return self._answer(list(contexts))

    def refuse(self, reply: int, words: str = "") -> list[ServerEvent]:
        """Refuse what was asked: `reply` is REP_ERR_UNKNOWN or another of them. As `feed`.

        Raises: RemoteProtocolError where the client cannot be told so (EXPORT_NAME): close the connection.
        """
        return self._answer(_Refuse(reply, words))

    # -- the script --------------------------------------------------------------------------------------------------

    def _run(self) -> Script:
        self._output += _GREETING.pack(INIT_MAGIC, OPTION_MAGIC, _KNOWN_CLIENT_FLAGS)
        flags = int.from_bytes((yield 4), "big")
        if flags & ~_KNOWN_CLIENT_FLAGS:
            raise RemoteProtocolError(f"Unknown client flags {flags:#x}")
        self._zeroes = not flags & FLAG_NO_ZEROES
        for _ in range(MAX_OPTIONS):
            magic, option, nbytes = _OPTION.unpack((yield _OPTION.size))
            if magic != OPTION_MAGIC:
                raise RemoteProtocolError(f"Bad magic {magic:#x} of an option")
            if nbytes > MAX_OPTION:
                raise RemoteProtocolError(f"Option {option} with {nbytes} bytes of data")
            data = yield nbytes
            if (yield from self._option(option, data)):
                return
        raise RemoteProtocolError(f"More than {MAX_OPTIONS} options")

    def _option(self, option: int, data: bytes) -> Script:
        """Serve one option; True when the handshake is over."""
        if option == OPT_ABORT:
            self._reply(option, REP_ACK)
            self._events.append(Ended())
            return True
        if self._policy is TlsPolicy.REQUIRED and not self.encrypted and option != OPT_STARTTLS:
            if option == OPT_EXPORT_NAME:
                raise RemoteProtocolError("EXPORT_NAME without TLS, which is required")
            self._error(option, REP_ERR_TLS_REQD, f"Option {_name(option)} not permitted before TLS")
            return False
        if option in _WITHOUT_DATA and data:
            self._error(option, REP_ERR_INVALID, f"Option {_name(option)} has data")
            return False
        if option == OPT_EXPORT_NAME:
            yield from self._export_name(data)
            return True
        if option in (OPT_INFO, OPT_GO):
            return (yield from self._info(option, data))
        if option == OPT_STARTTLS:
            yield from self._start_tls()
        elif option == OPT_LIST:
            yield from self._list()
        elif option in (OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS):
            self._set_mode(option)
        elif option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
            yield from self._meta_context(option, data)
        else:
            self._error(option, REP_ERR_UNSUP, f"Unsupported option {_name(option)}")
        return False

    def _start_tls(self) -> Script:
        if self.encrypted:
            self._error(OPT_STARTTLS, REP_ERR_INVALID, "TLS already enabled")
        elif self._policy is TlsPolicy.OFF:
            self._error(OPT_STARTTLS, REP_ERR_POLICY, "TLS not configured")
        else:
            self._nothing_waits()
            self._reply(OPT_STARTTLS, REP_ACK)
            self._events.append(TlsAsked())
            yield PAUSE
            self.encrypted = True
            self.mode = Mode.SIMPLE
            self._contexts, self._contexts_of = {}, None

    def _set_mode(self, option: int) -> None:
        mode = Mode.EXTENDED if option == OPT_EXTENDED_HEADERS else Mode.STRUCTURED
        if mode > self._best:
            self._error(option, REP_ERR_UNSUP, f"Unsupported option {_name(option)}")
        elif mode <= self.mode:
            self._error(option, REP_ERR_INVALID, f"{_name(option)} is negotiated already")
        else:
            self.mode = mode
            self._contexts, self._contexts_of = {}, None  # their ids belong to the mode in which they were selected
            self._reply(option, REP_ACK)

    def _list(self) -> Script:
        self._events.append(ListAsked())
        answer = yield PAUSE
        if isinstance(answer, _Refuse):
            self._error(OPT_LIST, answer.reply, answer.words)
            return
        for name, description in answer:
            data = name.encode()
            self._reply(OPT_LIST, REP_SERVER, len(data).to_bytes(4, "big") + data + _cut(description))
        self._reply(OPT_LIST, REP_ACK)

    def _export_name(self, data: bytes) -> Script:
        self._events.append(ExportAsked(text_of(data, "The name of an export"), True))
        answer = yield PAUSE
        if isinstance(answer, _Refuse):
            raise RemoteProtocolError(f"EXPORT_NAME is refused: {answer.words}")
        self._tell_flags(answer)
        self._output += _SIZE_FLAGS.pack(answer.size, answer.flags) + (bytes(124) if self._zeroes else b"")
        self._ready(answer)

    def _info(self, option: int, data: bytes) -> Script:
        nbytes = int.from_bytes(data[:4], "big")
        rest = data[4 + nbytes :]
        if len(data) < 6 or len(rest) < 2 or len(rest) != 2 + 2 * int.from_bytes(rest[:2], "big"):
            self._error(option, REP_ERR_INVALID, f"The lengths in option {_name(option)} do not fit")
            return False
        try:
            name = text_of(data[4 : 4 + nbytes], "The name of an export")
        except RemoteProtocolError as error:
            self._error(option, REP_ERR_TOO_BIG if nbytes > MAX_STRING else REP_ERR_INVALID, str(error))
            return False
        wanted = {int.from_bytes(rest[at : at + 2], "big") for at in range(2, len(rest), 2)}
        self._events.append(ExportAsked(name, option == OPT_GO))
        answer = yield PAUSE
        if isinstance(answer, _Refuse):
            self._error(option, answer.reply, answer.words)
            return False
        self._tell_flags(answer)
        self._tell(option, answer, wanted)
        self._reply(option, REP_ACK)
        if option == OPT_GO:
            self._ready(answer)
        return option == OPT_GO

    def _tell(self, option: int, export: ExportInfo, wanted: set[int]) -> None:
        """All that the client wants to know about an export, and what it must know."""
        if INFO_NAME in wanted:
            self._reply(option, REP_INFO, _u16(INFO_NAME) + (export.canonical_name or export.name).encode())
        if INFO_DESCRIPTION in wanted and export.description:
            self._reply(option, REP_INFO, _u16(INFO_DESCRIPTION) + _cut(export.description))
        # Told in any case: a client that did not ask may still keep to it.
        sizes = (export.min_block, export.preferred_block, export.max_block)
        data = _u16(INFO_BLOCK_SIZE) + b"".join(size.to_bytes(4, "big") for size in sizes)
        self._reply(option, REP_INFO, data)
        self._reply(option, REP_INFO, _u16(INFO_EXPORT) + _SIZE_FLAGS.pack(export.size, export.flags))

    def _tell_flags(self, export: ExportInfo) -> None:
        """Set the flags that follow from what was negotiated."""
        export.flags = export.flags & ~(FLAG_SEND_DF | FLAG_BLOCK_STATUS_PAYLOAD) | FLAG_HAS_FLAGS
        if self.mode is not Mode.SIMPLE:
            export.flags |= FLAG_SEND_DF
        if self.mode is Mode.EXTENDED and self._contexts:
            export.flags |= FLAG_BLOCK_STATUS_PAYLOAD

    def _ready(self, export: ExportInfo) -> None:
        contexts = self._contexts if self._contexts_of == export.name else {}
        self._events.append(Ready(export, self.mode, contexts))

    def _meta_context(self, option: int, data: bytes) -> Script:
        if self.mode is Mode.SIMPLE:
            self._error(option, REP_ERR_INVALID, "Structured replies are not negotiated")
            return
        try:
            strings = _query_strings(data)
        except RemoteProtocolError as error:
            self._error(option, REP_ERR_INVALID, str(error))
            return
        if strings is None:
            self._error(option, REP_ERR_TOO_BIG, f"More than {MAX_QUERIES} queries")
            return
        export, *queries = strings
        select = option == OPT_SET_META_CONTEXT
        self._events.append(ContextsAsked(export, tuple(queries), select))
        answer = yield PAUSE
        if select:
            self._contexts, self._contexts_of = {}, None
        if isinstance(answer, _Refuse):
            self._error(option, answer.reply, answer.words)
            return
        for id, name in answer:
            self._reply(option, REP_META_CONTEXT, (id if select else 0).to_bytes(4, "big") + name.encode())
        if select:
            self._contexts, self._contexts_of = dict(answer), export
        self._reply(option, REP_ACK)

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self._output += _REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data

    def _error(self, option: int, kind: int, words: str) -> None:
        self._reply(option, kind, _cut(words))


_WITHOUT_DATA: Final = frozenset((OPT_LIST, OPT_STARTTLS, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS))


def _query_strings(data: bytes) -> list[str] | None:
    """The name of an export, and the queries for it; None: too many. Raises: RemoteProtocolError."""
    end = 4 + int.from_bytes(data[:4], "big")
    if len(data) < end + 4:
        raise RemoteProtocolError("The lengths in a question for metadata contexts do not fit")
    count, at = int.from_bytes(data[end : end + 4], "big"), end + 4
    if count > MAX_QUERIES:
        return None
    strings = [text_of(data[4:end], "The name of an export")]
    for _ in range(count):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if at + 4 > len(data) or end > len(data):
            raise RemoteProtocolError("The lengths in a question for metadata contexts do not fit")
        strings.append(text_of(data[at + 4 : end], "A question for metadata contexts"))
        at = end
    if at != len(data):
        raise RemoteProtocolError("The lengths in a question for metadata contexts do not fit")
    return strings


def _u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _cut(text: str) -> bytes:
    """A string of the protocol, cut to what is allowed."""
    return text.encode("utf-8", "replace").replace(b"\0", b"?")[:MAX_STRING].decode("utf-8", "ignore").encode()


def _name(option: int) -> str:
    return OPTION_NAMES.get(option, str(option))
