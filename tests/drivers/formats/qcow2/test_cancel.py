"""Cancellation at every await: nothing has begun, or it runs to its end; the image stays sound, and clean."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import aioblock
from aioblock import REQ_COMPRESSED, REQ_MAY_UNMAP
from tests.kit.power_cut import assert_sound
from tests.kit.qcow2_images import new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk

CLUSTER = 4096
SIZE = 64 * CLUSTER

VERBS: dict[str, Callable[[aioblock.BlockBackend], Awaitable[object]]] = {
    "read": lambda image: image.pread(3 * CLUSTER - 100, 20 * CLUSTER),
    "write": lambda image: image.pwrite(5 * CLUSTER - 100, b"w" * 10 * CLUSTER),
    "zeroes": lambda image: image.pwrite_zeroes(2 * CLUSTER + 10, 20 * CLUSTER, REQ_MAY_UNMAP),
    "discard": lambda image: image.pdiscard(0, SIZE),
    "flush": lambda image: image.flush(),
    "status": lambda image: image.block_status(0, SIZE),
    "compressed": lambda image: image.pwrite(40 * CLUSTER, b"c" * 2 * CLUSTER, REQ_COMPRESSED),
    "truncate": lambda image: image.truncate(SIZE * 40),
}


class Hold:
    """A hook that holds one request to the file, the one of the given number, until `gate` is set."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.gate, self.reached = asyncio.Event(), asyncio.Event()

    async def __call__(self, verb: str, offset: int, nbytes: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.reached.set()
            await self.gate.wait()

    async def begun_or_done(self, task: "asyncio.Future[Any]") -> bool:
        """Wait until the request is held, or `task` is done without it; whether it is held."""
        waiter = asyncio.ensure_future(self.reached.wait())
        await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
        held = self.reached.is_set()
        self.reached.set()
        await waiter
        return held


async def prepared() -> bytes:
    disk = RecordedDisk(await new_image(SIZE, cluster_size=CLUSTER))
    async with await open_disk(disk) as image:
        await image.pwrite(0, b"a" * 8 * CLUSTER)
        await image.pwrite(8 * CLUSTER, b"c" * 4 * CLUSTER, REQ_COMPRESSED)
        await image.pwrite_zeroes(14 * CLUSTER, 4 * CLUSTER)
    return disk.content()


@pytest.mark.parametrize("verb", VERBS)
async def test_cancelled_at_every_request_to_the_file(verb: str) -> None:
    content = await prepared()
    number = 0
    while True:
        number += 1
        disk, below = RecordedDisk(content), RecordedDisk(b"b" * SIZE)
        image = await open_disk(disk, backing=below)
        await image.pwrite(30 * CLUSTER, b"d" * CLUSTER)  # something to flush
        disk.before = below.before = hold = Hold(number)
        task = asyncio.ensure_future(VERBS[verb](image))
        cancelled = await hold.begun_or_done(task)
        if cancelled:
            task.cancel()
            await asyncio.sleep(0)
            hold.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task
        disk.before = below.before = None
        async with image.drained():
            pass  # what was cancelled and had begun runs to its end
        await image.flush()
        state = image.node.driver.image  # type: ignore[attr-defined]
        assert (state.allocating, state.reading) == ({}, {})
        data = bytes(await image.pread(0, image.length))
        assert data[30 * CLUSTER : 31 * CLUSTER] in (b"d" * CLUSTER, bytes(CLUSTER))
        await image.close()
        assert_sound(disk.content())
        async with await open_disk(disk, backing=below, writable=False) as again:
            assert await again.pread(0, again.length) == data
        if not cancelled:
            return
        assert number < 200


async def test_opening_is_cancelled_at_every_request_to_the_file() -> None:
    content = await prepared()
    number = 0
    while True:
        number += 1
        disk = RecordedDisk(content)
        disk.before = hold = Hold(number)
        task = asyncio.ensure_future(open_disk(disk))
        if not await hold.begun_or_done(task):
            await (await task).close()
            return
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert disk.content() == content
        assert number < 50
