"""L2 tables are read ahead where reading takes time: what is asked of the file, and what nobody must notice."""

import asyncio
import errno
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aioblock.drivers.formats.qcow2 import Qcow2Driver, tables
from tests.kit.cancel_points import cancelled_at
from tests.kit.fake_context import open_driver
from tests.kit.memory_io import Call, MemoryIO
from tests.kit.qcow2_images import header_of, new_image

CLUSTER = 512
SPAN = CLUSTER * CLUSTER // 8
"""What one table maps."""
TABLES = 24
WINDOW = 8


@pytest.fixture(autouse=True)
def window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "AHEAD_BYTES", WINDOW * CLUSTER)


async def turn(call: Call) -> None:
    """A read that takes time."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


class Disk:
    """An image of 24 tables, of which `order` says where each lies among them; -1: there is none."""

    def __init__(self, content: bytes, order: list[int]) -> None:
        self.file = MemoryIO(content)
        self.header = header_of(content)
        self.begin = -(-len(content) // CLUSTER) * CLUSTER
        for index, place in enumerate(order):
            self.set_l1(index, self.place(place) | 1 << 63 if place >= 0 else 0)
            entries = struct.pack(">64Q", *((index * 64 + entry + 4096) * CLUSTER | 1 << 63 for entry in range(64)))
            if place >= 0:
                self.file._put(self.place(place), entries)

    def place(self, number: int) -> int:
        return self.begin + number * CLUSTER

    def set_l1(self, index: int, entry: int) -> None:
        self.file._put(self.header.l1_table_offset + 8 * index, struct.pack(">Q", entry))

    @asynccontextmanager
    async def driver(self, **options: Any) -> AsyncIterator[Qcow2Driver]:
        driver = await open_driver(Qcow2Driver, options, children={"file": self.file}, read_only=True)
        self.file.log.clear()
        self.file.before = turn
        yield driver
        assert not driver.image.l2._turns
        await driver.close()

    @property
    def reads(self) -> list[tuple[int, int]]:
        """Which tables were read, by where they lie: the first one, and how many."""
        return [((call.offset - self.begin) // CLUSTER, call.nbytes // CLUSTER) for call in self.file.calls("pread")]


async def disk_of(order: list[int]) -> Disk:
    return Disk(await new_image(TABLES * SPAN, cluster_size=CLUSTER), order)


async def ask(driver: Qcow2Driver, first: int = 0, end: int = TABLES) -> int:
    """The bytes that a batch covers, from one table up to another."""
    return (await driver.extents(first * SPAN, (end - first) * SPAN, False)).nbytes


async def test_those_that_adjoin_come_by_one_read_window_by_window() -> None:
    disk = await disk_of(list(range(TABLES)))
    async with disk.driver() as driver:
        assert await ask(driver) == TABLES * SPAN
    assert disk.reads == [(0, 1), (1, 7), (8, 1), (9, 7), (16, 1), (17, 7)]


async def test_the_others_come_at_the_same_time() -> None:
    disk = await disk_of([0, 2, 3, -1, 4, 9, 8, 1, *range(10, 26)])
    waiting = 0

    async def together(call: Call) -> None:
        nonlocal waiting
        waiting += 1
        most.append(waiting)
        await asyncio.sleep(0)
        waiting -= 1

    most: list[int] = []
    async with disk.driver() as driver:
        disk.file.before = together
        assert await ask(driver, 0, 8) == 8 * SPAN
    assert disk.reads == [(0, 1), (2, 2), (4, 1), (9, 1), (8, 1), (1, 1)]
    assert max(most) == 6


async def test_no_further_than_the_question() -> None:
    disk = await disk_of(list(range(TABLES)))
    async with disk.driver() as driver:
        await ask(driver, 2, 4)
        await ask(driver, 10, 11)
    assert disk.reads == [(2, 1), (3, 1), (10, 1)]


async def test_nothing_is_read_ahead_of_what_needs_no_waiting() -> None:
    disk = await disk_of(list(range(TABLES)))
    async with disk.driver() as driver:
        disk.file.before = None
        await ask(driver)
    assert disk.reads == [(number, 1) for number in range(TABLES)]


async def test_what_is_in_memory_or_on_its_way_is_not_read_again() -> None:
    disk = await disk_of(list(range(TABLES)))
    async with disk.driver() as driver:
        await driver.image.l2.fetch(3)
        disk.file.log.clear()
        await asyncio.gather(ask(driver, 0, 8), driver.image.l2.fetch(5), ask(driver, 1, 8))
    assert disk.reads == [(0, 1), (1, 2), (4, 4)]


@pytest.mark.parametrize("limit", [4, 5])
async def test_no_more_tables_are_in_memory_than_the_cache_may_hold(limit: int) -> None:
    disk = await disk_of(list(range(TABLES)))
    held: list[int] = []

    async with disk.driver(**{"l2-cache-size": limit * CLUSTER}) as driver:

        async def count(call: Call) -> None:
            await asyncio.sleep(0)
            held.append(len(driver.image.l2.tables))

        disk.file.before = count
        assert await ask(driver) == TABLES * SPAN
        held.append(len(driver.image.l2.tables))
    assert max(held) == limit
    assert max(nbytes for _, nbytes in disk.reads) == limit - 1
    assert sum(nbytes for _, nbytes in disk.reads) == TABLES


@pytest.mark.parametrize(
    "entry", [1 << 63 | 1 << 9 | 1, 1 << 63 | 1 << 10 | 1 << 56, 1 << 63], ids=["reserved", "unaligned", "nowhere"]
)
async def test_a_wrong_l1_entry_is_told_when_its_table_is_asked_for(entry: int, caplog: Any) -> None:
    disk = await disk_of(list(range(TABLES)))
    disk.set_l1(5, entry)
    async with disk.driver() as driver:
        assert await ask(driver, 0, 5) == 5 * SPAN
        assert not caplog.records
        assert len(driver.image.l2.tables) == 5
        with pytest.raises(OSError):
            await ask(driver, 5, 8)
        assert await ask(driver, 6, TABLES) == (TABLES - 6) * SPAN


async def test_an_error_ahead_is_told_when_that_table_is_asked_for() -> None:
    disk = await disk_of(list(range(TABLES)))

    async def bad_sector(call: Call) -> None:
        await asyncio.sleep(0)
        if call.offset <= disk.place(5) < call.offset + call.nbytes:
            raise OSError(errno.EIO, "Input/output error")

    async with disk.driver() as driver:
        disk.file.before = bad_sector
        assert await ask(driver, 0, 1) == SPAN
        with pytest.raises(OSError, match="Input/output error"):
            await ask(driver, 5, 8)
        assert sorted(driver.image.l2.tables) == [0, 6, 7]
        assert await ask(driver, 0, 5) == 5 * SPAN


@pytest.mark.parametrize("again", [False, True])
async def test_cancelled_at_each_await_nothing_is_left_and_the_next_question_is_answered(again: bool) -> None:
    number = 1
    while True:
        disk = await disk_of([0, 2, 3, -1, 4, 9, 8, 1, *range(10, 26)])
        async with disk.driver() as driver:
            before = asyncio.all_tasks()
            run = await cancelled_at(ask(driver), number, again=again)
            assert asyncio.all_tasks() == before
            if not run.reached:
                break
            assert run.cancelled
            assert not driver.image.l2._turns
            assert await ask(driver) == TABLES * SPAN
        number += 1
    assert number > 6
