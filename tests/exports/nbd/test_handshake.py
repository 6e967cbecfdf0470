"""What clients may try before they have chosen an export (rows N1 to N4 of the hostile input)."""

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from aioblock.exports.nbd.export import NbdExport
from aioblock.exports.nbd.limits import NbdLimits
from aioblock.exports.nbd.server import NbdServer, serve
from aioblock.nbd.constants import (
    MAX_OPTION,
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT,
    OPT_STARTTLS,
    OPT_STRUCTURED_REPLY,
    OPTION_MAGIC,
    REP_ACK,
    REP_ERR_INVALID,
    REP_ERR_POLICY,
    REP_ERR_TLS_REQD,
    REP_ERR_TOO_BIG,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
    REP_META_CONTEXT,
    REP_SERVER,
)
from tests.kit.raw_nbd_client import RawClient, connected
from tests.kit.scripted import Script, opened
from tests.kit.watching import until

SHORT = NbdLimits(handshake_timeout=0.05)


def packed(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text


def go(name: bytes) -> bytes:
    return packed(name) + bytes(2)


async def gone(server: NbdServer) -> None:
    while server.connections:
        await asyncio.wait([connection.gone for connection in server.connections])


# N1: time and flags


@pytest.mark.parametrize("sent", [b"", bytes(3), (3).to_bytes(4, "big") + bytes(10)], ids=["nothing", "3", "14"])
async def test_a_client_that_says_nothing_is_dropped(path: str, sent: bytes) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path, limits=SHORT) as server, connected(path) as client:
        client.writer.write(sent)
        await client.at_end()
        assert not server.connections


async def test_the_deadline_is_for_all_of_the_handshake(path: str) -> None:
    """However many options come before it: else this never ends."""
    async with opened(Script(4096)) as disk, await serve(disk, path, limits=SHORT) as server, connected(path) as client:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.greet()
            while True:
                await client.option(OPT_LIST)
        await gone(server)


async def test_unknown_client_flags(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path), connected(path) as client:
        await client.greet(flags=4)
        assert await client.at_end()


async def test_more_clients_than_allowed_wait(path: str) -> None:
    limits = NbdLimits(connections=2)
    async with opened(Script(4096)) as disk, await serve(disk, path, limits=limits) as server:
        first, second, third = [await RawClient.connect(path) for _ in range(3)]
        await first.open()
        await second.open()
        opening = asyncio.create_task(third.open())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not opening.done()
        assert len(server.connections) == 2
        await first.close()
        await opening
        for client in (second, third):
            await client.close()


async def test_a_cut_at_every_byte_of_the_handshake(path: str) -> None:
    stream = (3).to_bytes(4, "big")
    for option, data in ((OPT_STRUCTURED_REPLY, b""), (OPT_LIST, b""), (OPT_GO, go(b""))):
        stream += OPTION_MAGIC.to_bytes(8, "big") + option.to_bytes(4, "big") + packed(data)
    async with opened(Script(4096)) as disk, await serve(disk, path) as server:
        for at in range(len(stream) + 1):
            async with connected(path) as client:
                client.writer.write(stream[:at])
        await gone(server)
        assert server.resources.budget.held == 0
        async with connected(path) as client:
            await client.open()


# N2: options


@pytest.mark.parametrize(
    "data",
    [
        OPTION_MAGIC.to_bytes(8, "big") + (99).to_bytes(4, "big") + b"\xff" * 4,
        OPTION_MAGIC.to_bytes(8, "big") + (99).to_bytes(4, "big") + (MAX_OPTION + 1).to_bytes(4, "big"),
        bytes(16),
    ],
    ids=["length 2^32-1", "length over the cap", "magic"],
)
async def test_an_option_that_makes_no_sense(path: str, data: bytes) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path), connected(path) as client:
        await client.greet()
        client.writer.write(data)
        assert await client.at_end()


async def test_unknown_options_are_refused_up_to_a_number(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aioblock.nbd.server_handshake.MAX_OPTIONS", 10)
    async with opened(Script(4096)) as disk, await serve(disk, path), connected(path) as client:
        await client.greet()
        for _ in range(9):
            assert (await client.option(99, bytes(100)))[0][0] == REP_ERR_UNSUP
        client.writer.write(OPTION_MAGIC.to_bytes(8, "big") + (99).to_bytes(4, "big") + bytes(4))
        assert await client.at_end()


async def test_abort(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path) as server, connected(path) as client:
        await client.greet()
        assert await client.option(OPT_ABORT) == [(REP_ACK, b"")]
        assert await client.at_end()
        await gone(server)


# N3: names


@pytest.mark.parametrize("option", [OPT_INFO, OPT_GO])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"x" * 4097, REP_ERR_TOO_BIG),
        (b"x" * 4096, REP_ERR_UNKNOWN),
        (b"a\0b", REP_ERR_INVALID),
        (b"\xff\xfe", REP_ERR_INVALID),
        (b"../disk", REP_ERR_UNKNOWN),
        (b"disk/", REP_ERR_UNKNOWN),
    ],
)
async def test_names_that_there_are_not(path: str, option: int, name: bytes, error: int) -> None:
    async with opened(Script(4096)) as disk, await serve({"disk": disk}, path), connected(path) as client:
        await client.greet()
        ((kind, words),) = await client.option(option, go(name))
        assert kind == error
        assert len(words) <= 4096
        assert (await client.option(OPT_GO, go(b"disk")))[-1][0] == REP_ACK


