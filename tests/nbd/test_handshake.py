"""Both sides of the handshake, each against the other."""

from collections.abc import Sequence

import pytest

from aioblock.base.errors import LocalProtocolError, OptionRefused, RemoteProtocolError
from aioblock.nbd.client_handshake import ClientEvent, ClientHandshake
from aioblock.nbd.constants import (
    CONTEXT_ALLOCATION,
    FLAG_BLOCK_STATUS_PAYLOAD,
    FLAG_HAS_FLAGS,
    FLAG_SEND_DF,
    FLAG_SEND_FLUSH,
    REP_ERR_POLICY,
    REP_ERR_TLS_REQD,
    REP_ERR_UNKNOWN,
    Mode,
)
from aioblock.nbd.export import ExportInfo
from aioblock.nbd.server_handshake import (
    ContextsAsked,
    Ended,
    ExportAsked,
    ListAsked,
    Ready,
    ServerEvent,
    ServerHandshake,
    TlsAsked,
    TlsPolicy,
)
from tests.kit.pieces import CUTS

DISK = ExportInfo("disk", 1 << 20, FLAG_HAS_FLAGS | FLAG_SEND_FLUSH, 512, 4096, 1 << 25, "a disk", "canonical")
CONTEXTS = [(7, CONTEXT_ALLOCATION), (9, "qemu:dirty-bitmap:b")]


class Owner:
    """Answers a server's events from a table of exports."""

    def __init__(self, handshake: ServerHandshake, exports: Sequence[ExportInfo] = (DISK,)) -> None:
        self.handshake = handshake
        self.exports = {export.name: export for export in exports}
        self.seen: list[ServerEvent] = []
        self.ready: Ready | None = None

    def serve(self, events: list[ServerEvent]) -> None:
        self.seen += events
        for event in events:
            self.serve(self._answer(event))

    def _answer(self, event: ServerEvent) -> list[ServerEvent]:
        match event:
            case ListAsked():
                return self.handshake.list_exports((e.name, e.description) for e in self.exports.values())
            case ExportAsked(name):
                if name in self.exports:
                    return self.handshake.accept(self.exports[name])
                return self.handshake.refuse(REP_ERR_UNKNOWN, f"export '{name}' not present")
            case ContextsAsked(name, queries, select):
                if name not in self.exports:
                    return self.handshake.refuse(REP_ERR_UNKNOWN, f"export '{name}' not present")
                wanted = CONTEXTS if not queries and not select else [c for c in CONTEXTS if c[1] in queries]
                return self.handshake.offer_contexts(wanted)
            case TlsAsked():
                return self.handshake.tls_started()
            case Ready():
                self.ready = event
        return []


def shake(client: ClientHandshake, server: ServerHandshake, cut: str = "whole", owner: Owner | None = None) -> Owner:
    """Let both talk until neither has anything to say."""
    owner = owner or Owner(server)
    while True:
        to_client, to_server = server.take_output(), client.take_output()
        if not to_client and not to_server:
            return owner
        for piece in CUTS[cut](to_client):
            for event in client.feed(piece):
                if event is ClientEvent.START_TLS:
                    client.tls_started()
        for piece in CUTS[cut](to_server):
            owner.serve(server.feed(piece))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("best", Mode)
def test_an_export_is_opened(cut: str, tls: bool, mode: Mode, best: Mode) -> None:
    client = ClientHandshake("disk", tls=tls, mode=mode, contexts=[CONTEXT_ALLOCATION, "none:such"])
    server = ServerHandshake(tls=TlsPolicy.REQUIRED if tls else TlsPolicy.OFF, mode=best)
    owner = shake(client, server, cut)
    agreed = min(mode, best)
    assert client.done and server.done and client.mode == agreed
    assert owner.ready is not None and owner.ready.mode is agreed
    assert (client.info.size, client.info.min_block, client.info.max_block) == (1 << 20, 512, 1 << 25)
    assert client.info.flags == owner.ready.export.flags
    assert bool(client.info.flags & FLAG_SEND_DF) == (agreed is not Mode.SIMPLE)
    assert bool(client.info.flags & FLAG_BLOCK_STATUS_PAYLOAD) == (agreed is Mode.EXTENDED)
    assert client.contexts == ({} if agreed is Mode.SIMPLE else {CONTEXT_ALLOCATION: 7})
    assert owner.ready.contexts == ({} if agreed is Mode.SIMPLE else {7: CONTEXT_ALLOCATION})
    assert DISK.flags == FLAG_HAS_FLAGS | FLAG_SEND_FLUSH, "what was given is left alone"


