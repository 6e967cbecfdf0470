"""Opening a layer on slow storage: the layers below are opened while its tables are read."""

import asyncio
import errno
from typing import Any

import pytest

from aioblock.core.images import InnerName, Role
from aioblock.core.io import BlockIO
from aioblock.drivers.formats.qcow2 import Qcow2Driver
from tests.kit.cancel_points import cancelled_at
from tests.kit.fake_context import FakeContext
from tests.kit.memory_io import Call, MemoryIO
from tests.kit.qcow2_images import new_image


class Context(FakeContext):
    """Opens a backing file, which takes time, and notes beside the reads when."""

    failure: OSError | None = None

    def __init__(self, file: MemoryIO, **how: Any) -> None:
        super().__init__(children={"file": file}, **how)
        self.events: list[str] = []

    async def open_inner(self, role: Role, name: InnerName | None) -> BlockIO | None:
        self.events.append("below begins")
        for _ in range(5):
            await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.events.append("below is open")
        return MemoryIO(bytes(1 << 20))


async def made(*, slow: bool = True, read_only: bool = True) -> Context:
    file = MemoryIO(await new_image(1 << 20, backing_file="below", backing_fmt="raw"))
    context = Context(file, read_only=read_only)

    async def note(call: Call) -> None:
        context.events.append(f"{call.verb} begins")
        if slow:
            await asyncio.sleep(0)
        context.events.append(f"{call.verb} ends")

    file.before = note
    return context


async def test_the_layers_below_are_opened_while_the_l1_table_is_read() -> None:
    context = await made()
    driver = await Qcow2Driver.open(context)
    assert len(driver.image.l1) == 1
    assert driver.backing is not None
    assert context.events[2:] == ["pread begins", "below begins", "pread ends", "below is open"]
    await driver.close()


@pytest.mark.parametrize("how", [{"slow": False}, {"read_only": False}], ids=["cached", "writable"])
async def test_a_cached_image_and_a_writable_one_is_whole_before(how: dict[str, Any]) -> None:
    context = await made(**how)
    driver = await Qcow2Driver.open(context)
    assert context.events[-3:] == ["pread ends", "below begins", "below is open"]
    await driver.close()


async def test_where_the_layers_below_fail_nothing_goes_on() -> None:
    context = await made()
    context.failure = OSError(errno.ENOENT, "nothing below")
    before = asyncio.all_tasks()
    with pytest.raises(OSError, match="nothing below"):
        await Qcow2Driver.open(context)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("slow", [False, True])
async def test_an_l1_table_that_cannot_be_read_is_an_error(slow: bool) -> None:
    context = await made()
    file = context.children["file"]
    assert isinstance(file, MemoryIO)

    async def bad_sector(call: Call) -> None:
        if slow:
            await asyncio.sleep(0)
        if call.offset:
            raise OSError(errno.EIO, "Input/output error")

    file.before = bad_sector
    before = asyncio.all_tasks()
    with pytest.raises(OSError, match="Input/output error"):
        await Qcow2Driver.open(context)
    assert ("below begins" in context.events) == slow
    assert asyncio.all_tasks() == before


async def test_cancelled_at_each_await() -> None:
    number = 1
    while True:
        context = await made()
        before = asyncio.all_tasks()
        run = await cancelled_at(Qcow2Driver.open(context), number, again=True)
        assert asyncio.all_tasks() == before
        if not run.reached:
            break
        assert run.cancelled
        number += 1
    assert number > 6
