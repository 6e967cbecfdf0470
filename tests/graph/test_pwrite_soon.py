"""Writes that a driver takes at once: in flight until it tells their end, and refused where something is in the way."""

import asyncio
import errno
from collections.abc import Awaitable, Callable

import pytest

from aioblock.base.flags import REQ_SERIALISING
from aioblock.core.io import Done
from aioblock.graph.backend import BlockBackend
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

SIZE = 65536
DATA = memoryview(b"x" * 4096)


def nobody(error: Exception | None) -> None:
    raise AssertionError("nothing was begun")


class Taking:
    """Has the driver of a disk take writes at once; `ends` tells the end of each."""

    def __init__(self, disk: BlockBackend) -> None:
        self.ends: list[Done] = []
        self.offsets: list[int] = []
        disk.node.driver.pwritev_soon = self._take  # type: ignore[method-assign]

    def _take(self, offset: int, data: memoryview, done: Done) -> bool:
        self.offsets.append(offset)
        self.ends.append(done)
        return True


async def test_it_is_in_flight_until_it_has_ended() -> None:
    told: list[Exception | None] = []
    async with opened(Script(SIZE), writable=True) as disk:
        taking = Taking(disk)
        assert disk.pwrite_soon(4096, DATA, told.append)
        assert disk.in_flight == len(disk.node.requests) == 1
        drained = asyncio.create_task(disk.idle())
        await asyncio.sleep(0)
        assert not drained.done() and not told
        before = disk.node.flush_state.written
        taking.ends[0](None)
        await drained
        assert told == [None]
        assert disk.node.flush_state.written == before + 1
        assert (disk.statistics.writes, disk.statistics.bytes_written, disk.statistics.failed) == (1, 4096, 0)
        assert_idle(disk)


async def test_a_failure_is_told_and_counted() -> None:
    told: list[Exception | None] = []
    async with opened(Script(SIZE), writable=True) as disk:
        taking = Taking(disk)
        assert disk.pwrite_soon(0, DATA, told.append)
        failure = OSError(errno.ENOSPC, "full")
        taking.ends[0](failure)
        assert told == [failure]
        assert (disk.statistics.writes, disk.statistics.failed) == (0, 1)
        waiting = asyncio.create_task(disk.pwrite(0, DATA))
        await until(lambda: len(taking.ends) == 2)
        taking.ends[1](failure)
        with pytest.raises(OSError, match="full"):
            await waiting
        assert_idle(disk)


async def test_a_cancelled_caller_leaves_the_write_in_flight() -> None:
    async with opened(Script(SIZE), writable=True) as disk:
        taking = Taking(disk)
        writing = asyncio.create_task(disk.pwrite(0, DATA))
        await until(lambda: taking.ends)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert disk.in_flight == 1
        closing = asyncio.create_task(disk.close())
        await asyncio.sleep(0)
        assert not closing.done()
        taking.ends[0](None)
        await closing
        assert disk.statistics.writes == 1


async def test_a_later_serialising_request_waits_for_it() -> None:
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        taking = Taking(disk)
        assert disk.pwrite_soon(0, DATA, lambda error: None)
        serialising = asyncio.create_task(disk.pwrite(0, DATA, REQ_SERIALISING))
        await until(lambda: disk.node.requests.serialising)
        assert not disk.pwrite_soon(8192, DATA, nobody), "nobody goes the short way past one that serialises"
        assert "pwritev" not in {call.verb for call in script.log}
        taking.ends[0](None)
        await serialising
        assert_idle(disk)


@pytest.mark.parametrize(
    ("offset", "data"),
    [(-4096, DATA), (SIZE, DATA), (SIZE - 512, DATA), (0, memoryview(b"")), (1, DATA), (0, DATA[:-1])],
    ids=["before", "behind", "across the end", "empty", "unaligned offset", "unaligned length"],
)
async def test_what_is_refused(offset: int, data: memoryview) -> None:
    async with opened(Script(SIZE, limits={"request_alignment": 512}), writable=True) as disk:
        taking = Taking(disk)
        assert not disk.pwrite_soon(offset, data, nobody)
        assert not taking.offsets
        assert_idle(disk)


async def _stopped(disk: BlockBackend) -> None:
    disk.stop()


async def _marked(disk: BlockBackend) -> None:
    await disk.bitmap_add("dirty", persistent=False)


async def _detecting(disk: BlockBackend) -> None:
    disk.node.detect_zeroes = "on"


async def _writethrough(disk: BlockBackend) -> None:
    await disk.reopen(cache="writethrough")


@pytest.mark.parametrize("prepare", [_stopped, _marked, _detecting, _writethrough])
async def test_refused_where_more_is_to_be_done(prepare: Callable[[BlockBackend], Awaitable[None]]) -> None:
    async with opened(Script(SIZE), writable=True) as disk:
        await prepare(disk)
        taking = Taking(disk)
        assert not disk.pwrite_soon(0, DATA, nobody)
        assert not taking.offsets
        if prepare is _stopped:
            disk.go_on()
        assert_idle(disk)


async def test_refused_when_read_only() -> None:
    async with opened(Script(SIZE)) as disk:
        taking = Taking(disk)
        assert not disk.pwrite_soon(0, DATA, nobody)
        assert not taking.offsets
