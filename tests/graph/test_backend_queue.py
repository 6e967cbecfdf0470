"""The bounded queue of a handle: order, limits, waiters that leave, and letting others run."""

import asyncio

import pytest

import aioblock
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
async def test_a_run_of_requests_that_never_wait_lets_others_run(call, monkeypatch):
    monkeypatch.setattr("aioblock.graph.backend.monotonic", lambda: 0.0)  # however busy the machine is
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


# -- giving way ----------------------------------------------------------------------------------------------------


class Turns:
    """A clock that only turns of the loop move on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.taking, self.turns = 0.0, 0.0, 0
        monkeypatch.setattr("aioblock.graph.backend.monotonic", lambda: self.now)
        self._sleep = asyncio.sleep
        monkeypatch.setattr("aioblock.graph.backend.asyncio.sleep", self._turn)

    async def _turn(self, seconds: float) -> None:
        assert seconds == 0
        self.now += self.taking
        self.turns += 1
        await self._sleep(0)


async def test_the_longer_a_turn_takes_the_sooner_requests_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with await aioblock.open({"driver": "null-co", "size": SIZE}) as disk:
        turns = Turns(monkeypatch)

        async def reads_between_turns(count: int = 64) -> float:
            before = turns.turns
            for _ in range(count):
                await disk.pread(0, 1)
            return count / (turns.turns - before)

        assert await reads_between_turns(126) == 126 / 6  # 2, 4, 8, ... 64
        assert await reads_between_turns() == 64
        turns.taking = 1.0
        await reads_between_turns()
        assert await reads_between_turns() == 1
        turns.taking = 0.003  # neither long nor short: as it is
        assert await reads_between_turns() == 1
        turns.taking = 0.0
        await reads_between_turns(200)
        assert await reads_between_turns() == 64
