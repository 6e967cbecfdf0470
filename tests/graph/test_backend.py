"""The user's handle: its queue, its bounds, what a cancelled call leaves behind, its counters, its end."""

import asyncio
import errno
import threading

import pytest

import aioblock
from aioblock.base.errors import NotSupported
from aioblock.base.flags import ALLOCATED, DATA, EOF, REQ_COMPRESSED, REQ_FUA, REQ_NO_FALLBACK, ZERO
from aioblock.drivers.protocols.memory import MemoryDisk
from tests.kit.cancel_points import cancelled_at
from tests.kit.scripted import Script, assert_idle, opened, until

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


# -- the queue -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_no_more_than_the_limit_run_at_a_time_first_come_first_served(limit):
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script, max_in_flight=limit) as disk:
        tasks = started(*(disk.pread(number * BLOCK, BLOCK) for number in range(6)))
        for served in range(6):
            expected = min(limit, 6 - served)
            await until(lambda expected=expected: len(script.held) == expected)
            await asyncio.sleep(0)
            assert len(script.held) == disk.in_flight == expected
            assert [call.offset // BLOCK for call in script.calls("preadv")] == list(range(min(served + limit, 6)))
            script.release(script.held[0])
        await asyncio.gather(*tasks)
        assert_idle(disk)


async def test_different_verbs_wait_in_one_line():
    script = Script(SIZE)
    script.hold("pwritev")
    async with opened(script, writable=True, max_in_flight=1) as disk:
        tasks = started(
            disk.pwrite(0, b"x" * BLOCK),
            disk.pread(0, 512),
            disk.pwrite_zeroes(0, BLOCK),
            disk.flush(),
            disk.block_status(0, BLOCK),
            disk.pdiscard(0, BLOCK),
            disk.truncate(SIZE * 2),
        )
        await until(lambda: script.held)
        await asyncio.sleep(0)
        assert "queued=6" in repr(disk)
        script.release()
        await asyncio.gather(*tasks)
        verbs = ["pwritev", "preadv", "pwrite_zeroes", "flush", "block_status", "pdiscard", "truncate"]
        seen = [call.verb for call in script.log if call.verb in verbs]
        assert sorted(seen, key=verbs.index) == seen and set(seen) == set(verbs)
        assert_idle(disk)


async def test_who_comes_later_does_not_overtake_who_waits():
    """Also not in the moment between a turn that is free and the waiter that it was given to."""
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script, max_in_flight=1) as disk:
        first, second = started(disk.pread(0, 1), disk.pread(1, 1))
        await until(lambda: script.held)
        await asyncio.sleep(0)
        script.release(script.held[0])
        await first
        (third,) = started(disk.pread(2, 1))
        await until(lambda: script.held)
        script.release()
        await asyncio.gather(second, third)
        assert [call.offset for call in script.calls("preadv")] == [0, 1, 2]


async def test_a_cancelled_waiter_is_as_if_it_had_not_come():
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script, max_in_flight=1) as disk:
        tasks = started(*(disk.pread(number, 1) for number in range(4)))
        await until(lambda: script.held)
        await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[2].cancel()
        script.release()
        results = await ended(tasks)
        assert [type(result) for result in results] == [
            type(None),
            asyncio.CancelledError,
            asyncio.CancelledError,
            type(None),
        ]
        assert [call.offset for call in script.calls("preadv")] == [0, 3]
        assert_idle(disk)


async def test_a_waiter_that_is_cancelled_when_its_turn_has_come_hands_it_on():
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script, max_in_flight=1) as disk:
        first, second, third = started(*(disk.pread(number, 1) for number in range(3)))
        await until(lambda: script.held)
        await asyncio.sleep(0)
        leave = disk._leave

        def leave_and_cancel():
            leave()  # gives the turn to the second, which has not run yet
            second.cancel()

        disk._leave = leave_and_cancel
        script.release()
        results = await ended([first, second, third])
        assert isinstance(results[1], asyncio.CancelledError)
        assert [call.offset for call in script.calls("preadv")] == [0, 2]
        assert_idle(disk)


