"""A disk that ends within a sector, served in whole ones."""

import pytest

from aioblock.base.errors import OptionError
from aioblock.base.flags import DATA
from aioblock.exports.nbd.export import NbdExport
from aioblock.exports.nbd.server import serve
from aioblock.nbd.constants import (
    CMD_BLOCK_STATUS,
    CMD_FLAG_REQ_ONE,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    STATE_HOLE,
    STATE_ZERO,
)
from tests.kit.raw_nbd_client import RawClient, connected
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

X = b"x"


def runs(data: bytes) -> list[tuple[int, int]]:
    """The runs in a chunk of block status, behind the id of the context."""
    numbers = [int.from_bytes(data[at : at + 4], "big") for at in range(4, len(data), 4)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


async def status(client: RawClient, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
    return runs((await client.ask(CMD_BLOCK_STATUS, offset, length, flags=flags)).data)


def script() -> Script:
    return Script(1000, content=X * 1000, attributes={"can_grow": True})


async def test_zeroes_behind_the_end(path: str) -> None:
    async with opened(script(), writable=True) as disk:
        async with await serve(NbdExport(disk, whole_sectors=True), path), connected(path) as client:
            await client.open()
            assert client.size == 1024
            assert (await client.ask(CMD_READ, 0, 1024)).data[8:] == X * 1000 + bytes(24)
            assert (await client.ask(CMD_READ, 1010, 14)).data[8:] == bytes(14)
            assert (await client.ask(CMD_READ, 996, 8)).data[8:] == X * 4 + bytes(4)
            assert (await client.ask(CMD_READ, 0, 1025)).error
            for command in (CMD_WRITE_ZEROES, CMD_TRIM):
                assert (await client.ask(command, 1000, 24)).error == 0
                assert await disk.getlength() == 1000
            assert (await client.ask(CMD_WRITE_ZEROES, 990, 34)).error == 0
            assert (await client.ask(CMD_READ, 980, 44)).data[8:] == X * 10 + bytes(34)
        assert_idle(disk)


async def test_a_write_makes_it_as_long_as_it_must_be(path: str) -> None:
    async with opened(script(), writable=True) as disk:
        async with await serve(NbdExport(disk, whole_sectors=True), path), connected(path) as client:
            await client.open()
            assert (await client.ask(CMD_WRITE, 1010, data=b"abcd")).error == 0
            assert await disk.getlength() == 1014
            assert (await client.ask(CMD_READ, 1000, 24)).data[8:] == bytes(10) + b"abcd" + bytes(10)


async def test_of_two_writes_behind_the_end_neither_is_lost(path: str) -> None:
    low = script()
    async with opened(low, writable=True) as disk:
        async with await serve(NbdExport(disk, whole_sectors=True), path), connected(path) as client:
            await client.open()
            low.hold("truncate")
            client.send(CMD_WRITE, 1004, cookie=1, data=b"long" * 4)
            await until(lambda: low.held)
            client.send(CMD_WRITE, 1000, cookie=2, data=b"less")
            low.release()
            assert {(await client.reply()).error for _ in range(2)} == {0}
            assert (await client.ask(CMD_READ, 1000, 24)).data[8:] == b"less" + b"long" * 4 + bytes(4)
        assert_idle(disk)


@pytest.mark.parametrize("flags", [0, CMD_FLAG_REQ_ONE])
async def test_block_status_behind_the_end(path: str, flags: int) -> None:
    async with opened(Script(1000, runs=[(DATA, 1000)])) as disk:
        export = NbdExport(disk, whole_sectors=True, allocation_depth=True)
        async with await serve(export, path), connected(path) as client:
            await client.open(contexts=["base:allocation"])
            behind = (24, STATE_HOLE | STATE_ZERO)
            assert await status(client, 0, 1024, flags) == ([(1000, 0)] if flags else [(1000, 0), behind])
            assert await status(client, 1000, 24, flags) == [behind]
            assert await status(client, 10, 100, flags) == [(100, 0)]


async def test_no_run_ends_within_a_block_that_clients_are_told_of(path: str) -> None:
    async with opened(Script(1000, runs=[(DATA, 1000)])) as disk:
        export = NbdExport(disk, whole_sectors=True, min_block=512)
        async with await serve(export, path) as server, connected(path) as client:
            assert (info := server.info("")) is not None and info.min_block == 512
            await client.open(contexts=["base:allocation"])
            assert await status(client, 0, 1024) == [(1024, 0)]
            assert (await client.ask(CMD_READ, 1, 3)).error == 0  # those who were not told are served too


async def test_a_whole_disk_is_served_as_it_is() -> None:
    async with opened(Script(1024)) as disk:
        assert NbdExport(disk, whole_sectors=True).served is disk
    async with opened(Script(1000)) as disk:
        assert NbdExport(disk).size == 1000
        assert NbdExport(disk, whole_sectors=True, offset=512).size == 512
        with pytest.raises(OptionError, match="is not made of blocks of 512"):
            NbdExport(disk, min_block=512)
