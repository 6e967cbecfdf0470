"""Prefetch: the server is asked to cache a range; one that cannot is read from."""

import errno
from pathlib import Path

import pytest

import aioblock
from aioblock.drivers.protocols.memory import MemoryDisk
from aioblock.nbd.constants import CMD_CACHE, CMD_READ, FLAG_SEND_CACHE, Mode
from aioblock.nbd.packing import ReplyPacker
from aioblock.nbd.requests import Request
from tests.kit.nbd_server import ALL_FLAGS, FakeServer, Session

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


def asked(server: FakeServer) -> list[tuple[int, int, int]]:
    return [(request.command, request.offset, request.length) for request in server.requests]


async def test_the_server_is_asked(path: str) -> None:
    """Through `raw`, in whole blocks, in pieces as long as the server takes them."""
    async with FakeServer(MemoryDisk(SIZE), flags=ALL_FLAGS | FLAG_SEND_CACHE, min_block=512).serving(path) as server:
        server.exports[""].max_block = 65536
        name = {"driver": "raw", "offset": 4096, "file": {"driver": "nbd", "path": path}}
        async with await aioblock.open(name) as disk:
            await disk.prefetch(100, 65536)
            assert asked(server) == [(CMD_CACHE, 4096, 65536), (CMD_CACHE, 4096 + 65536, 512)]
            await disk.prefetch(0, 0)
            with pytest.raises(OSError) as caught:
                await disk.prefetch(SIZE - 4096, 1)
            assert caught.value.errno == errno.EIO
            assert len(server.requests) == 2 and disk.in_flight == 0


async def test_a_server_that_has_no_cache_is_read_from(path: str) -> None:
    async with FakeServer(MemoryDisk(SIZE)).serving(path) as server:
        async with await aioblock.open(f"nbd:unix:{path}", format="raw") as disk:
            await disk.prefetch(512, 1000)
            assert asked(server) == [(CMD_READ, 512, 1000)]


async def test_what_lies_between_is_read(path: str, tmp_path: Path) -> None:
    """An image of a format whose bytes are not those of its file."""
    image = tmp_path / "image.qcow2"
    await aioblock.create(str(image), "qcow2", {"size": 4 * SIZE})
    async with await aioblock.open(str(image), format="qcow2", writable=True) as disk:
        await disk.pwrite(SIZE, b"x" * SIZE)
    disk_of_server = MemoryDisk(content=image.read_bytes())
    async with FakeServer(disk_of_server, flags=ALL_FLAGS | FLAG_SEND_CACHE).serving(path) as server:
        async with await aioblock.open(f"nbd:unix:{path}", format="qcow2") as disk:
            await disk.pread(SIZE, 512)
            server.requests.clear()
            await disk.prefetch(0, 4 * SIZE)
            assert sum(nbytes for command, _, nbytes in asked(server) if command == CMD_READ) == SIZE


@pytest.mark.parametrize("fails", [{CMD_CACHE}, {CMD_CACHE, CMD_READ}])
async def test_an_error_of_the_server(path: str, fails: set[int]) -> None:
    """It is no error that a range cannot be cached, but that it cannot be read."""

    def script(session: Session, request: Request) -> bytes | None:
        return ReplyPacker(Mode.EXTENDED).error(request, errno.EIO) if request.command in fails else None

    server = FakeServer(MemoryDisk(SIZE), flags=ALL_FLAGS | FLAG_SEND_CACHE, script=script)
    async with server.serving(path), await aioblock.open(f"nbd:unix:{path}", format="raw") as disk:
        if CMD_READ not in fails:
            await disk.prefetch(0, SIZE)
        else:
            with pytest.raises(OSError) as caught:
                await disk.prefetch(0, SIZE)
            assert caught.value.errno == errno.EIO
        assert disk.statistics.failed == (CMD_READ in fails)
        assert {command for command, _, _ in asked(server)} == {CMD_CACHE, CMD_READ}
