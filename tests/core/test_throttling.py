"""Leaky buckets and groups, on a clock that the test moves."""

import asyncio
import random
from collections.abc import Callable

import pytest

from aioblock.base.errors import OptionError
from aioblock.base.options import Options, nest
from aioblock.core.throttling import Bucket, Limits, ThrottleGroup, ThrottleMember


class Clock:
    """Time stands still until `advance`."""

    def __init__(self) -> None:
        self.time = 0.0
        self.alarms: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.time

    def call_later(self, delay: float, callback: Callable[[], None]) -> object:
        assert delay >= 0
        self.alarms.append((self.time + delay, callback))
        return callback

    async def advance(self, seconds: float) -> None:
        """Let time pass, ring what is due, and let the tasks run that were waiting."""
        end = self.time + seconds
        while any(alarm[0] <= end + 1e-9 for alarm in self.alarms):
            alarm = min(self.alarms, key=lambda alarm: alarm[0])
            self.alarms.remove(alarm)
            self.time = max(self.time, alarm[0])
            alarm[1]()
            await settle()
        self.time = end
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def group(clock: Clock, iops_size: int = 0, **limits: int) -> ThrottleGroup:
    values = {name.replace("_", "-"): value for name, value in limits.items()}
    return ThrottleGroup(Limits(values, iops_size), now=clock.now, call_later=clock.call_later)


class Load:
    """Requests of a member, and when each was let in."""

    def __init__(self, clock: Clock, member: ThrottleMember) -> None:
        self.clock, self.member = clock, member
        self.admitted: list[tuple[float, str]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, nbytes: int = 512, direction: str = "write") -> asyncio.Task[None]:
        async def request() -> None:
            await self.member.admit(direction, nbytes)
            self.admitted.append((round(self.clock.time, 6), name))

        task = asyncio.create_task(request())
        self.tasks.append(task)
        return task

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_operations_as_qemu_paces_them() -> None:
    # qemu-io, x-iops-total=4, x-iops-size=4096, reads of 4k 8k 16k 64k 512: waits 0, .15, .5, 1 and 4 seconds.
    clock = Clock()
    load = Load(clock, ThrottleMember(group(clock, iops_total=4, iops_size=4096)))
    for size in (4096, 8192, 16384, 65536, 512):
        load.start(str(size), size, "read")
    await settle()
    await clock.advance(10)
    assert load.admitted == [(0, "4096"), (0.15, "8192"), (0.65, "16384"), (1.65, "65536"), (5.65, "512")]


async def test_bytes_and_what_is_not_limited() -> None:
    clock = Clock()
    load = Load(clock, ThrottleMember(group(clock, bps_write=1000)))
    for number in range(3):
        load.start(f"w{number}", 1000)
        load.start(f"r{number}", 1000, "read")
    await settle()
    assert [name for _, name in load.admitted] == ["w0", "r0", "r1", "r2"]
    await clock.advance(5)
    assert load.admitted[4:] == [(0.9, "w1"), (1.9, "w2")]


async def test_a_burst_after_a_rest_and_the_average_behind_it() -> None:
    clock = Clock()
    load = Load(clock, ThrottleMember(group(clock, iops_total=10, iops_total_max=20)))
    for number in range(40):
        load.start(str(number))
    await settle()
    assert len(load.admitted) == 21  # what the bucket holds, and the one that makes it run over
    await clock.advance(0.95)
    assert len(load.admitted) == 30
    await clock.advance(60)
    assert len(load.admitted) == 40
    for number in range(30):
        load.start(str(number))
    await settle()
    assert len(load.admitted) == 61
    await load.stop()


async def test_a_long_burst_keeps_below_its_own_rate() -> None:
    clock = Clock()
    load = Load(clock, ThrottleMember(group(clock, iops_total=10, iops_total_max=100, iops_total_max_length=3)))
    for number in range(1000):
        load.start(str(number))
    await settle()
    assert len(load.admitted) == 11  # a tenth of a second's worth of the burst rate
    counts = []
    for _ in range(8):
        before = len(load.admitted)
        await clock.advance(1)
        counts.append(len(load.admitted) - before)
    assert counts[:3] == [100, 100, 100]
    assert counts[4:] == [10, 10, 10, 10]
    await load.stop()


@pytest.mark.parametrize("seed", range(5))
async def test_the_average_holds_for_requests_of_any_size(seed: int) -> None:
    rng = random.Random(seed)
    clock = Clock()
    load = Load(clock, ThrottleMember(group(clock, bps_total=10_000)))
    sizes = {str(number): rng.choice([1, 100, 5000, 40_000]) for number in range(40)}
    for name, size in sizes.items():
        load.start(name, size, rng.choice(["read", "write"]))
    await settle()
    await clock.advance(1000)
    assert len(load.admitted) == len(sizes)
    done = 0
    for when, name in load.admitted:
        assert done <= when * 10_000 + 1_000 + 1
        done += sizes[name]


