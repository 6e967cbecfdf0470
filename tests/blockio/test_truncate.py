"""Truncate: the length afterwards is the driver's; requests on the part that comes or goes wait."""

import asyncio
import errno

import pytest

from tests.kit.model import pattern
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until


@pytest.mark.parametrize("length", [0, 1000, 8192, 10_000])
async def test_the_length_is_set_and_what_is_grown_reads_as_zeroes(length: int) -> None:
    script = Script(8192, content=pattern(8192, 1))
    async with opened(script, writable=True, resize=True) as disk:
        await disk.truncate(length)
        assert disk.length == length
        assert await disk.pread(0, length) == pattern(8192, 1)[:length].ljust(length, b"\0")
        assert_idle(disk)


async def test_failed_the_length_is_what_the_driver_could_reach() -> None:
    script = Script(8192)

    async def half_way(call: object) -> None:
        script.resize(9000)

    async with opened(script, writable=True, resize=True) as disk:
        script.fail("truncate", OSError(errno.ENOSPC, "full"))
        with pytest.raises(OSError, match="full"):
            await disk.truncate(10_000)
        assert disk.length == 8192
        script.fail("truncate", OSError(errno.ENOSPC, "full"))
        script.before = half_way
        with pytest.raises(OSError, match="full"):
            await disk.truncate(10_000)
        script.before = None
        assert disk.length == 9000
        assert_idle(disk)


async def test_refused() -> None:
    async with opened(Script(8192)) as disk:
        with pytest.raises(OSError) as caught:
            await disk.truncate(4096)
        assert caught.value.errno == errno.EACCES
        assert_idle(disk)
    async with opened(Script(8192, lacks=["extents", "truncate"]), writable=True, resize=True) as disk:
        with pytest.raises(OSError) as caught:
            await disk.truncate(4096)
        assert caught.value.errno == errno.ENOTSUP
        for length in (-1, 1 << 63):
            with pytest.raises(OSError):
                await disk.truncate(length)
        assert disk.length == 8192
        assert_idle(disk)


async def test_requests_on_the_part_that_goes_come_first_or_wait_and_others_do_not() -> None:
    script = Script(8192, content=pattern(8192, 1))
    async with opened(script, writable=True, resize=True) as disk:
        script.hold("pwritev", "truncate")
        writing = asyncio.create_task(disk.pwrite(6000, b"x"))
        await until(lambda: script.held)
        cutting = asyncio.create_task(disk.truncate(4096))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not script.calls("truncate")
        script.release(script.held[0])
        await writing
        await until(lambda: script.held)
        behind = asyncio.create_task(disk.pread(4000, 4192))
        assert await disk.pread(0, 4096) == pattern(8192, 1)[:4096]
        assert not behind.done()
        script.release()
        await cutting
        assert await behind == pattern(8192, 1)[4000:4096].ljust(4192, b"\0")
        assert_idle(disk)


async def test_one_after_the_other() -> None:
    script = Script(8192, content=pattern(8192, 1))
    async with opened(script, writable=True, resize=True) as disk:
        script.hold("truncate")
        tasks = [asyncio.create_task(disk.truncate(length)) for length in (1000, 16_384, 500, 12_000)]
        await until(lambda: script.held)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(script.held) == 1
        script.release()
        await asyncio.gather(*tasks)
        assert [call.offset for call in script.calls("truncate")] == [1000, 16_384, 500, 12_000]
        assert disk.length == 12_000
        assert await disk.pread(0, 12_000) == pattern(8192, 1)[:500].ljust(12_000, b"\0")
        assert_idle(disk)