async def test_a_waiter_that_is_cancelled_and_skipped_in_one_turn():
    """The turn passes by a cancelled waiter before that one has run: it must not miss itself in the line."""
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script, max_in_flight=1) as disk:
        first, second, third = started(*(disk.pread(number, 1) for number in range(3)))
        await until(lambda: script.held)
        await asyncio.sleep(0)
        script.release()
        second.cancel()
        results = await ended([first, second, third])
        assert isinstance(results[1], asyncio.CancelledError)
        assert results[0] is results[2] is None
        assert_idle(disk)


async def test_a_waiter_that_is_cancelled_while_the_image_is_closed():
    """In both orders: neither loses the count, neither trips over the line that is gone."""
    for cancel_first in (True, False):
        script = Script(SIZE)
        script.hold("preadv")
        async with opened(script, max_in_flight=1) as disk:
            first, second = started(disk.pread(0, 1), disk.pread(1, 1))
            await until(lambda: script.held)  # noqa: B023
            await asyncio.sleep(0)
            if cancel_first:
                second.cancel()
            (closing,) = started(disk.close())
            await asyncio.sleep(0)
            second.cancel()
            script.release()
            results = await ended([first, second, closing])
            assert results[0] is results[2] is None
            assert isinstance(results[1], (asyncio.CancelledError, OSError))
            assert disk.in_flight == 0


@pytest.mark.slow
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_random_arrivals_and_cancellations_lose_no_turn():
    import random

    chance = random.Random(11)
    script = Script(SIZE)
    script.hold("preadv")
    async with opened(script, max_in_flight=3) as disk:
        tasks = []
        for _ in range(3000):
            match chance.randrange(5):
                case 0 | 1:
                    tasks += started(disk.pread(0, 1))
                case 2 if script.held:
                    script.release(chance.choice(script.held))
                case 3 if tasks:
                    chance.choice(tasks).cancel()
                case _:
                    await asyncio.sleep(0)
            assert 0 <= disk.in_flight <= 3
            assert len(script.held) <= 3
        script.release()
        for result in await ended(tasks):
            assert result is None or isinstance(result, asyncio.CancelledError)
        assert_idle(disk)
        assert "queued=0" in repr(disk)


async def test_a_limit_below_one_is_one():
    async with opened(Script(SIZE), max_in_flight=0) as disk:
        assert len(await disk.pread(0, 1)) == 1


# -- bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (-1, 1), (-5, 10), (1 << 63, 1), (1 << 70, 5)]
)
async def test_out_of_range_is_an_input_output_error(offset, nbytes):
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        for coro in (
            disk.pread(offset, nbytes),
            disk.readinto(offset, bytearray(nbytes)),
            disk.pwrite(offset, bytes(nbytes)),
            disk.pwrite_zeroes(offset, nbytes),
            disk.pdiscard(offset, nbytes),
        ):
            with pytest.raises(OSError) as caught:
                await coro
            assert caught.value.errno == errno.EIO
        assert disk.statistics.failed == 5
        assert {call.verb for call in script.log} <= {"open", "getlength"}
        assert_idle(disk)


async def test_a_huge_read_takes_no_memory():
    async with opened(Script(SIZE)) as disk:
        for nbytes in (1 << 50, -1):
            with pytest.raises(OSError):
                await disk.pread(0, nbytes)


async def test_requests_of_no_bytes():
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        for offset in (0, 5, SIZE):
            assert await disk.pread(offset, 0) == b""
            await disk.pwrite(offset, b"")
            await disk.pwrite_zeroes(offset, 0)
            await disk.pdiscard(offset, 0)
        assert not script.calls("preadv") and not script.calls("pwritev")
        assert (await disk.block_status(SIZE, 10)).flags == EOF
        assert (await disk.block_status(0, 0)).pnum == 0


