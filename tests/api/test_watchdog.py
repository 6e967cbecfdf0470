"""LoopWatchdog: what it counts, what it reports, and that it leaves nothing behind."""

import asyncio
import random
import threading

import pytest

import aioblock
from aioblock import BlockedLoop, LagHistogram, LoopWatchdog
from tests.kit.watching import until

TURNS = 1_000_000
"""More than fit into the millisecond to which timers are rounded."""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("value", [0, 1, 15, 16, 17, 31, 32, 999, 1000, 65535, 65536, 10**6, 3600 * 10**6])
def test_a_bucket_is_an_eighth_wide_at_most(value):
    lags = LagHistogram()
    lags.record((value + 0.5) / 1e6)
    [(upper, count)] = lags.buckets()
    assert count == 1
    assert value <= upper * 1e6 * (1 + 1e-9)
    assert upper * 1e6 <= max(value * 9 / 8 + 1, 16)


def test_percentiles_are_those_of_the_values():
    rng = random.Random(3)
    values = sorted(rng.expovariate(100) for _ in range(1000))
    lags = LagHistogram()
    for value in values:
        lags.record(value)
    for percent in (1, 50, 90, 99, 100):
        exact = values[max(int(len(values) * percent / 100) - 1, 0)]
        assert exact * 0.999 <= lags.percentile(percent) <= exact * 1.13 + 1e-6
    assert lags.percentile(100) == lags.maximum == values[-1]
    assert len(lags) == 1000


def test_of_nothing_and_of_early_ticks():
    lags = LagHistogram()
    assert (len(lags), lags.percentile(99), lags.maximum, lags.buckets()) == (0, 0.0, 0.0, [])
    lags.record(-0.001)
    assert (len(lags), lags.maximum) == (1, 0.0)


def test_two_make_one():
    one, other = LagHistogram(), LagHistogram()
    one.record(0.001)
    other.record(0.004)
    other.record(0.001)
    one.add(other)
    assert [count for _, count in one.buckets()] == [2, 1] and one.maximum == 0.004


async def test_a_tick_counts_how_late_it_is():
    clock = Clock()
    watchdog = LoopWatchdog(interval=1e-6, bound=0.05, clock=clock)
    with watchdog:
        for lag in (0.0, 0.25, 0.01):
            seen = len(watchdog.lags)
            clock.now += watchdog.interval + lag
            await until(lambda seen=seen: len(watchdog.lags) > seen, TURNS)
    assert watchdog.lags.maximum == pytest.approx(0.25)
    assert watchdog.blocked == 1


async def test_nothing_is_counted_after_the_end():
    watchdog = LoopWatchdog(interval=1e-6)
    with watchdog:
        await until(lambda: len(watchdog.lags), TURNS)
    seen = len(watchdog.lags)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(watchdog.lags) == seen
    watchdog.stop()  # once more does nothing


async def test_a_blocked_loop_is_reported_with_its_stack():
    clock, seen = Clock(), threading.Event()
    reported: list[BlockedLoop] = []

    def report(blocked: BlockedLoop) -> None:
        assert threading.current_thread() is not threading.main_thread()
        reported.append(blocked)
        seen.set()

    def keeps_the_loop() -> None:
        clock.now += 10
        assert seen.wait(20)  # ends only because it was reported

    with LoopWatchdog(interval=1, bound=0.002, on_blocked=report, clock=clock):
        keeps_the_loop()
    [blocked] = reported
    assert blocked.seconds == pytest.approx(9)
    assert "keeps_the_loop" in "".join(blocked.stack.format())


async def test_one_blocking_is_reported_once():
    clock = Clock()
    reported: list[BlockedLoop] = []
    watchdog = LoopWatchdog(interval=3600, bound=3600, on_blocked=reported.append, clock=clock)
    with watchdog:
        clock.now += 7000
        watchdog._look(threading.get_ident())
        assert not reported  # late, but less than the bound
        clock.now += 300
        watchdog._look(threading.get_ident())
        watchdog._look(threading.get_ident())
    assert [blocked.seconds for blocked in reported] == [pytest.approx(3700)]


async def test_it_can_be_started_again_but_not_twice():
    watchdog = LoopWatchdog(on_blocked=lambda blocked: None)
    with watchdog:
        with pytest.raises(RuntimeError):
            watchdog.start()
    with watchdog:
        assert "running" in repr(watchdog)
    assert "stopped" in repr(watchdog)


def test_its_thread_ends_with_the_loop_though_nobody_stopped_it():
    async def forget() -> LoopWatchdog:
        watchdog = LoopWatchdog(bound=0.01, on_blocked=lambda blocked: None)
        watchdog.start()
        return watchdog

    watchdog = asyncio.run(forget())
    assert watchdog._watcher is not None
    watchdog._watcher.join(20)
    assert not watchdog._watcher.is_alive()


@pytest.mark.parametrize("wrong", [{"interval": 0}, {"bound": -1}])
def test_times_that_make_no_sense(wrong):
    with pytest.raises(ValueError):
        LoopWatchdog(**wrong)


def test_it_is_public():
    assert aioblock.LoopWatchdog is LoopWatchdog
