"""The open loop: requests begin when they are due, and what they wait for that counts, in virtual time."""

import asyncio
import heapq
import time

import pytest

from aioblock.bench import Bench, Job
from aioblock.bench.pacing import TimerPace
from tests.kit.scripted import Script, registered

MS = 1_000_000
KiB = 1024


class World:
    """A clock in nanoseconds that goes on to the next moment that anybody waits for, once nothing else happens."""

    def __init__(self) -> None:
        self.now = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = 0
        self._going: asyncio.Task[None] | None = None

    def __call__(self) -> int:
        return self.now

    async def until(self, due: int) -> None:
        if due <= self.now:
            return
        self._number += 1
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (due, self._number, future))
        if self._going is None:
            self._going = asyncio.create_task(self._go_on())
        await future

    async def _go_on(self) -> None:
        while self._waiting:
            for _ in range(20):  # whatever is ready comes first
                await asyncio.sleep(0)
            due, _, future = heapq.heappop(self._waiting)
            if not future.done():
                self.now = due
                future.set_result(None)
        self._going = None


async def measured(service, **how):
    """Run a job whose reads take `service(number)` nanoseconds."""
    world, script, number = World(), Script(64 * KiB), 0

    async def serve(call):
        nonlocal number
        if call.verb == "preadv":
            number += 1
            await world.until(world.now + service(number))

    script.before = serve
    job = Job(image={"driver": "scripted-protocol", "script": script}, name="job", arrivals="uniform", **how)
    with registered():
        bench = Bench([job], clock=world, pace=world, interval=3600)
        result = (await bench.run()).jobs[0]
        if world._going is not None:
            await world._going
    return result


def times(result):
    values, counts = result.kinds["read"].latencies.distribution()
    return [value for value, count in zip(values.tolist(), counts.tolist(), strict=True) for _ in range(count)]


async def test_requests_that_find_a_worker_take_what_they_take():
    result = await measured(lambda number: 2 * MS, rate=100, depth=1, count=50)
    assert times(result) == pytest.approx([2 * MS] * 50, rel=0.001)
    assert result.seconds == pytest.approx(0.492)


async def test_one_that_is_slow_lets_all_behind_it_wait_and_that_counts():
    """Every 10 ms one of 1 ms; the 5th takes 100 ms: those behind it begin late, counted from when they were due.

    A closed loop would show one request of 100 ms; here those that wait are seen: 91, 82, ... ms.
    """
    result = await measured(lambda number: 100 * MS if number == 5 else MS, rate=100, depth=1, count=30)
    late = [100 * MS - 9 * MS * behind for behind in range(12)]
    wanted = sorted([MS] * (30 - len(late)) + [max(time, MS) for time in late])
    assert times(result) == pytest.approx(wanted, rel=0.001)
    assert result.kinds["read"].latencies.longest == 100 * MS


async def test_with_a_second_worker_they_do_not_wait():
    result = await measured(lambda number: 100 * MS if number == 5 else MS, rate=100, depth=2, count=30)
    assert times(result) == pytest.approx([MS] * 29 + [100 * MS], rel=0.001)


async def test_what_could_not_begin_is_told():
    """Half the rate is served: a second at 100 requests a second of 20 ms, so half of them were due but never sent."""
    result = await measured(lambda number: 20 * MS, rate=100, depth=1, seconds=1)
    assert result.operations == 50
    assert result.unsent == 50
    assert result.kinds["read"].latencies.longest == pytest.approx(510 * MS, rel=0.001)


async def test_a_rate_that_is_kept_leaves_nothing_unsent():
    result = await measured(lambda number: 5 * MS, rate=100, depth=1, seconds=1)
    assert (result.operations, result.unsent) == (100, 0)


async def test_a_closed_loop_counts_from_the_begin():
    result = await measured(lambda number: 100 * MS if number == 5 else MS, depth=1, count=30)
    assert times(result) == pytest.approx([MS] * 29 + [100 * MS], rel=0.001)


async def test_the_timer_never_rings_early():
    with TimerPace() as pace:
        for after in (0, 1000, 200_000, -5):
            due = time.perf_counter_ns() + after
            await pace.until(due)
            assert time.perf_counter_ns() >= due


async def test_a_wait_that_was_cancelled_does_not_end_the_next():
    with TimerPace() as pace:
        waiting = asyncio.create_task(pace.until(time.perf_counter_ns() + 1_000_000))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        due = time.perf_counter_ns() + 3_000_000
        await pace.until(due)
        assert time.perf_counter_ns() >= due
