"""What a hostile client may try, and what the server's side of the codec does about it."""

import pytest

from aioblock.base.errors import RemoteProtocolError
from aioblock.nbd import errnos
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_CACHE,
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
    FLAG_BLOCK_STATUS_PAYLOAD,
    FLAG_HAS_FLAGS,
    FLAG_READ_ONLY,
    FLAG_SEND_DF,
    FLAG_SEND_FAST_ZERO,
    FLAG_SEND_FLUSH,
    FLAG_SEND_FUA,
    FLAG_SEND_TRIM,
    FLAG_SEND_WRITE_ZEROES,
    MAX_OPTION,
    MAX_OPTIONS,
    MAX_PAYLOAD,
    REP_ERR_INVALID,
    REP_ERR_TLS_REQD,
    REP_ERR_TOO_BIG,
    REP_ERR_UNSUP,
    Mode,
)
from aioblock.nbd.export import ExportInfo
from aioblock.nbd.packing import ReplyPacker
from aioblock.nbd.requests import Request, RequestReceiver, objection, pack_request
from aioblock.nbd.server_handshake import Ended, ExportAsked, ServerHandshake, TlsAsked, TlsPolicy

FLAGS = b"\0\0\0\3"


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    return b"IHAVEOPT" + number.to_bytes(4, "big") + (len(data) if length is None else length).to_bytes(4, "big") + data