async def test_a_read_only_image_is_not_written():
    async with opened(Script(SIZE)) as disk:
        assert not disk.writable
        for coro in (disk.pwrite(0, b"x"), disk.pwrite_zeroes(0, 1), disk.truncate(5), disk.pdiscard(0, BLOCK)):
            with pytest.raises(PermissionError):
                await coro
        await disk.flush()  # nothing to be done


@pytest.mark.parametrize(
    "make", [bytearray, lambda n: memoryview(bytearray(n)), lambda n: memoryview(bytearray(n)).cast("H")]
)
async def test_buffers_of_any_kind(make):
    async with opened(Script(SIZE, content=b"abcdef"), writable=True) as disk:
        buffer = make(6)
        await disk.readinto(0, buffer)
        assert bytes(buffer) == b"abcdef"
        await disk.pwrite(2, buffer)
        assert await disk.pread(0, 8) == b"ababcdef"


async def test_scattered_memory_is_refused_before_anything_happens():
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        with pytest.raises(TypeError):
            await disk.pwrite(0, memoryview(bytes(8))[::2])
        with pytest.raises(TypeError):
            await disk.readinto(0, memoryview(bytearray(8))[::2])
        assert not script.calls("pwritev")
        assert_idle(disk)


async def test_compressed_writes_are_whole_clusters():
    async with opened(Script(SIZE + 100, cluster=BLOCK), writable=True) as disk:
        for offset, nbytes in ((1, BLOCK), (0, BLOCK - 1), (SIZE, 50)):
            with pytest.raises(OSError) as caught:
                await disk.pwrite(offset, bytes(nbytes), REQ_COMPRESSED)
            assert caught.value.errno == errno.EINVAL
        await disk.pwrite(SIZE, b"x" * 100, REQ_COMPRESSED)  # the last one may be short
    async with opened(Script(SIZE), writable=True) as disk:
        with pytest.raises(NotSupported):
            await disk.pwrite(0, bytes(BLOCK), REQ_COMPRESSED)


# -- other loops and threads -----------------------------------------------------------------------------------------


async def test_another_event_loop_is_refused():
    async with opened(Script(SIZE), writable=True) as disk:
        for make in (
            lambda: disk.pread(0, 1),
            lambda: disk.readinto(0, bytearray(1)),
            lambda: disk.pwrite(0, b"x"),
            lambda: disk.flush(),
            lambda: disk.block_status(0, 1),
            lambda: disk.close(),
            lambda: disk.reopen(writable=False),
        ):
            errors = []

            def elsewhere(make=make, errors=errors):
                async def use():
                    await make()

                try:
                    asyncio.run(use())
                except RuntimeError as error:
                    errors.append(str(error))

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert len(errors) == 1 and "belongs to another event loop" in errors[0]
        assert_idle(disk)
        assert len(await disk.pread(0, 1)) == 1


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


# -- statistics ------------------------------------------------------------------------------------------------------


async def test_requests_are_counted():
    async with opened(Script(SIZE), writable=True) as disk:
        await disk.pread(0, 10)
        await disk.readinto(5, bytearray(20))
        await disk.pwrite(0, b"x" * 7)
        await disk.pwrite_zeroes(0, 9)
        await disk.pdiscard(0, BLOCK)
        await disk.flush()
        await disk.block_status(0, 1)
        await disk.block_status_above(None, 0, 1)
        counted = {name: value for name, value in disk.statistics.as_dict().items() if not name.startswith("probes")}
        assert counted == {
            "reads": 2,
            "bytes_read": 30,
            "writes": 1,
            "bytes_written": 7,
            "zeroes": 1,
            "bytes_zeroed": 9,
            "discards": 1,
            "bytes_discarded": BLOCK,
            "flushes": 1,
            "status": 2,
            "failed": 0,
        }


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("preadv", lambda disk: disk.pread(0, 10)),
        ("pwritev", lambda disk: disk.pwrite(0, b"x")),
        ("flush", lambda disk: disk.flush()),
    ],
)
async def test_failures_are_counted_once_and_not_as_done(verb, call):
    script = Script(SIZE)
    async with opened(script, writable=True) as disk:
        await disk.pwrite(0, b"x")
        before = disk.statistics.as_dict()
        script.fail(verb, OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError):
            await call(disk)
        assert disk.statistics.as_dict() == before | {"failed": 1}
        assert_idle(disk)
        if verb == "flush":  # it is told again
            with pytest.raises(OSError):
                await disk.close()
    assert script.calls("close")


