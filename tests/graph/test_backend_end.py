"""What a cancelled request leaves behind, and the end of a handle."""

import asyncio
import errno

import pytest

import aioblock
from aioblock.drivers.protocols.memory import MemoryDisk
from tests.kit.cancel_points import cancelled_at
from tests.kit.qcow2_images import new_image, open_disk
from tests.kit.recorded_disk import RecordedDisk, fail_nth
from tests.kit.scripted import Script, opened
from tests.kit.watching import assert_idle, until

SIZE = 65536
BLOCK = 4096


def started(*coros):
    return [asyncio.create_task(coro) for coro in coros]


async def ended(tasks):
    """Let tasks come to their end, and give their errors, or None."""
    return [
        result if isinstance(result, BaseException) else None
        for result in await asyncio.gather(*tasks, return_exceptions=True)
    ]


# -- cancellation ----------------------------------------------------------------------------------------------------


async def test_a_cancelled_read_stops():
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script) as disk:
        (task,) = started(disk.pread(0, 512))
        await until(lambda: script.held)
        task.cancel()
        assert isinstance((await ended([task]))[0], asyncio.CancelledError)
        assert script.calls("preadv")[0].outcome == "cancelled"
        assert_idle(disk)


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("pwritev", lambda disk: disk.pwrite(0, b"x" * BLOCK)),
        ("pwrite_zeroes", lambda disk: disk.pwrite_zeroes(0, BLOCK)),
        ("pdiscard", lambda disk: disk.pdiscard(0, BLOCK)),
        ("flush", lambda disk: disk.flush()),
        ("truncate", lambda disk: disk.truncate(2 * SIZE)),
    ],
)
async def test_a_changing_request_that_has_begun_runs_to_its_end(verb, call):
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(BLOCK, b"y")  # so that a flush has something to do
        script.hold(verb)
        (task,) = started(call(disk))
        await until(lambda: script.held)
        task.cancel()
        assert isinstance((await ended([task]))[0], asyncio.CancelledError)
        assert disk.in_flight == 1
        (draining,) = started(disk.drained().__aenter__())
        await asyncio.sleep(0)
        assert not draining.done()
        script.release()
        await until(lambda: not disk.in_flight)
        assert script.calls(verb)[-1].outcome == "done"
        draining.cancel()
        await ended([draining])


async def test_an_error_nobody_waits_for_is_counted_and_not_lost_in_the_log():
    script = Script(SIZE)
    script.hold("pwritev")
    script.fail("pwritev", OSError(errno.ENOSPC, "No space left on device"))
    async with opened(script, writable=True) as disk:
        (task,) = started(disk.pwrite(0, b"x" * BLOCK))
        await until(lambda: script.held)
        task.cancel()
        await ended([task])
        script.release()
        await until(lambda: not disk.in_flight)
        assert disk.statistics.failed == 1
        assert disk.statistics.writes == 0