async def test_export_name_cannot_be_refused_in_words(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve({"disk": disk}, path), connected(path) as client:
        await client.greet()
        client.writer.write(OPTION_MAGIC.to_bytes(8, "big") + OPT_EXPORT_NAME.to_bytes(4, "big") + packed(b"none"))
        assert await client.at_end()


async def test_information_asked_for_again_and_again(path: str) -> None:
    data = packed(b"") + (3000).to_bytes(2, "big") + (3).to_bytes(2, "big") * 3000
    async with opened(Script(4096)) as disk, await serve(disk, path), connected(path) as client:
        await client.greet()
        assert [kind for kind, _ in await client.option(OPT_INFO, data)] == [3, 3, REP_ACK]


async def test_too_many_queries(path: str) -> None:
    data = packed(b"") + (10_000).to_bytes(4, "big") + packed(b"x") * 10_000
    async with opened(Script(4096)) as disk, await serve(disk, path), connected(path) as client:
        await client.greet()
        await client.option(OPT_STRUCTURED_REPLY)
        assert (await client.option(OPT_SET_META_CONTEXT, data))[-1][0] == REP_ERR_TOO_BIG


async def test_queries(path: str) -> None:
    async def ask(option: int, *queries: bytes, name: bytes = b"") -> list[bytes] | int:
        data = packed(name) + len(queries).to_bytes(4, "big") + b"".join(map(packed, queries))
        *contexts, (end, _) = await client.option(option, data)
        assert all(kind == REP_META_CONTEXT for kind, _ in contexts)
        return [data[4:] for _, data in contexts] if end == REP_ACK else end

    both = [b"base:allocation", b"qemu:allocation-depth"]
    async with opened(Script(4096)) as disk:
        export = NbdExport(disk, allocation_depth=True)
        async with await serve(export, path), connected(path) as client:
            await client.greet()
            assert await ask(OPT_LIST_META_CONTEXT) == REP_ERR_INVALID  # no structured replies
            await client.option(OPT_STRUCTURED_REPLY)
            assert await ask(OPT_LIST_META_CONTEXT) == both
            assert await ask(OPT_LIST_META_CONTEXT, b"base:") == both[:1]
            assert await ask(OPT_LIST_META_CONTEXT, b"qemu:") == both[1:]
            assert await ask(OPT_LIST_META_CONTEXT, b"qemu:dirty-bitmap:") == []
            assert await ask(OPT_SET_META_CONTEXT) == []
            assert await ask(OPT_SET_META_CONTEXT, b"base:") == []
            assert await ask(OPT_SET_META_CONTEXT, both[1], b"other:x") == both[1:]
            assert await ask(OPT_SET_META_CONTEXT, both[1], name=b"none") == REP_ERR_UNKNOWN


async def test_the_list(path: str) -> None:
    async with opened(Script(4096)) as disk:
        exports = {"a": disk, "é": NbdExport(disk, description="what it is")}
        async with await serve(exports, path), connected(path) as client:
            await client.greet()
            assert await client.option(OPT_LIST) == [
                (REP_SERVER, packed(b"a")),
                (REP_SERVER, packed("é".encode()) + b"what it is"),
                (REP_ACK, b""),
            ]


# N4: TLS


def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # without a certificate: the handshake of TLS itself must fail


async def test_nothing_before_tls_where_it_is_required(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path, tls=_context()), connected(path) as client:
        await client.greet()
        for option in (OPT_LIST, OPT_STRUCTURED_REPLY, 99):
            assert (await client.option(option))[0][0] == REP_ERR_TLS_REQD
        assert (await client.option(OPT_GO, go(b"")))[0][0] == REP_ERR_TLS_REQD


async def test_starttls_where_there_is_none(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path), connected(path) as client:
        await client.greet()
        assert (await client.option(OPT_STARTTLS))[0][0] == REP_ERR_POLICY


async def test_starttls_with_data(path: str) -> None:
    async with opened(Script(4096)) as disk, await serve(disk, path, tls=_context()), connected(path) as client:
        await client.greet()
        assert (await client.option(OPT_STARTTLS, b"x"))[0][0] == REP_ERR_INVALID


async def test_what_follows_starttls_in_the_open_is_never_used(path: str) -> None:
    starttls = OPTION_MAGIC.to_bytes(8, "big") + OPT_STARTTLS.to_bytes(4, "big") + bytes(4)
    more = OPTION_MAGIC.to_bytes(8, "big") + OPT_LIST.to_bytes(4, "big") + bytes(4)
    async with opened(Script(4096)) as disk, await serve(disk, path, tls=_context()) as server:
        async with connected(path) as client:
            await client.greet()
            client.writer.write(starttls + more)
            assert await client.at_end()
        async with connected(path) as client:
            await client.greet()
            assert await client.option(OPT_STARTTLS) == [(REP_ACK, b"")]
            client.writer.write(more)  # this time TLS itself gets it
            await client.at_end()
        await gone(server)


async def test_tls_that_never_comes(path: str) -> None:
    limits = replace(SHORT, handshake_timeout=0.05)
    async with opened(Script(4096)) as disk, await serve(disk, path, tls=_context(), limits=limits) as server:
        async with connected(path) as client:
            await client.greet()
            await client.option(OPT_STARTTLS)
            await client.at_end()
            await gone(server)


async def test_the_server_stops_in_the_handshake(path: str) -> None:
    async with opened(Script(4096)) as disk:
        async with await serve(disk, path) as server, connected(path) as client:
            await client.greet()
            await until(lambda: server.connections)
            await server.close()
            assert await client.at_end()
        assert not Path(path).exists()
