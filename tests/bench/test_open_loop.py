"""The open loop: requests begin when they are due, and what they wait for that counts, in virtual time."""

import asyncio
import heapq
import time
from collections.abc import Callable

import pytest

from aioblock.bench import Bench, Job
from aioblock.bench.arriving import Arriving
from aioblock.bench.pacing import TimerPace
from tests.kit.scripted import Script, registered

MS = 1_000_000
KiB = 1024


class World:
    """A clock in nanoseconds that goes on to the next moment that anybody waits for, once nothing else happens."""

    def __init__(self) -> None:
        self.now = 0
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self._ringing = 0
        self.going: asyncio.Task[None] | None = None

    def __call__(self) -> int:
        return self.now

    def ring_at(self, due: int, call: Callable[[], None]) -> None:
        """As a Pace: the last one that was set."""
        self._ringing = self._number + 1
        mine = self._ringing
        self._at(due, lambda: call() if mine == self._ringing else None)

    async def takes(self, nanoseconds: int) -> None:
        done = asyncio.get_running_loop().create_future()
        self._at(self.now + nanoseconds, lambda: done.set_result(None))
        await done

    def _at(self, due: int, call: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._waiting, (due, self._number, call))
        if self.going is None:
            self.going = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        while self._waiting:
            for _ in range(20):  # whatever is ready comes first
                await asyncio.sleep(0)
            due, _, call = heapq.heappop(self._waiting)
            self.now = max(self.now, due)
            call()
        self.going = None


async def measured(service, **how):
    """Run a job whose reads take `service(number)` nanoseconds."""
    world, script, number = World(), Script(64 * KiB), 0

    async def serve(call):
        nonlocal number
        if call.verb == "preadv":
            number += 1
            await world.takes(service(number))

    script.before = serve
    job = Job(image={"driver": "scripted-protocol", "script": script}, name="job", arrivals="uniform", **how)
    with registered():
        bench = Bench([job], clock=world, pace=world, interval=3600)
        result = (await bench.run()).jobs[0]
        if world.going is not None:
            await world.going
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


async def test_a_busy_loop_does_not_decide_how_many_begin():
    """All that are due when the loop gets to it begin in the same turn."""
    world, begun = World(), []
    arriving = Arriving(iter(range(0, 100, 10)), world, world)

    async def worker() -> None:
        while (due := await arriving.next()) is not None:
            begun.append((due, world.now))
            await asyncio.get_running_loop().create_future()  # it never has time for another one

    workers = [asyncio.create_task(worker()) for _ in range(5)]
    await asyncio.sleep(0)
    assert begun == [(0, 0)]
    world.now = 35
    arriving._ring()
    await asyncio.sleep(0)
    assert begun == [(0, 0), (10, 35), (20, 35), (30, 35)]
    assert arriving.taken == 4
    arriving.end()
    await asyncio.sleep(0)
    assert [task.done() for task in workers] == [False, False, False, False, True]
    for task in workers:
        task.cancel()
    await asyncio.wait(workers)
    world.going.cancel()


async def test_the_timer_never_rings_early():
    with TimerPace() as pace:
        for after in (0, 1000, 200_000, -5):
            rung = asyncio.get_running_loop().create_future()
            due = time.perf_counter_ns() + after
            pace.ring_at(due, lambda rung=rung: rung.set_result(time.perf_counter_ns()))
            assert await rung >= due


async def test_the_timer_rings_for_the_last_one_only():
    with TimerPace() as pace:
        rung = asyncio.get_running_loop().create_future()
        pace.ring_at(time.perf_counter_ns() + 1_000_000, lambda: rung.set_result("first"))
        pace.ring_at(time.perf_counter_ns() + 2_000_000, lambda: rung.set_result("second"))
        assert await rung == "second"
        pace.ring_at(time.perf_counter_ns(), lambda: rung.set_result("after the end"))
    await asyncio.sleep(0)


async def test_without_timerfd_the_loop_rings(monkeypatch):
    monkeypatch.setattr("sys.platform", "other")
    with TimerPace() as pace:
        rung = asyncio.get_running_loop().create_future()
        pace.ring_at(time.perf_counter_ns() + 10**12, lambda: rung.set_result("first"))
        pace.ring_at(time.perf_counter_ns() + 1000, lambda: rung.set_result("second"))
        assert await rung == "second"