async def test_members_get_their_turns_one_after_the_other() -> None:
    clock = Clock()
    shared = group(clock, iops_total=10)
    many, few = Load(clock, ThrottleMember(shared)), Load(clock, ThrottleMember(shared))
    for number in range(20):
        many.start(f"m{number}")
    await settle()
    for number in range(3):
        few.start(f"f{number}")
    await settle()
    await clock.advance(0.601)
    assert [name for _, name in few.admitted] == ["f0", "f1", "f2"]
    await clock.advance(10)
    assert len(many.admitted) == 20
    names = [name for _, name in many.admitted]
    assert names == sorted(names, key=lambda name: int(name[1:]))


async def test_a_request_that_is_cancelled_counts_for_nothing_and_holds_nobody_up() -> None:
    clock = Clock()
    shared = group(clock, iops_total=10)
    load = Load(clock, ThrottleMember(shared))
    for number in range(5):
        load.start(str(number))
    await settle()
    load.tasks[2].cancel()
    load.tasks[3].cancel()
    await settle()
    assert len(load.member.waiting["write"]) == 1
    await clock.advance(1)
    assert load.admitted == [(0, "0"), (0, "1"), (0.1, "4")]
    assert load.tasks[2].cancelled()
    assert not any(load.member.waiting.values())


async def test_what_is_let_go_does_not_wait_and_does_not_count() -> None:
    clock = Clock()
    load = Load(clock, ThrottleMember(group(clock, iops_total=1)))
    for number in range(10):
        load.start(str(number))
    await settle()
    before = len(load.admitted)
    assert before < 10
    load.member.unlimited += 1
    load.member.release()
    load.start("later")
    await settle()
    assert len(load.admitted) == 11
    load.member.unlimited -= 1
    load.start("last")
    await settle()
    assert len(load.admitted) == 11
    await clock.advance(3)
    assert load.admitted[-1][1] == "last"


def test_a_bucket_leaks_to_the_ground_and_no_further() -> None:
    bucket = Bucket(10)
    bucket.pour(5)
    assert bucket.wait() == pytest.approx(0.4)
    bucket.leak(100)
    assert bucket.level == 0
    assert bucket.wait() == 0
    assert Bucket().wait() == 0


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (
            {"x-iops-total": 1, "x-iops-read": 1},
            "bps/iops/max total values and read/write values cannot be used at the",
        ),
        (
            {"x-bps-total": 1, "x-bps-total-max": 1, "x-bps-write": 0, "x-bps-write-max": 1},
            "cannot be used at the same",
        ),
        ({"x-iops-total-max": 1}, "bps_max/iops_max require corresponding bps/iops values"),
        ({"x-iops-total": 2, "x-iops-total-max": 1}, "bps_max/iops_max cannot be lower than bps/iops"),
        ({"x-iops-total": 2, "x-iops-total-max-length": 2}, "burst length set without burst rate"),
        ({"x-iops-total": 2, "x-iops-total-max-length": 0}, "the burst length cannot be 0"),
        ({"x-iops-total": 2, "x-iops-total-max": 10**15, "x-iops-total-max-length": 2}, "burst length too high for"),
        ({"x-iops-size": 2}, "iops size requires an iops value to be set"),
        ({"x-iops-total": 10**16}, "bps/iops/max values must be within"),
        ({"x-iops-total": -1}, "Property values cannot be negative"),
        ({"x-iops-total": "4M"}, "Parameter 'x-iops-total' expects integer"),
        ({"x-foo": 1, "x-iops-size": 2}, "Parameter 'x-foo' is unexpected"),
        ({"limits.foo": 1}, "Parameter 'limits.foo' is unexpected"),
        ({"limits": 1}, "Invalid parameter type for 'limits', expected: object"),
    ],
)
def test_definitions_that_make_no_sense(definition: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ThrottleGroup.define(Options(nest(definition)), {})


def test_a_definition() -> None:
    made = ThrottleGroup.define(
        Options(nest({"x-iops-total": "7", "limits.bps-read": 5, "limits.bps-read-max": 9})), {}
    )
    buckets = made.limits.buckets
    assert (buckets["iops-total"].avg, buckets["bps-read"].avg, buckets["bps-read"].max) == (7, 5, 9)
    assert not ThrottleGroup.define(Options({}), {}).limits.applied["read"]
