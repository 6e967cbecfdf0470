"""Requests and replies, packed by one side and received by the other, in pieces of any size."""

import errno
from collections.abc import Iterator

import pytest

from aioblock.base.errors import LocalProtocolError, RemoteProtocolError
from aioblock.nbd import errnos
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_FLAG_FUA,
    CMD_FLAG_PAYLOAD_LEN,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    STATE_HOLE,
    STATE_ZERO,
    Mode,
)
from aioblock.nbd.packing import ReplyPacker, pack_extents
from aioblock.nbd.receiver import SCRATCH
from aioblock.nbd.replies import ReadReply, Reply, StatusReply
from aioblock.nbd.reply_receiver import ReplyReceiver
from aioblock.nbd.requests import Request, RequestReceiver, pack_filter, pack_request
from tests.kit.pieces import CUTS

CHUNKED = [Mode.STRUCTURED, Mode.EXTENDED]


def feed(receiver: ReplyReceiver, data: bytes, cut: str = "whole") -> list[Reply]:
    return [reply for piece in CUTS[cut](data) for reply in receiver.feed(piece)]


def awaiting(mode: Mode, *replies: Reply) -> ReplyReceiver:
    receiver = ReplyReceiver(mode)
    for cookie, reply in enumerate(replies):
        receiver.expect(cookie, reply)
    return receiver


def asked(command: int, cookie: int = 0, offset: int = 0, length: int = 0) -> Request:
    return Request(command, 0, cookie, offset, length)


# Requests


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("mode", Mode)
def test_requests_arrive(mode: Mode, cut: str) -> None:
    receiver = RequestReceiver(mode)
    long = bytes(range(256)) * 256
    stream = pack_request(mode, CMD_READ, 0, 1, 512, 4096)
    stream += pack_request(mode, CMD_WRITE, CMD_FLAG_FUA, 2, 1 << 40, len(long)) + long
    stream += pack_request(mode, CMD_WRITE, 0, 3, 0, 0)
    stream += pack_request(mode, CMD_FLUSH, 0, (1 << 64) - 1, 0, 0)
    found = [request for piece in CUTS[cut](stream) for request in receiver.feed(piece)]
    assert [(r.command, r.cookie, r.offset, r.length) for r in found] == [
        (CMD_READ, 1, 512, 4096),
        (CMD_WRITE, 2, 1 << 40, len(long)),
        (CMD_WRITE, 3, 0, 0),
        (CMD_FLUSH, (1 << 64) - 1, 0, 0),
    ]
    assert found[1].data == long and found[1].flags & CMD_FLAG_FUA and found[2].data == b""
    assert receiver.at_boundary
    receiver.feed(b"\x25")
    assert not receiver.at_boundary


@pytest.mark.parametrize("cut", CUTS)
def test_a_filter_of_contexts_arrives(cut: str) -> None:
    payload = pack_filter(1 << 40, (3, 5))
    stream = pack_request(Mode.EXTENDED, CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN, 1, 0, len(payload)) + payload
    stream += pack_request(Mode.EXTENDED, CMD_TRIM, CMD_FLAG_PAYLOAD_LEN, 2, 0, 100) + bytes(100)
    stream += pack_request(Mode.EXTENDED, CMD_TRIM, 0, 3, 0, 1 << 40)
    receiver = RequestReceiver(Mode.EXTENDED)
    first, second, third = (request for piece in CUTS[cut](stream) for request in receiver.feed(piece))
    assert (first.length, first.contexts, first.malformed) == (1 << 40, (3, 5), False)
    assert second.malformed and (third.length, third.malformed) == (1 << 40, False)


# Replies


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("mode", Mode)
def test_replies_arrive_in_any_order(mode: Mode, cut: str) -> None:
    content = bytes(range(251)) * 200
    buffers = [bytearray(len(content)) for _ in range(2)]
    reads = [ReadReply(100 * number, memoryview(buffer)) for number, buffer in enumerate(buffers)]
    flush, write = Reply(CMD_FLUSH), Reply(CMD_WRITE, 8, 8)
    receiver = awaiting(mode, reads[0], flush, reads[1], write)
    packer = ReplyPacker(mode)
    stream = packer.error(asked(CMD_WRITE, 3, 8), errnos.ENOSPC, "full up")
    stream += packer.read_head(asked(CMD_READ, 2, 100), 100, len(content)) + content
    stream += packer.success(asked(CMD_FLUSH, 1))
    stream += packer.read_head(asked(CMD_READ, 0), 0, len(content)) + content[::-1]
    assert feed(receiver, stream, cut) == [write, reads[1], flush, reads[0]]
    assert buffers == [content[::-1], content] and not receiver.pending and receiver.at_boundary
    assert write.error is not None and write.error.errno == errno.ENOSPC
    assert getattr(write.error, "__notes__", []) == ([] if mode is Mode.SIMPLE else ["The server says: full up"])
    assert all(reply.error is None for reply in (*reads, flush))