# -- fairness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda disk: disk.pread(0, 512),
        lambda disk: disk.pwrite(0, b"x" * 512),
        lambda disk: disk.block_status(0, 512),
        lambda disk: disk.block_status_above(None, 0, 512),
        lambda disk: disk.is_zero(0, 512),
    ],
)
async def test_a_run_of_requests_that_never_wait_lets_others_run(call):
    async with await aioblock.open({"driver": "memory", "size": SIZE}, writable=True) as disk:
        turns = 0
        stop = False

        async def other():
            nonlocal turns
            while not stop:
                turns += 1
                await asyncio.sleep(0)

        (task,) = started(other())
        for _ in range(1000):
            await call(disk)
        stop = True
        await task
        assert 1000 // 64 <= turns <= 100


# -- writethrough ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache", "flags", "flushes"), [("writeback", 0, 0), ("writeback", REQ_FUA, 1), ("writethrough", 0, 1)]
)
async def test_a_write_is_followed_by_a_flush_where_it_must(cache, flags, flushes):
    script = Script(SIZE, attributes={"supported_write_flags": 0, "supported_zero_flags": 0})
    async with opened(script, writable=True, cache=cache) as disk:
        await disk.pwrite(0, b"x" * 512, flags)
        assert len(script.calls("flush")) == flushes
        await disk.pwrite_zeroes(0, 512, flags)
        assert len(script.calls("flush")) == 2 * flushes


async def test_zeroes_without_a_fall_back():
    script = Script(SIZE, lacks=("pwrite_zeroes", "extents"))
    async with opened(script, writable=True) as disk:
        with pytest.raises(NotSupported):
            await disk.pwrite_zeroes(0, 512, REQ_NO_FALLBACK)
        assert not script.calls("pwritev")
        await disk.pwrite_zeroes(0, 512)
        assert len(script.calls("pwritev")) == 1


# -- extents ---------------------------------------------------------------------------------------------------------


async def test_extents_merge_neighbours_that_say_the_same():
    runs = [(DATA, 4096), (DATA, 4096), (ZERO, 8192), (ZERO, 4096), (0, SIZE - 20480)]
    script = Script(SIZE, runs)
    async with opened(script) as disk:
        found = [
            (extent.offset, extent.length, extent.flags & (DATA | ZERO | ALLOCATED)) async for extent in disk.extents()
        ]
        assert found == [(0, 8192, DATA | ALLOCATED), (8192, 12288, ZERO | ALLOCATED), (20480, SIZE - 20480, ZERO)]
        last = [extent async for extent in disk.extents()][-1]
        assert last.flags & EOF and last.depth == 0
        assert str(last) == "0x5000+0xb000 ZERO|EOF depth 0"


async def test_extents_of_a_part():
    async with opened(Script(SIZE, [(DATA, 8192), (ZERO, SIZE - 8192)])) as disk:
        found = [(extent.offset, extent.length) async for extent in disk.extents(4096, 8192)]
        assert found == [(4096, 4096), (8192, 4096)]
        assert [extent async for extent in disk.extents(0, 0)] == []


async def test_extents_that_nobody_finishes_leave_nothing_behind():
    script = Script(SIZE, [(DATA if number % 2 else ZERO, 512) for number in range(128)])
    async with opened(script) as disk:
        async for _ in disk.extents():
            break
        runs = disk.extent_batches()
        await anext(runs)
        await runs.aclose()
        assert_idle(disk)


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