@pytest.mark.parametrize(
    "verb", ["pread", "pwrite", "pwrite_zeroes", "flush", "status", "extents", "drained", "reopen"]
)
async def test_cancelled_at_every_await_nothing_is_left_in_flight(verb):
    async def pause(call):
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    top, low = Script(SIZE, cluster=BLOCK), Script(SIZE // 2, content=b"low" * 999)
    async with opened(top, low, files={top: Script(SIZE)}, writable=True, max_in_flight=2) as disk:
        for script in (top, low):
            script.before = pause

        async def ask():
            match verb:
                case "pread":
                    await disk.pread(100, 3 * BLOCK)
                case "pwrite":
                    await disk.pwrite(100, b"x" * BLOCK)
                case "pwrite_zeroes":
                    await disk.pwrite_zeroes(100, BLOCK)
                case "flush":
                    await disk.pwrite(0, b"x")  # so that there is something to do
                    await disk.flush()
                case "status":
                    await disk.block_status_above(None, 0, SIZE)
                case "extents":
                    async for _ in disk.extents():
                        pass
                case "drained":
                    async with disk.drained():
                        await asyncio.sleep(0)
                case "reopen":
                    await disk.reopen(cache="unsafe")

        number = 1
        while (run := await cancelled_at(ask(), number)).reached:
            assert run.error is None
            await until(lambda: not disk._tasks)
            assert_idle(disk)
            assert not disk.node.quiesced and "queued=0" in repr(disk)
            assert len(await disk.pread(0, 1)) == 1
            number += 1
        assert number > 2
        for script in (top, low):
            script.before = None


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_after_close_every_verb_says_so():
    async with opened(Script(SIZE), writable=True) as disk:
        pass
    for coro in (
        disk.pread(0, 1),
        disk.readinto(0, bytearray(1)),
        disk.pwrite(0, b"x"),
        disk.pwrite_zeroes(0, 1),
        disk.pdiscard(0, 1),
        disk.flush(),
        disk.truncate(1),
        disk.block_status(0, 1),
        disk.block_status_above(None, 0, 1),
        disk.is_zero(0, 1),
        disk.check(),
        disk.reopen(writable=False),
        anext(aiter(disk.extents())),
    ):
        with pytest.raises(OSError) as caught:
            await coro
        assert caught.value.errno == errno.EBADF
    assert "closed" in repr(disk)


async def test_close_waits_for_what_is_in_flight_and_flushes():
    script = Script(SIZE)
    script.hold("pwritev")
    async with opened(script, writable=True) as disk:
        (writing,) = started(disk.pwrite(0, b"x" * BLOCK))
        await until(lambda: script.held)
        closing, again = started(disk.close(), disk.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not closing.done() and not again.done()
        script.release()
        await asyncio.gather(writing, closing, again)
        assert [call.verb for call in script.log if call.verb != "getlength"] == ["open", "pwritev", "flush", "close"]
        await disk.close()
        assert len(script.calls("close")) == 1


async def test_close_turns_away_who_waits():
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script, max_in_flight=1) as disk:
        tasks = started(*(disk.pread(0, 1) for _ in range(4)))
        await until(lambda: script.held)
        await asyncio.sleep(0)
        (closing,) = started(disk.close())
        results = await ended(tasks[1:])
        assert [result.errno for result in results] == [errno.EBADF] * 3
        assert not tasks[0].done()
        script.release()
        await asyncio.gather(tasks[0], closing)


async def test_a_cancelled_close_goes_on_and_a_second_one_waits_for_it():
    script = Script(SIZE)
    script.hold("close")
    async with opened(script) as disk:
        (closing,) = started(disk.close())
        await until(lambda: script.held)
        closing.cancel()
        await ended([closing])
        (again,) = started(disk.close())
        await asyncio.sleep(0)
        assert not again.done()
        script.release()
        await again
        assert [call.outcome for call in script.calls("close")] == ["done"]


async def test_close_waits_for_a_reopen_whose_caller_has_left(monkeypatch):
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(**mode):
            reached.set()
            await go_on.wait()

        monkeypatch.setattr(disk.node.driver, "reopen", slowly)
        (reopening,) = started(disk.reopen(cache="unsafe"))
        await reached.wait()
        reopening.cancel()
        await ended([reopening])
        (closing,) = started(disk.close())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not script.calls("close")
        go_on.set()
        await closing
        assert disk.node.closed and disk.node.cache.no_flush


async def test_a_flush_that_fails_at_the_end_is_told_and_all_is_closed():
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
        script.fail("flush", OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError, match="Input/output error"):
            await disk.close()
        assert len(script.calls("close")) == 1
        await disk.close()


async def test_an_error_inside_the_block_closes_and_comes_through():
    script = Script(SIZE)
    async with opened(script) as disk:
        with pytest.raises(LookupError):
            async with disk:
                raise LookupError
        assert script.calls("close")


async def test_two_handles_on_one_disk_in_memory():
    disk = MemoryDisk(SIZE)
    options = {"driver": "memory", "disk": disk}
    async with await aioblock.open(options, writable=True) as one, await aioblock.open(options) as other:
        await one.pwrite(5, b"hello")
        assert await other.pread(5, 5) == b"hello"
        assert one.node is not other.node


async def test_what_ends_the_block_is_raised_and_what_the_close_meets_is_a_note_of_it() -> None:
    disk = RecordedDisk(await new_image(1 << 20, cluster_size=4096))
    disk.before = fail_nth(1, OSError(errno.EIO, "no flush"), verbs=("flush",))
    with pytest.raises(ValueError, match="mine") as caught:
        async with await open_disk(disk) as image:
            await image.pwrite(0, b"data")
            raise ValueError("mine")
    assert caught.value.__notes__ == ["Closing the image failed too: no flush"]
    disk.before = fail_nth(1, OSError(errno.EIO, "no flush"), verbs=("flush",))
    with pytest.raises(OSError, match="no flush"):
        async with await open_disk(disk) as image:
            await image.pwrite(0, b"data")