def test_receivers_share_memory_between_messages() -> None:
    scratch = bytearray(SCRATCH)
    receivers = [RequestReceiver(Mode.SIMPLE, scratch=scratch) for _ in range(3)]
    data = bytes(range(200))
    streams = [pack_request(Mode.SIMPLE, CMD_WRITE, 0, n, n, len(data)) + data[::-1][n:] + data[:n] for n in range(3)]
    found: list[Request] = []
    for at in range(len(streams[0])):
        for receiver, stream in zip(receivers, streams, strict=True):
            assert receiver.get_buffer().obj is scratch
            receiver.get_buffer()  # asked for memory again: nothing had come
            assert receiver.at_boundary is (at == 0)
            found += receiver.feed(stream[at : at + 1])
    assert [(request.cookie, request.offset) for request in found] == [(0, 0), (1, 1), (2, 2)]
    assert [bytes(request.data or b"") for request in found] == [stream[-len(data) :] for stream in streams]


def test_a_long_read_is_received_in_place() -> None:
    buffer = bytearray(1 << 20)
    receiver = awaiting(Mode.SIMPLE, ReadReply(0, memoryview(buffer)))
    receiver.feed(ReplyPacker(Mode.SIMPLE).read_head(asked(CMD_READ), 0, len(buffer)) + b"abc")
    room = receiver.get_buffer()
    assert len(room) == len(buffer) - 3
    room[:2] = b"de"
    assert receiver.buffer_updated(2) == [] and buffer[:6] == b"abcde\0"
    room = receiver.get_buffer()
    room[:] = b"z" * len(room)
    (done,) = receiver.buffer_updated(len(room))
    assert done.error is None and buffer[-1:] == b"z"


@pytest.mark.parametrize("mode", Mode)
def test_an_abandoned_read_touches_nothing(mode: Mode) -> None:
    content = b"x" * (1 << 17)
    stream = ReplyPacker(mode).read_head(asked(CMD_READ), 0, len(content)) + content
    for at in (0, 10, 40, 60, 100, 50000, len(stream) - 1):
        buffer = bytearray(len(content))
        reply, next_ = ReadReply(0, memoryview(buffer)), Reply(CMD_FLUSH)
        receiver = awaiting(mode, reply, next_)
        assert receiver.feed(stream[:at]) == []
        before = bytes(buffer)
        receiver.abandon(reply)
        rest = stream[at:] + ReplyPacker(mode).success(asked(CMD_FLUSH, 1))
        assert receiver.feed(rest) == [reply, next_] and buffer == before, at
        buffer += b"the owner may resize it"


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("mode", CHUNKED)
def test_a_read_in_chunks(mode: Mode, cut: str) -> None:
    buffer = bytearray(b"\xff" * 1000)
    read = ReadReply(5000, memoryview(buffer))
    packer, request = ReplyPacker(mode), asked(CMD_READ, 0, 5000)
    stream = packer.hole(request, 5100, 700, last=False)
    stream += packer.read_head(request, 5900, 100, last=False) + b"c" * 100
    stream += packer.read_head(request, 5000, 100, last=False) + b"a" * 100
    stream += packer.read_head(request, 5800, 100, last=False) + b"b" * 100
    stream += packer.success(request)
    assert feed(awaiting(mode, read), stream, cut) == [read]
    assert read.error is None and buffer == b"a" * 100 + bytes(700) + b"b" * 100 + b"c" * 100


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize("parts", [[], [(0, 50)], [(50, 50)], [(0, 40), (60, 40)]], ids=repr)
def test_a_read_with_a_gap_fails_alone(mode: Mode, parts: list[tuple[int, int]]) -> None:
    read = ReadReply(0, memoryview(bytearray(100)))
    packer, request = ReplyPacker(mode), asked(CMD_READ)
    stream = b"".join(packer.read_head(request, at, n, last=False) + bytes(n) for at, n in parts)
    assert feed(awaiting(mode, read), stream + packer.success(request)) == [read]
    assert read.error is not None and read.error.errno == errno.EIO


