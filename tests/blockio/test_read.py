"""Read: padding to the alignment, splitting, zeroes behind the end, and waiting for who changes the same bytes."""

import asyncio
import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioblock.blockio.read import read
from aioblock.core.node import BlockNode
from tests.kit.model import ModelDisk, pattern
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until


async def fetch(node: BlockNode, offset: int, nbytes: int) -> bytes:
    """Read into a buffer that is full of something else."""
    buffer = bytearray(b"\xee" * nbytes)
    await read(node, offset, memoryview(buffer))
    return bytes(buffer)


LENGTHS = st.sampled_from([0, 1, 511, 512, 513, 4096, 10_000, 12_288])


@pytest.mark.slow
@given(st.data(), LENGTHS, st.sampled_from([1, 512, 4096]), st.sampled_from([0, 1, 2]))
async def test_any_read_is_what_the_model_says(data: st.DataObject, length: int, alignment: int, transfer: int) -> None:
    """The driver asserts that each request is inside, aligned, and not too long. Behind the end there are zeroes."""
    content = pattern(length, 1)
    limits = {"request_alignment": alignment, "max_transfer": transfer * max(alignment, 100) // alignment * alignment}
    script = Script(length, content=content, limits=limits)
    model = ModelDisk(length, content)
    async with opened(script) as disk:
        for _ in range(5):
            offset = data.draw(st.integers(0, length + 600))
            nbytes = data.draw(st.one_of(st.integers(0, 600), st.integers(0, length + 600)))
            assert await fetch(disk.node, offset, nbytes) == model.read(offset, nbytes)
        assert_idle(disk)


async def test_an_aligned_read_reaches_the_driver_as_it_is() -> None:
    script = Script(8192, content=pattern(8192, 1), limits={"request_alignment": 512, "max_transfer": 2048})
    async with opened(script) as disk:
        await disk.pread(512, 2048)
        await disk.pread(512, 3000)
        await disk.pread(100, 10)
    assert [call.where for call in script.calls("preadv")] == [
        (512, 2048),
        (512, 2048),
        (2560, 1024),
        (0, 512),
    ]


@pytest.mark.parametrize("offset", [0, 100, 8192, 10_000])
async def test_an_empty_read_does_not_reach_the_driver(offset: int) -> None:
    script = Script(8192, limits={"request_alignment": 512})
    async with opened(script, copy_on_read=True, writable=True) as disk:
        assert await fetch(disk.node, offset, 0) == b""
    assert not script.calls("preadv")


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (-512, 512), ((1 << 63) - 1, 1)])
async def test_ranges_that_no_file_can_have(offset: int, nbytes: int) -> None:
    async with opened(Script(8192)) as disk:
        with pytest.raises(OSError) as caught:
            await fetch(disk.node, offset, nbytes)
        assert caught.value.errno == errno.EIO
        assert_idle(disk)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 8193), (8192, 1), (-1, 1), (1 << 70, 1)])
async def test_a_backend_refuses_what_is_out_of_range(offset: int, nbytes: int) -> None:
    async with opened(Script(8192)) as disk:
        with pytest.raises(OSError) as caught:
            await disk.pread(offset, nbytes)
        assert caught.value.errno == errno.EIO
        assert await disk.pread(8192, 0) == b""
        assert_idle(disk)


async def test_an_error_of_the_driver_is_raised_and_the_next_read_works() -> None:
    script = Script(8192, content=pattern(8192, 1), limits={"max_transfer": 4096})
    script.fail("preadv", OSError(errno.EIO, "broken"), 2)
    async with opened(script) as disk:
        with pytest.raises(OSError, match="broken"):
            await disk.pread(0, 8192)
        assert_idle(disk)
        assert await disk.pread(0, 8192) == pattern(8192, 1)
        assert disk.statistics.failed == 1 and disk.statistics.reads == 1


async def test_reads_run_at_the_same_time() -> None:
    script = Script(8192, content=pattern(8192, 1))
    async with opened(script) as disk:
        script.hold("preadv")
        tasks = [asyncio.create_task(disk.pread(at, 100)) for at in (0, 50, 0, 8000)]
        await until(lambda: len(script.held) == 4)
        assert disk.node.in_flight == disk.in_flight == 4
        script.release()
        assert await tasks[1] == pattern(8192, 1)[50:150]
        await asyncio.gather(*tasks)
        assert_idle(disk)


async def test_no_more_than_the_limit_of_the_backend_at_a_time_first_come_first_served() -> None:
    script = Script(8192)
    async with opened(script, max_in_flight=2) as disk:
        script.hold("preadv")
        tasks = [asyncio.create_task(disk.pread(at, 1)) for at in range(6)]
        await until(lambda: len(script.held) == 2)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(script.held) == 2 and disk.in_flight == 2
        tasks[2].cancel()
        while script.held:
            script.release(script.held[0])
            for _ in range(4):
                await asyncio.sleep(0)
        assert [call.offset for call in script.calls("preadv")] == [0, 1, 3, 4, 5]
        await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[2].cancelled()
        assert_idle(disk)


# -- what a cancelled read leaves behind ----------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 4096), (100, 100)])
async def test_cancelled_it_leaves_nothing(offset: int, nbytes: int) -> None:
    script = Script(8192, content=pattern(8192, 1), limits={"request_alignment": 512, "max_transfer": 1024})
    async with opened(script) as disk:
        script.hold("preadv")
        buffer = bytearray(nbytes)
        task = asyncio.create_task(disk.readinto(offset, buffer))
        await until(lambda: script.held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [call.outcome for call in script.calls("preadv")] == ["cancelled"]
        assert buffer == bytes(nbytes)
        assert_idle(disk)
        script.release()
        assert await disk.pread(offset, nbytes) == pattern(8192, 1)[offset : offset + nbytes]


# -- beside those who change the same bytes -------------------------------------------------------------------------


async def test_a_read_waits_for_a_serialising_request_that_came_before() -> None:
    script = Script(8192, limits={"request_alignment": 512})
    async with opened(script, writable=True) as disk:
        script.hold("pwritev")
        writing = asyncio.create_task(disk.pwrite(100, b"x" * 10))  # read-modify-write of the first block
        await until(lambda: script.held)
        reading = asyncio.create_task(disk.pread(0, 512))
        beside = asyncio.create_task(disk.pread(512, 512))
        assert await beside == bytes(512)
        assert not reading.done()
        script.release()
        await writing
        assert (await reading)[100:110] == b"x" * 10
        assert_idle(disk)


@pytest.mark.parametrize(("offset", "nbytes"), [(512, 1024), (600, 700), (1024, 512)])
async def test_a_read_that_waited_while_the_node_was_cut_finds_zeroes_there(offset: int, nbytes: int) -> None:
    script = Script(2048, content=pattern(2048, 1), limits={"request_alignment": 512})
    async with opened(script, writable=True, resize=True) as disk:
        script.hold("truncate")
        cutting = asyncio.create_task(disk.truncate(1024))
        await until(lambda: script.held)
        reading = asyncio.create_task(fetch(disk.node, offset, nbytes))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not reading.done()
        script.release()
        await cutting
        assert await reading == pattern(2048, 1)[:1024].ljust(2048, b"\0")[offset : offset + nbytes]
        assert_idle(disk)
