"""Hostile servers as the user of the driver meets them, a test for each row N9 to N14; N15 is in `test_cuts`.

What the codec makes of every single message is tested in tests/nbd; here: what was asked for fails, with an errno and
without a byte that is not the disk's, nothing is left behind, and the next request is served by a new connection.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import NbdError
from aioblock.core.tls import TlsX509
from aioblock.drivers.protocols.memory import MemoryDisk
from aioblock.drivers.protocols.nbd import NbdDriver
from aioblock.nbd.constants import CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, Mode
from aioblock.nbd.packing import ReplyPacker, pack_extents
from aioblock.nbd.requests import Request
from tests.kit.certificates import Authority
from tests.kit.fake_context import open_driver, read_from
from tests.kit.nbd_server import FakeServer, Session

SIZE = 1 << 20
CONTENT = bytes(range(251)) * 1000
CHUNKED = [Mode.STRUCTURED, Mode.EXTENDED]
GREETING = b"NBDMAGICIHAVEOPT\0\3"
UNSUPPORTED, GO = (1 << 31) + 1, 7

Answer = Callable[[ReplyPacker, Request], bytes]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


def option_reply(option: int, kind: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    numbers = (option, kind, len(data) if length is None else length)
    return (0x0003E889045565A9).to_bytes(8, "big") + b"".join(n.to_bytes(4, "big") for n in numbers) + data


def export(size: int) -> bytes:
    return option_reply(GO, 3, b"\0\0" + size.to_bytes(8, "big") + b"\0\1")


def sizes(small: int, preferred: int, large: int) -> bytes:
    return option_reply(GO, 3, b"\0\3" + b"".join(n.to_bytes(4, "big") for n in (small, preferred, large)))


@asynccontextmanager
async def saying(path: str, data: bytes) -> AsyncIterator[None]:
    """A server that says this at once, and then waits until the client goes."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        try:
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass
        writer.close()
        left.set()

    left = asyncio.Event()
    async with await asyncio.start_unix_server(say, path):
        yield
        await left.wait()


SIMPLE = GREETING + option_reply(11, UNSUPPORTED) + option_reply(8, UNSUPPORTED)
ACK = option_reply(GO, 1)
HANDSHAKES = {
    "size of 2^63": SIMPLE + export(1 << 63) + ACK,
    "size that is not whole blocks": SIMPLE + sizes(512, 4096, 1 << 25) + export(1000) + ACK,
    "block of 3": SIMPLE + sizes(3, 4096, 1 << 25) + export(512) + ACK,
    "block of 2^17": SIMPLE + sizes(1 << 17, 1 << 17, 1 << 25) + export(0) + ACK,
    "preferred below minimum": SIMPLE + sizes(512, 256, 1 << 25) + export(512) + ACK,
    "information without end": SIMPLE + option_reply(GO, 3, b"\xff\xff") * (1 << 17),
    "reply of 4 GiB": SIMPLE + option_reply(GO, 3, length=(1 << 32) - 1) + bytes(1 << 20),
    "no NBD": b"HTTP/1.1 400 Bad Request\r\n\r\n",
}


@pytest.mark.parametrize("data", HANDSHAKES.values(), ids=HANDSHAKES)
async def test_n9_handshakes(path: str, data: bytes) -> None:
    async with saying(path, data):
        with pytest.raises(NbdError):
            await open_driver(NbdDriver, {"path": path})


WITHOUT_TLS = {
    "declined": GREETING + option_reply(5, UNSUPPORTED),
    "data before TLS": GREETING + option_reply(5, 1) + option_reply(11, 1),
    "not fixed newstyle": b"NBDMAGICIHAVEOPT\0\0",
    "oldstyle": b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53" + SIZE.to_bytes(8, "big") + bytes(128),
}


@pytest.mark.slow
@pytest.mark.parametrize("data", WITHOUT_TLS.values(), ids=WITHOUT_TLS)
async def test_n10_tls_that_is_refused(path: str, tmp_path: Path, data: bytes) -> None:
    objects = {"t": TlsX509("client", str(Authority(tmp_path).client()))}
    async with saying(path, data):
        with pytest.raises(NbdError):
            await open_driver(NbdDriver, {"path": path, "tls-creds": "t"}, objects=objects)