def _bad_reads(mode: Mode) -> Iterator[tuple[str, bytes]]:
    packer, request = ReplyPacker(mode), asked(CMD_READ)
    ten = packer.read_head(request, 10, 10, last=False) + bytes(10)
    yield "twice", ten + ten
    yield "overlap", ten + packer.read_head(request, 19, 2) + bytes(2)
    yield "overlap from below", ten + packer.read_head(request, 9, 2) + bytes(2)
    yield "within", packer.read_head(request, 0, 100, last=False) + bytes(100) + ten
    yield "over a hole", packer.hole(request, 0, 100, last=False) + ten
    yield "behind the end", packer.read_head(request, 95, 6) + bytes(6)
    yield "before the begin", packer.read_head(request, (1 << 64) - 1, 2) + bytes(2)
    yield "hole behind the end", packer.hole(request, 0, 101)
    yield "hole of 0", packer.hole(request, 0, 0)
    yield "no data", packer.read_head(request, 0, 0)
    yield "NONE that is not the last", packer._chunk(request, 0, 0, False)
    yield "NONE with content", packer._chunk(request, 0, 1, True) + b"x"
    yield "a short hole", packer._chunk(request, 2, 11, True) + bytes(12)
    yield "an unknown type", packer._chunk(request, 3, 0, True)
    yield "extents", packer.extents(request, 1, pack_extents([1], [0], wide=mode is Mode.EXTENDED), last=True)
    yield "error 0", packer.error(request, 0, "fine")
    yield "error without room", packer._chunk(request, 0x8001, 5, True) + bytes(6)
    yield "long error", packer._chunk(request, 0x8001, 6 + 4096 + 9, True)
    yield "message longer than its chunk", packer._chunk(request, 0x8001, 8, True) + b"\0\0\0\5\0\3ab"
    yield "offset error without offset", packer._chunk(request, 0x8002, 6, True) + b"\0\0\0\5\0\0"
    yield "unknown cookie", packer.success(asked(CMD_READ, 1))
    yield "simple", ReplyPacker(Mode.SIMPLE).success(request)
    yield "of the other mode", ReplyPacker(CHUNKED[mode is Mode.STRUCTURED]).success(request)
    yield "bad magic", b"HTTP/1.1 400 Bad Request, and so on"
    yield "empty chunks for ever", packer.error(request, 5, "again", last=False) * 2000
    yield "done, and more", packer.read_head(request, 0, 100) + bytes(100) + packer.success(request)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("mode", CHUNKED)
def test_what_no_server_may_send(mode: Mode, cut: str) -> None:
    for what, stream in _bad_reads(mode):
        receiver = awaiting(mode, ReadReply(0, memoryview(bytearray(100))))
        with pytest.raises(RemoteProtocolError):
            feed(receiver, stream, cut)
            pytest.fail(what)


@pytest.mark.parametrize("mode", Mode)
def test_what_was_complete_before_is_done(mode: Mode) -> None:
    done, pending = Reply(CMD_FLUSH), Reply(CMD_FLUSH)
    receiver = awaiting(mode, done, pending)
    with pytest.raises(RemoteProtocolError):
        feed(receiver, ReplyPacker(mode).success(asked(CMD_FLUSH)) * 2)
    assert receiver.finished == [done] and done.done and not pending.done


def test_what_no_server_may_send_in_simple_mode() -> None:
    for stream in (ReplyPacker(Mode.STRUCTURED).success(asked(CMD_READ)), bytes(16), b"\x67\x44\x66\x98" + b"\1" * 12):
        with pytest.raises(RemoteProtocolError):
            feed(awaiting(Mode.SIMPLE, Reply(CMD_FLUSH)), stream)


def test_a_simple_reply_among_chunks() -> None:
    packer = ReplyPacker(Mode.STRUCTURED)
    simple = ReplyPacker(Mode.SIMPLE)
    flush = Reply(CMD_FLUSH)
    assert feed(awaiting(Mode.STRUCTURED, flush), simple.success(asked(CMD_FLUSH))) == [flush]
    with pytest.raises(RemoteProtocolError):
        stream = packer.error(asked(CMD_FLUSH), 5, last=False) + simple.success(asked(CMD_FLUSH))
        feed(awaiting(Mode.STRUCTURED, Reply(CMD_FLUSH)), stream)
    with pytest.raises(RemoteProtocolError):
        status = StatusReply(0, 100, frozenset((1,)))
        feed(awaiting(Mode.STRUCTURED, status), simple.success(asked(CMD_BLOCK_STATUS)))