def string(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(4, "big") + text


def go(name: bytes, *infos: int, count: int | None = None) -> bytes:
    number = len(infos) if count is None else count
    return string(name) + number.to_bytes(2, "big") + b"".join(info.to_bytes(2, "big") for info in infos)


def started(policy: TlsPolicy = TlsPolicy.OFF) -> ServerHandshake:
    handshake = ServerHandshake(tls=policy)
    assert handshake.feed(FLAGS) == []
    handshake.take_output()
    return handshake


def replies(handshake: ServerHandshake) -> list[tuple[int, int]]:
    """The option and kind of each reply in the output."""
    output, found, at = handshake.take_output(), [], 0
    while at < len(output):
        nbytes = int.from_bytes(output[at + 16 : at + 20], "big")
        found.append(
            (int.from_bytes(output[at + 8 : at + 12], "big"), int.from_bytes(output[at + 12 : at + 16], "big"))
        )
        assert nbytes <= MAX_OPTION
        at += 20 + nbytes
    return found


@pytest.mark.parametrize("flags", [4, 7, 1 << 31, 0xFFFFFFFF])
def test_unknown_client_flags(flags: int) -> None:
    with pytest.raises(RemoteProtocolError):
        ServerHandshake().feed(flags.to_bytes(4, "big"))


@pytest.mark.parametrize(
    "data",
    [
        option(3, length=(1 << 32) - 1),
        option(99, length=MAX_OPTION + 1),
        option(99, bytes(1 << 10), length=32 << 20),
        b"GET / HTTP/1.1\r\n",
        bytes(16),
        option(1, b"x" * 4097),
        option(1, b"\xff"),
        option(1, b"a\0b"),
    ],
    ids=["2^32-1", "64 KiB + 1", "32 MiB", "http", "zeroes", "long name", "no UTF-8", "NUL"],
)
def test_what_ends_the_connection(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        started().feed(data)


def test_an_unknown_option_of_64_kib_is_skipped() -> None:
    handshake = started()
    assert handshake.feed(option(99, bytes(MAX_OPTION)) + option(2)) == [Ended()]
    assert replies(handshake) == [(99, REP_ERR_UNSUP), (2, 1)]


def test_options_without_end() -> None:
    handshake = started()
    with pytest.raises(RemoteProtocolError):
        for _ in range(MAX_OPTIONS + 1):
            assert handshake.feed(option(99)) == []
            handshake.take_output()


LONG, BAD, NUL = b"x" * 4097, b"\xff\xfe", b"a\0b"
CONTEXT = string(b"base:allocation")


@pytest.mark.parametrize(
    ("number", "data", "error"),
    [
        (7, go(LONG), REP_ERR_TOO_BIG),
        (7, go(BAD), REP_ERR_INVALID),
        (6, go(NUL), REP_ERR_INVALID),
        (7, go(b"x", 3, count=2), REP_ERR_INVALID),
        (7, go(b"x", 3, count=0), REP_ERR_INVALID),
        (7, b"", REP_ERR_INVALID),
        (7, string(b"x", length=(1 << 32) - 1) + b"\0\0", REP_ERR_INVALID),
        (7, string(b"x", length=100) + b"\0\0", REP_ERR_INVALID),
        (10, string(b"disk") + b"\0\0\0\1", REP_ERR_INVALID),
        (10, string(b"disk") + b"\0\0\0\1" + CONTEXT + b"x", REP_ERR_INVALID),
        (10, string(b"disk") + b"\0\0\0\1" + string(b"q", length=(1 << 32) - 1), REP_ERR_INVALID),
        (10, string(b"disk") + (10**5).to_bytes(4, "big"), REP_ERR_TOO_BIG),
        (10, string(LONG) + bytes(4), REP_ERR_INVALID),
        (9, string(b"d") + b"\0\0\0\1" + string(LONG), REP_ERR_INVALID),
        (10, b"\0\0", REP_ERR_INVALID),
        (3, b"x", REP_ERR_INVALID),
        (5, b"x", REP_ERR_INVALID),
        (8, b"x", REP_ERR_INVALID),
        (8, b"", REP_ERR_INVALID),
        (11, bytes(8), REP_ERR_INVALID),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(number: int, data: bytes, error: int) -> None:
    handshake = started()
    assert handshake.feed(option(8)) == []
    handshake.take_output()
    assert handshake.feed(option(number, data)) == [], "its owner is not asked"
    assert replies(handshake) == [(number, error)]
    assert handshake.feed(option(2)) == [Ended()]


def test_contexts_before_structured_replies() -> None:
    handshake = started()
    assert handshake.feed(option(10, string(b"disk") + b"\0\0\0\1" + CONTEXT)) == []
    assert replies(handshake) == [(10, REP_ERR_INVALID)]


def test_words_are_cut() -> None:
    handshake = started()
    handshake.feed(option(7, go(b"x" * 4096)))
    handshake.refuse(REP_ERR_UNSUP, "é" * 4096)
    output = handshake.take_output()
    assert len(output) == 20 + 4096 and output[20:].decode()


def test_a_name_is_only_a_name() -> None:
    handshake = started()
    assert handshake.feed(option(7, go(b"../../etc/passwd", *[3] * 1000))) == [ExportAsked("../../etc/passwd", True)]


def test_an_owner_that_does_not_answer_is_not_fed_for_ever() -> None:
    handshake = started()
    handshake.feed(option(7, go(b"disk")))
    with pytest.raises(RemoteProtocolError):
        for _ in range(100):
            handshake.feed(bytes(10_000))


# TLS


def test_nothing_goes_before_tls_that_is_required() -> None:
    handshake = started(TlsPolicy.REQUIRED)
    for number in (3, 6, 7, 8, 9, 10, 11, 99):
        assert handshake.feed(option(number)) == []
        assert replies(handshake) == [(number, REP_ERR_TLS_REQD)]
    with pytest.raises(RemoteProtocolError):
        handshake.feed(option(1, b"disk"))


def test_plaintext_behind_the_option_that_begins_tls() -> None:
    with pytest.raises(RemoteProtocolError):
        started(TlsPolicy.OPTIONAL).feed(option(5) + option(8))
    handshake = started(TlsPolicy.REQUIRED)
    assert handshake.feed(option(5)) == [TlsAsked()]
    handshake.feed(option(8))  # it came before TLS was there
    with pytest.raises(RemoteProtocolError):
        handshake.tls_started()


def test_tls_forgets_what_was_before_it() -> None:
    handshake = started(TlsPolicy.OPTIONAL)
    handshake.feed(option(11) + option(10, string(b"disk") + b"\0\0\0\1" + CONTEXT))
    handshake.offer_contexts([(1, "base:allocation")])
    assert handshake.mode is Mode.EXTENDED
    handshake.feed(option(5))
    handshake.take_output()
    handshake.tls_started()
    assert handshake.mode is Mode.SIMPLE and handshake.encrypted
    handshake.feed(option(7, go(b"disk")))
    events = handshake.accept(ExportInfo("disk", 512))
    assert repr(events[0]).endswith("mode=<Mode.SIMPLE: 0>, contexts={})")
    assert started(TlsPolicy.OFF).feed(option(5)) == []


def test_tls_twice() -> None:
    handshake = started(TlsPolicy.OPTIONAL)
    handshake.feed(option(5))
    handshake.take_output()
    handshake.tls_started()
    assert handshake.feed(option(5)) == []
    assert replies(handshake) == [(5, REP_ERR_INVALID)]


# Requests

ALL = (
    FLAG_HAS_FLAGS
    | FLAG_SEND_FLUSH
    | FLAG_SEND_FUA
    | FLAG_SEND_TRIM
    | FLAG_SEND_WRITE_ZEROES
    | FLAG_SEND_FAST_ZERO
    | FLAG_SEND_DF
    | FLAG_BLOCK_STATUS_PAYLOAD
)
END = (1 << 64) - 1


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "error"),
    [
        (CMD_READ, 0, 0, 4096, 0),
        (CMD_READ, CMD_FLAG_DF | CMD_FLAG_FUA, 0, 4096, 0),
        (CMD_READ, 0, 4096, 0, 0),
        (CMD_READ, 0, END, 2, errnos.EINVAL),
        (CMD_READ, 0, 4096, 1, errnos.EINVAL),
        (CMD_READ, 0, 0, MAX_PAYLOAD + 1, errnos.EINVAL),
        (CMD_READ, CMD_FLAG_NO_HOLE, 0, 1, errnos.EINVAL),
        (CMD_READ, 1 << 15, 0, 1, errnos.EINVAL),
        (CMD_WRITE, CMD_FLAG_FUA, 0, 1, 0),
        (CMD_WRITE, 0, 4095, 2, errnos.ENOSPC),
        (CMD_WRITE, 0, END, 4096, errnos.ENOSPC),
        (CMD_WRITE, CMD_FLAG_DF, 0, 1, errnos.EINVAL),
        (CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO | CMD_FLAG_FUA, 0, 4096, 0),
        (CMD_WRITE_ZEROES, 0, 0, 1 << 63, errnos.ENOSPC),
        (CMD_TRIM, 0, 0, END, errnos.EINVAL),
        (CMD_TRIM, CMD_FLAG_FUA, 0, 1, 0),
        (CMD_FLUSH, 0, END, END, 0),
        (CMD_CACHE, 0, 0, 1, errnos.EINVAL),
        (CMD_RESIZE, 0, 0, 1, errnos.EINVAL),
        (CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, 0, 4096, 0),
        (CMD_BLOCK_STATUS, 0, 0, 0, errnos.EINVAL),
        (CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN, 0, 4096, 0),
        (99, 0, 0, 1, errnos.EINVAL),
    ],
)
def test_requests_are_judged(command: int, flags: int, offset: int, length: int, error: int) -> None:
    request = Request(command, flags, 1, offset, length)
    assert objection(request, ExportInfo("", 4096, ALL), Mode.EXTENDED)[0] == error


@pytest.mark.parametrize("command", [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES])
def test_nothing_is_written_to_a_read_only_export(command: int) -> None:
    export = ExportInfo("", 4096, ALL | FLAG_READ_ONLY)
    assert objection(Request(command, 0, 1, 0, 512), export, Mode.SIMPLE)[0] == errnos.EPERM


def test_what_is_not_offered_is_refused() -> None:
    export = ExportInfo("", 4096, FLAG_HAS_FLAGS, 512)
    for command, flags in (
        (CMD_FLUSH, 0),
        (CMD_TRIM, 0),
        (CMD_WRITE_ZEROES, 0),
        (CMD_WRITE, CMD_FLAG_FUA),
        (CMD_READ, CMD_FLAG_DF),
        (CMD_WRITE, CMD_FLAG_PAYLOAD_LEN),
    ):
        assert objection(Request(command, flags, 1, 0, 512), export, Mode.SIMPLE)[0] == errnos.EINVAL
    assert objection(Request(CMD_READ, 0, 1, 0, 100), export, Mode.SIMPLE)[0] == errnos.EINVAL


@pytest.mark.parametrize("mode", Mode)
def test_a_payload_that_is_too_long(mode: Mode) -> None:
    for nbytes in (MAX_PAYLOAD + 1, (1 << 32) - 1):
        with pytest.raises(RemoteProtocolError):
            RequestReceiver(mode).feed(pack_request(mode, CMD_WRITE, 0, 1, 0, nbytes))
    with pytest.raises(RemoteProtocolError):
        RequestReceiver(mode, max_payload=512).feed(pack_request(mode, CMD_WRITE, 0, 1, 0, 513))


def test_a_bad_magic() -> None:
    for data in (
        bytes(32),
        pack_request(Mode.EXTENDED, CMD_READ, 0, 1, 0, 1),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
    ):
        with pytest.raises(RemoteProtocolError):
            RequestReceiver(Mode.SIMPLE).feed(data)


def test_a_write_without_payload_in_extended_mode() -> None:
    head = bytearray(pack_request(Mode.EXTENDED, CMD_WRITE, 0, 1, 0, 512))
    head[4:6] = b"\0\0"
    (request,) = RequestReceiver(Mode.EXTENDED).feed(head)
    assert request.malformed and objection(request, ExportInfo("", 4096, ALL), Mode.EXTENDED)[0] == errnos.EINVAL


@pytest.mark.parametrize("mode", Mode)
def test_the_cookie_comes_back(mode: Mode) -> None:
    cookie = 0x0123456789ABCDEF
    packer, request = ReplyPacker(mode), Request(CMD_READ, 0, cookie, 0, 512)
    for reply in (packer.error(request, 22, "no"), packer.success(request), packer.read_head(request, 0, 512)):
        assert reply[8:16] == cookie.to_bytes(8, "big")


@pytest.mark.parametrize("code", [None, 0, 9999, 5])
def test_an_errno_without_a_number(code: int | None) -> None:
    assert errnos.to_wire(code) == errnos.EIO