@pytest.mark.slow
async def test_n10_another_host_name(path: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    objects = {"t": TlsX509("client", str(authority.client()))}
    async with await aioblock.open({"driver": "null-co", "size": SIZE}) as disk:
        async with await aioblock.serve(disk, path, tls=TlsX509("server", str(authority.server()))):
            options = {"path": path, "tls-creds": "t", "tls-hostname": "elsewhere"}
            with pytest.raises(OSError, match=r"TLS handshake failed.*elsewhere"):
                await open_driver(NbdDriver, options, objects=objects)
            options["tls-hostname"] = "localhost"
            driver = await open_driver(NbdDriver, options, objects=objects, read_only=True)
            await driver.close()


class Misbehaving:
    """A server that answers requests of one command on its first connection its own way."""

    def __init__(self, mode: Mode, command: int, answer: Answer) -> None:
        self.server = FakeServer(MemoryDisk(SIZE, CONTENT), mode=mode, script=self._script)
        self.mode, self.command, self.answer = mode, command, answer

    def _script(self, session: Session, request: Request) -> bytes | None:
        if request.command != self.command or self.server.opened > 1:
            return None
        return self.answer(ReplyPacker(self.mode), request)

    async def ask(self, path: str, *verbs: Callable[[NbdDriver], Any]) -> list[Any]:
        """What comes of requests that are all in flight at once; afterwards all is well, on one more connection."""
        async with self.server.serving(path):
            driver = await open_driver(NbdDriver, {"path": path})
            found = await asyncio.gather(*(verb(driver) for verb in verbs), return_exceptions=True)
            assert driver.links.in_flight == 0
            self.server.script = None
            assert await read_from(driver, 0, 512) == CONTENT[:512]
            await driver.close()
        return list(found)


def reading(driver: NbdDriver) -> Any:
    return read_from(driver, 512, 1024)


def flushing(driver: NbdDriver) -> Any:
    return driver.flush()


def asking(driver: NbdDriver) -> Any:
    return driver.extents(0, SIZE, True)


def failed(result: object, code: int = errno.EIO) -> bool:
    return isinstance(result, OSError) and result.errno == code


def _data(packer: ReplyPacker, request: Request, at: int, nbytes: int, *, last: bool = False) -> bytes:
    """Data for a part of a read; with `at` from its begin."""
    return packer.read_head(request, request.offset + at, nbytes, last=last) + b"\xee" * nbytes


REPLIES: dict[str, Answer] = {
    "unknown cookie": lambda packer, request: packer.success(request._replace(cookie=1 << 60)),
    "twice": lambda packer, request: packer.success(request) * 2,
    "simple behind chunks": lambda packer, request: (
        packer.error(request, 5, last=False) + ReplyPacker(Mode.SIMPLE).success(request)
    ),
    "never done": lambda packer, request: packer.error(request, 5, last=False) * 5000,
}


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize("answer", REPLIES.values(), ids=REPLIES)
async def test_n11_replies(path: str, mode: Mode, answer: Answer) -> None:
    """All that is in flight fails, and nothing of it is asked again; but a flush that was answered is done."""
    bad = Misbehaving(mode, CMD_FLUSH, answer)
    first, second = await bad.ask(path, flushing, flushing)
    assert failed(second)
    assert first is None if answer is REPLIES["twice"] else failed(first)
    assert bad.server.opened == 2
    assert [request.command for request in bad.server.requests].count(CMD_FLUSH) <= 2


async def test_n11_a_million_empty_chunks(path: str) -> None:
    sent = 0

    async def pour(session: Session, request: Request) -> bytes:
        nonlocal sent
        chunk = ReplyPacker(Mode.EXTENDED).error(request, 5, last=False) * 1000
        for _ in range(1000):
            await session.send(chunk)
            sent += 1000
        return b""

    server = FakeServer(MemoryDisk(SIZE, CONTENT), script=pour)
    async with server.serving(path):
        driver = await open_driver(NbdDriver, {"path": path})
        assert failed((await asyncio.gather(reading(driver), return_exceptions=True))[0])
        await driver.close()
    assert sent < 1_000_000, "it was cut off long before"


READS: dict[str, tuple[Answer, bool]] = {
    "gap": (lambda p, r: _data(p, r, 0, 512) + _data(p, r, 600, 424) + p.success(r), False),
    "no data at all": (lambda p, r: p.success(r), False),
    "error, then all data": (lambda p, r: p.error(r, 5, last=False) + _data(p, r, 0, 1024, last=True), False),
    "overlap": (lambda p, r: _data(p, r, 0, 600) + _data(p, r, 512, 512, last=True), True),
    "behind the range": (lambda p, r: _data(p, r, 512, 513, last=True), True),
    "before the range": (lambda p, r: _data(p, r, -1, 1024, last=True), True),
    "hole of 0": (lambda p, r: p.hole(r, r.offset, 0, last=False) + _data(p, r, 0, 1024, last=True), True),
    "hole outside": (lambda p, r: p.hole(r, r.offset + 1024, 512), True),
    "length 8": (lambda p, r: _data(p, r, 0, 0, last=True), True),
}


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize(("answer", "breaks"), READS.values(), ids=READS)
async def test_n12_reads(path: str, mode: Mode, answer: Answer, breaks: bool) -> None:
    """`breaks`: it ends the connection, too; else only the one request fails."""
    bad = Misbehaving(mode, CMD_READ, answer)
    (found,) = await bad.ask(path, reading)
    assert failed(found) and bad.server.opened == 1 + breaks


def _extents(packer: ReplyPacker, request: Request, context: int, lengths: list[int]) -> bytes:
    if request.flags & CMD_FLAG_REQ_ONE:
        lengths = lengths[-1:]
    payload = pack_extents(lengths, [0] * len(lengths), wide=packer.mode is Mode.EXTENDED)
    return packer.extents(request, context, payload, last=True)


STATUS: dict[str, Answer] = {
    "no extents": lambda p, r: _extents(p, r, 1, []),
    "length 0": lambda p, r: _extents(p, r, 1, [512, 0]),
    "wrong context": lambda p, r: _extents(p, r, 2, [512]),
    "nothing": lambda p, r: p.success(r),
}


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize("answer", STATUS.values(), ids=STATUS)
async def test_n13_status(path: str, mode: Mode, answer: Answer) -> None:
    (found,) = await Misbehaving(mode, CMD_BLOCK_STATUS, answer).ask(path, asking)
    assert failed(found)


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize("lengths", [[(1 << 32) - 1], [SIZE, SIZE], [512, SIZE]], ids=repr)
async def test_n13_status_beyond_the_export(path: str, mode: Mode, lengths: list[int]) -> None:
    """Cut to what there is, so that whoever walks the disk comes to its end."""
    bad = Misbehaving(mode, CMD_BLOCK_STATUS, lambda packer, request: _extents(packer, request, 1, lengths))
    async with bad.server.serving(path):
        async with await aioblock.open(f"nbd:unix:{path}", format="raw") as disk:
            runs = [run async for run in disk.extents()]
            assert sum(run.length for run in runs) == SIZE
            assert (await disk.block_status(SIZE - 512, 512)).pnum == 512


ERRORS: dict[str, tuple[bytes, int]] = {
    "message longer than its chunk": (b"\0\0\0\5\0\3ab", 0x8001),
    "error 0": (b"\0\0\0\0\0\0", 0x8001),
    "no room for the offset": (b"\0\0\0\5\0\0", 0x8002),
}


@pytest.mark.parametrize("mode", CHUNKED)
@pytest.mark.parametrize(("payload", "kind"), ERRORS.values(), ids=ERRORS)
async def test_n14_error_chunks(path: str, mode: Mode, payload: bytes, kind: int) -> None:
    bad = Misbehaving(mode, CMD_READ, lambda p, r: p._chunk(r, kind, len(payload), True) + payload)
    (found,) = await bad.ask(path, reading)
    assert failed(found) and bad.server.opened == 2


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("told", "code", "leaves"), [(12345, errno.EINVAL, 0), (108, errno.ESHUTDOWN, 1)])
async def test_n14_errors(path: str, mode: Mode, told: int, code: int, leaves: int) -> None:
    """One that the protocol does not know is EINVAL; a server that shuts down is left."""
    bad = Misbehaving(mode, CMD_READ, lambda packer, request: packer.error(request, told, "no"))
    (found,) = await bad.ask(path, reading)
    assert failed(found, code) and bad.server.opened == 1 + leaves
