"""What a hostile server may try in the handshake, and what the client's side of the codec does about it."""

import pytest

from aioblock.base.errors import OptionRefused, RemoteProtocolError
from aioblock.nbd.client_handshake import ClientEvent, ClientHandshake
from aioblock.nbd.constants import MAX_OPTION_REPLIES, REP_ERR_UNSUP, Mode
from tests.kit.pieces import CUTS

GREETING = b"NBDMAGICIHAVEOPT\0\3"
GO, LIST, STARTTLS, CONTEXTS = 7, 3, 5, 10
NO = REP_ERR_UNSUP


def reply(option: int, kind: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    numbers = (option, kind, len(data) if length is None else length)
    return (0x0003E889045565A9).to_bytes(8, "big") + b"".join(n.to_bytes(4, "big") for n in numbers) + data


SIMPLE = GREETING + reply(11, NO) + reply(8, NO)
STRUCTURED = GREETING + reply(11, NO) + reply(8, 1)


def export(size: int, flags: int = 1) -> bytes:
    return reply(GO, 3, b"\0\0" + size.to_bytes(8, "big") + flags.to_bytes(2, "big"))


def sizes(small: int, preferred: int, large: int) -> bytes:
    return reply(GO, 3, b"\0\3" + b"".join(n.to_bytes(4, "big") for n in (small, preferred, large)))


def opened(data: bytes, cut: str = "whole") -> ClientHandshake:
    client = ClientHandshake("disk", contexts=["base:allocation"])
    events = [event for piece in CUTS[cut](data) for event in client.feed(piece)]
    assert events == [ClientEvent.READY]
    return client


ACK = reply(GO, 1)


@pytest.mark.parametrize("cut", CUTS)
def test_an_honest_server(cut: str) -> None:
    client = opened(SIMPLE + sizes(512, 4096, 1 << 25) + export(1 << 20) + ACK, cut)
    assert (client.info.size, client.info.min_block, client.mode) == (1 << 20, 512, Mode.SIMPLE)


@pytest.mark.parametrize("cut", CUTS)
def test_a_server_that_does_not_know_go(cut: str) -> None:
    data = SIMPLE + reply(GO, NO) + (1 << 20).to_bytes(8, "big") + b"\0\1"
    assert opened(data, cut).info.size == 1 << 20
    assert (
        opened(b"NBDMAGICIHAVEOPT\0\0" + (1 << 20).to_bytes(8, "big") + b"\0\1" + bytes(124), cut).info.size == 1 << 20
    )


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"NBDMAGICNBDMAGIC\0\3",
        GREETING + b"x" * 20,
        GREETING + reply(8, 1),
        GREETING + reply(11, 2),
        GREETING + reply(11, 1, b"x"),
        GREETING + reply(11, NO, length=(1 << 32) - 1),
        SIMPLE + export(1 << 63) + ACK,
        SIMPLE + export((1 << 64) - 1) + ACK,
        SIMPLE + sizes(512, 4096, 1 << 25) + export(1000) + ACK,
        SIMPLE + sizes(3, 4096, 1 << 25) + export(512) + ACK,
        SIMPLE + sizes(0, 4096, 1 << 25) + export(512) + ACK,
        SIMPLE + sizes(1 << 17, 1 << 17, 1 << 25) + export(0) + ACK,
        SIMPLE + sizes(512, 256, 1 << 25) + export(512) + ACK,
        SIMPLE + sizes(512, 513, 1 << 25) + export(512) + ACK,
        SIMPLE + sizes(512, 4096, 4097) + export(512) + ACK,
        SIMPLE + sizes(512, 4096, 512) + export(512) + ACK,
        SIMPLE + ACK,
        SIMPLE + reply(GO, 3, b"\0"),
        SIMPLE + reply(GO, 3, b"\0\0" + bytes(5)),
        SIMPLE + reply(GO, 3, b"\0\3" + bytes(5)),
        SIMPLE + reply(GO, 3, b"\0\1\xff"),
        SIMPLE + reply(GO, 3, b"\0\2" + b"x" * 4097),
        SIMPLE + export(512) + reply(GO, 1, b"x"),
        STRUCTURED + reply(CONTEXTS, 4, b"\0\0\0\1"),
        STRUCTURED + reply(CONTEXTS, 4, b"\0\0\0\1base:allocation") * 2,
        STRUCTURED + reply(CONTEXTS, 4, b"\0\0\0\1one") + reply(CONTEXTS, 4, b"\0\0\0\1two"),
        STRUCTURED + reply(CONTEXTS, 4, b"\0\0\0\1\xff"),
        STRUCTURED + reply(CONTEXTS, 2),
    ],
)
def test_what_no_server_may_send(data: bytes, cut: str) -> None:
    with pytest.raises(RemoteProtocolError):
        opened(data, cut)


def test_information_without_end() -> None:
    client = ClientHandshake("disk")
    client.feed(SIMPLE)
    unknown = reply(GO, 3, b"\xff\xff") * 100
    with pytest.raises(RemoteProtocolError, match=f"More than {MAX_OPTION_REPLIES}"):
        for _ in range(MAX_OPTION_REPLIES // 100 + 1):
            assert client.feed(unknown) == []


def test_a_context_that_was_not_asked_for_is_left_out() -> None:
    data = STRUCTURED + reply(CONTEXTS, 4, b"\0\0\0\1x:y") + reply(CONTEXTS, 1)
    assert opened(data + export(512) + ACK).contexts == {}


def test_contexts_are_refused() -> None:
    data = STRUCTURED + reply(CONTEXTS, 4, b"\0\0\0\1base:allocation") + reply(CONTEXTS, NO)
    assert opened(data + export(512) + ACK).contexts == {}


@pytest.mark.parametrize(
    "data",
    [
        reply(LIST, 2, b"\0\0\0\5disk"),
        reply(LIST, 2, b"\xff\xff\xff\xffdisk"),
        reply(LIST, 2, b"\0\0"),
        reply(LIST, 2, b"\0\0\0\1\xff"),
        reply(LIST, 3, b"\0\0\0\1x"),
    ],
)
def test_a_list_that_no_server_may_send(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ClientHandshake(list_exports=True).feed(SIMPLE + data)


def test_words_of_a_server() -> None:
    with pytest.raises(OptionRefused) as caught:
        ClientHandshake("disk").feed(SIMPLE + reply(GO, NO + 1, b"\xffno" * 3000))
    assert len(caught.value.words) <= 4096


# TLS


@pytest.mark.parametrize(
    "data",
    [
        b"NBDMAGICIHAVEOPT\0\0",
        b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53" + bytes(136),
        GREETING + reply(STARTTLS, 1) + b"x",
    ],
    ids=["not fixed newstyle", "oldstyle", "data before TLS"],
)
def test_tls_is_not_given_up(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ClientHandshake("disk", tls=True).feed(data)


def test_tls_declined() -> None:
    for error in (NO, NO + 1, NO + 98):
        with pytest.raises(OptionRefused):
            ClientHandshake("disk", tls=True).feed(GREETING + reply(STARTTLS, error))


def test_data_before_tls_is_there() -> None:
    client = ClientHandshake("disk", tls=True)
    assert client.feed(GREETING + reply(STARTTLS, 1)) == [ClientEvent.START_TLS]
    client.feed(reply(11, 1))
    with pytest.raises(RemoteProtocolError):
        client.tls_started()