@pytest.mark.parametrize("mode", CHUNKED)
def test_an_error_before_data(mode: Mode) -> None:
    read = ReadReply(0, memoryview(bytearray(100)))
    packer, request = ReplyPacker(mode), asked(CMD_READ)
    stream = packer.error(request, 12345, "odd", at=50, last=False)
    stream += packer.read_head(request, 0, 100) + bytes(100)
    assert feed(awaiting(mode, read), stream) == [read]
    assert read.error is not None and read.error.errno == errno.EINVAL


def test_a_cookie_in_use() -> None:
    receiver = awaiting(Mode.SIMPLE, Reply(CMD_FLUSH))
    with pytest.raises(LocalProtocolError):
        receiver.expect(0, Reply(CMD_FLUSH))


# Block status


def status(mode: Mode, *contexts: tuple[int, list[int], list[int]]) -> bytes:
    packer, request = ReplyPacker(mode), asked(CMD_BLOCK_STATUS, 0, 4096)
    return b"".join(
        packer.extents(request, id, pack_extents(lengths, flags, wide=mode is Mode.EXTENDED), last=False)
        for id, lengths, flags in contexts
    ) + packer.success(request)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("mode", CHUNKED)
def test_extents_of_several_contexts(mode: Mode, cut: str) -> None:
    reply = StatusReply(4096, 1000, frozenset((1, 2)))
    stream = status(mode, (2, [600, 1000, 8], [1, 0, 1]), (1, [512], [STATE_HOLE | STATE_ZERO]))
    assert feed(awaiting(mode, reply), stream, cut) == [reply]
    assert reply.error is None
    assert repr(reply.extents) == "{2: Extents([(600, 1), (400, 0)]), 1: Extents([(512, 3)])}"


@pytest.mark.parametrize("mode", CHUNKED)
def test_a_context_that_is_left_out(mode: Mode) -> None:
    reply = StatusReply(4096, 1000, frozenset((1, 2)))
    assert feed(awaiting(mode, reply), status(mode, (2, [600], [0]))) == [reply]
    assert reply.error is not None and reply.error.errno == errno.EIO


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize(
    "contexts",
    [
        [(1, [], [])],
        [(1, [0], [0])],
        [(1, [512, 0], [0, 0])],
        [(3, [512], [0])],
        [(1, [512], [0]), (1, [512], [0])],
    ],
    ids=["none", "of 0", "of 0 behind", "unknown context", "twice"],
)
def test_extents_that_no_server_may_send(mode: Mode, contexts: list[tuple[int, list[int], list[int]]]) -> None:
    with pytest.raises(RemoteProtocolError):
        feed(awaiting(mode, StatusReply(4096, 1000, frozenset((1, 2)))), status(mode, *contexts))


@pytest.mark.parametrize("mode", CHUNKED)
def test_one_extent_is_one(mode: Mode) -> None:
    one = StatusReply(4096, 1000, frozenset((1,)), one=True)
    feed(awaiting(mode, one), status(mode, (1, [(1 << 32) - 1], [0])))
    assert repr(one.extents) == "{1: Extents([(1000, 0)])}"
    with pytest.raises(RemoteProtocolError):
        reply = StatusReply(4096, 1000, frozenset((1,)), one=True)
        feed(awaiting(mode, reply), status(mode, (1, [500, 500], [0, 1])))


def test_a_count_that_does_not_fit() -> None:
    packer, request = ReplyPacker(Mode.EXTENDED), asked(CMD_BLOCK_STATUS, 0, 4096)
    good = packer.extents(request, 1, pack_extents([100], [0], wide=True), last=True)
    assert feed(awaiting(Mode.EXTENDED, StatusReply(4096, 100, frozenset((1,)))), good)
    bad = bytearray(good)
    bad[32 + 7] = 2
    with pytest.raises(RemoteProtocolError):
        feed(awaiting(Mode.EXTENDED, StatusReply(4096, 100, frozenset((1,)))), bytes(bad))
