"""`throttle` in a graph: who waits, and what a drain does to that."""

import asyncio
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import OptionError
from aioblock.core.throttling import Limits, ThrottleGroup
from aioblock.drivers.protocols.memory import MemoryDisk

OPTIONS: dict[str, Any] = {"driver": "throttle", "throttle-group": "g"}


def stopped(**limits: int) -> ThrottleGroup:
    """A group whose time stands still: whoever must wait, waits for ever."""
    values = {name.replace("_", "-"): value for name, value in limits.items()}
    return ThrottleGroup(Limits(values), now=lambda: 0.0, call_later=lambda delay, callback: None)


async def opened(group: ThrottleGroup, disk: MemoryDisk | None = None) -> aioblock.BlockBackend:
    file = {"driver": "memory", "disk": disk or MemoryDisk(1 << 20)}
    return await aioblock.open(OPTIONS | {"file": file}, objects={"g": group}, writable=True)


async def begun(request: Any) -> "asyncio.Task[Any]":
    task = asyncio.create_task(request)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_every_changing_request_is_a_write_and_flushes_never_wait() -> None:
    disk = await opened(stopped(iops_write=1))
    await disk.pwrite(0, b"x" * 512)
    waiting = [
        await begun(disk.pwrite(0, b"y" * 512)),
        await begun(disk.pwrite_zeroes(0, 4096)),
        await begun(disk.pdiscard(0, 4096)),
    ]
    assert not any(task.done() for task in waiting)
    assert await disk.pread(8192, 1) == b"\0"
    await disk.flush()
    await disk.block_status(0, 512)
    async with disk.drained():
        await asyncio.gather(*waiting)
    await disk.close()


async def test_nodes_of_one_group_share_its_limits() -> None:
    group = stopped(iops_total=1)
    first, second = await opened(group), await opened(group)
    await first.pread(0, 512)
    task = await begun(second.pread(0, 512))
    assert not task.done()
    async with second.drained():
        await task
    task = await begun(first.pread(0, 512))
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert first.in_flight == 0
    await first.close()
    await second.close()


async def test_the_limits_hold_again_after_a_drain() -> None:
    disk = await opened(stopped(iops_total=1))
    for _ in range(2):
        async with disk.drained(), disk.drained():
            pass
    await disk.pread(0, 512)
    task = await begun(disk.pread(0, 512))
    assert not task.done()
    async with disk.drained():
        await task
    await disk.close()


async def test_groups_that_are_not_there() -> None:
    file = {"driver": "memory", "disk": MemoryDisk(512)}
    with pytest.raises(OptionError, match="Throttle group 'g' does not exist"):
        await aioblock.open(OPTIONS | {"file": file})
    with pytest.raises(OptionError, match="Please specify a throttle group"):
        await aioblock.open({"driver": "throttle", "file": file})