@pytest.mark.parametrize("cut", CUTS)
def test_what_comes_behind_is_left_over(cut: str) -> None:
    client, server = ClientHandshake("disk"), ServerHandshake()
    owner = Owner(server)
    while not server.done:
        for piece in CUTS[cut](server.take_output()):
            client.feed(piece)
        data = client.take_output()
        owner.serve(server.feed(data + (b"tail" if b"disk" in data else b"")))
    client.feed(server.take_output() + b"more")
    assert (client.leftover, server.leftover) == (b"more", b"tail")
    assert client.feed(b"!") == [] and client.leftover == b"more!"


@pytest.mark.parametrize("cut", CUTS)
def test_exports_are_listed(cut: str) -> None:
    client, server = ClientHandshake(list_exports=True), ServerHandshake()
    second = ExportInfo("", 0, FLAG_HAS_FLAGS)
    owner = Owner(server, [DISK, second])
    shake(client, server, cut, owner)
    assert client.done and server.done and owner.seen[-1] == Ended()
    first, other = client.exports
    assert first.info.description == "a disk" and first.info.canonical_name == "canonical"
    assert first.info.size == 1 << 20 and first.contexts == [CONTEXT_ALLOCATION, "qemu:dirty-bitmap:b"]
    assert other.info.name == "" and other.info.size == 0


def test_a_refused_export_is_told() -> None:
    client = ClientHandshake("nothing")
    with pytest.raises(OptionRefused) as caught:
        shake(client, ServerHandshake())
    assert caught.value.reply == REP_ERR_UNKNOWN
    assert str(caught.value) == "Requested export not available\nserver reported: export 'nothing' not present"


def test_tls_is_not_given_up() -> None:
    with pytest.raises(OptionRefused) as caught:
        shake(ClientHandshake("disk", tls=True), ServerHandshake())
    assert caught.value.reply == REP_ERR_POLICY
    with pytest.raises(OptionRefused) as caught:
        shake(ClientHandshake("disk"), ServerHandshake(tls=TlsPolicy.REQUIRED))
    assert caught.value.reply == REP_ERR_TLS_REQD


def test_a_name_that_no_protocol_carries() -> None:
    with pytest.raises(LocalProtocolError):
        ClientHandshake("x" * 4097)
    with pytest.raises(LocalProtocolError):
        ClientHandshake("a\0b")


def test_an_answer_that_nobody_waits_for() -> None:
    with pytest.raises(LocalProtocolError):
        ServerHandshake().tls_started()


def _option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + number.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data


def _string(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text


@pytest.mark.parametrize(("used", "count"), [(b"disk", 1), (b"other", 0)])
def test_contexts_of_another_export_do_not_count(used: bytes, count: int) -> None:
    server = ServerHandshake()
    owner = Owner(server, [DISK, ExportInfo("other", 512)])
    contexts = _string(b"disk") + b"\0\0\0\1" + _string(CONTEXT_ALLOCATION.encode())
    go = _string(used) + b"\0\0"
    owner.serve(server.feed(b"\0\0\0\3" + _option(8) + _option(10, contexts) + _option(7, go)))
    assert owner.ready is not None and len(owner.ready.contexts) == count


def test_the_oldest_kind_of_server() -> None:
    greeting = b"NBDMAGIC" + bytes.fromhex("00420281861253").rjust(8, b"\0") + (1 << 20).to_bytes(8, "big")
    client = ClientHandshake()
    assert client.feed(greeting + b"\0\0\0\x03" + bytes(124)) == [ClientEvent.READY]
    assert client.info.size == 1 << 20 and client.mode is Mode.SIMPLE
    with pytest.raises(RemoteProtocolError):
        ClientHandshake("name").feed(greeting)
    with pytest.raises(RemoteProtocolError):
        ClientHandshake(tls=True).feed(greeting)
