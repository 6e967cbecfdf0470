"""Bench: what it sends, what it counts, and what it leaves behind."""

import asyncio
import errno
from collections import Counter

import pytest

import aioblock
from aioblock import OptionError, VerifyError
from aioblock.bench import Bench, Job
from tests.kit.cancel_points import cancelled_at, open_files, settled
from tests.kit.scripted import Script, assert_idle, opened, registered, until

KiB = 1024


def scripted(script, **how):
    return Job(image={"driver": "scripted-protocol", "script": script}, name="job", **how)


async def test_every_request_is_sent_and_counted():
    script = Script(64 * KiB)
    mix = {"read": 4, "write": 3, "zeroes": 2, "discard": 1, "status": 2, "flush": 1}
    with registered():
        result = await Bench([scripted(script, mix=mix, sizes={512: 1, 2048: 1}, count=600, depth=4, clients=2)]).run()
    [job] = result.jobs
    assert result.complete and job.operations == 600 and set(job.kinds) == set(mix)
    calls = Counter(call.verb for call in script.log)
    names = {"read": "preadv", "write": "pwritev", "zeroes": "pwrite_zeroes", "discard": "pdiscard"}
    for kind, verb in names.items():
        found = job.kinds[kind]
        assert found.latencies.count == calls[verb] > 0
        assert found.bytes == sum(call.nbytes for call in script.calls(verb))
    assert job.kinds["flush"].bytes == 0
    assert (
        job.statistics["reads"] == calls["preadv"] and job.statistics["status"] == job.kinds["status"].latencies.count
    )
    assert sum(sum(interval.operations.values()) for interval in job.intervals) == 600
    assert calls["open"] == calls["close"] == 1  # both clients share what they write to
    assert result.usage.peak_memory > 1 << 20


async def test_who_only_reads_has_an_image_of_its_own():
    script = Script(64 * KiB)
    with registered():
        await Bench([scripted(script, clients=3, count=9)]).run()
    assert len(script.calls("open")) == len(script.calls("close")) == 3


async def test_depth_and_clients_are_what_is_under_way():
    script = Script(64 * KiB)
    script.hold("preadv")
    with registered():
        running = asyncio.create_task(Bench([scripted(script, clients=3, depth=5, count=40)]).run())
        await until(lambda: len(script.held) == 15)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(script.held) == 15
        script.release()
        await running
    assert len(script.calls("preadv")) == 40


async def test_an_open_image_stays_open():
    async with opened(Script(64 * KiB)) as disk:
        result = await Bench([Job(image=disk, count=10)]).run()
        assert result.jobs[0].operations == 10
        assert await disk.pread(0, 4) == bytes(4)
        assert_idle(disk)


async def test_jobs_run_at_the_same_time():
    one, other = Script(64 * KiB), Script(64 * KiB)
    one.hold("preadv")
    other.hold("preadv")
    jobs = [
        Job(image={"driver": "scripted-protocol", "script": script}, name=name, count=1, depth=1)
        for name, script in (("one", one), ("other", other))
    ]
    with registered():
        running = asyncio.create_task(Bench(jobs).run())
        await until(lambda: one.held and other.held)
        other.release()
        one.release()
        result = await running
    assert [result.job(name).operations for name in ("one", "other")] == [1, 1]


async def test_only_a_part_of_the_image_is_used():
    script = Script(64 * KiB)
    with registered():
        await Bench([scripted(script, offset=8 * KiB, length=8 * KiB, sizes={1024: 1}, count=200)]).run()
    places = {call.offset for call in script.calls("preadv")}
    assert places == {8 * KiB + KiB * number for number in range(8)}


@pytest.mark.parametrize(("part", "key"), [({"length": 65 * KiB}, "length"), ({"offset": 65 * KiB}, "offset")])
async def test_a_part_that_is_not_there(part, key):
    script = Script(64 * KiB)
    with registered(), pytest.raises(OptionError) as caught:
        await Bench([scripted(script, **part)]).run()
    assert caught.value.option == key
    assert len(script.calls("close")) == 1


async def test_what_fails_is_named_once():
    script = Script(64 * KiB)
    script.fail("preadv", OSError(errno.EIO, "Input/output error"), number=20)
    bench = Bench([scripted(script, count=100, sizes={512: 1})])
    with registered(), pytest.raises(OSError) as caught:
        await bench.run()
    failed = script.calls("preadv")[19]
    assert caught.value.strerror == f"job: read of 512 bytes at offset {failed.offset}: Input/output error"
    assert script.calls("close")
    assert not bench.result().complete and bench.result().jobs[0].operations >= 4


async def test_an_image_that_cannot_be_opened_closes_the_others(tmp_path):
    script = Script(64 * KiB)
    jobs = [scripted(script, count=1), Job(image=str(tmp_path / "none"), format="raw", count=1)]
    with registered(), pytest.raises(FileNotFoundError, match="none"):
        await Bench(jobs).run()
    assert len(script.calls("close")) == 1


async def test_warming_up_does_not_count():
    script = Script(64 * KiB)
    now = 0

    async def takes_a_second(call):
        nonlocal now
        if call.verb == "preadv":
            now += 1_000_000_000
            await asyncio.sleep(0)

    script.before = takes_a_second
    with registered():
        job = scripted(script, depth=1, warmup=10, seconds=5)
        [result] = (await Bench([job], clock=lambda: now).run()).jobs
    assert len(script.calls("preadv")) == 15
    assert result.operations == 5 and result.seconds == 5.0
    assert result.statistics["reads"] == 5


async def test_progress_is_told():
    told = []
    script = Script(64 * KiB)
    script.hold("preadv")
    with registered():
        bench = Bench([scripted(script, count=2, depth=1)], interval=1e-6, progress=told.append)
        running = asyncio.create_task(bench.run())
        await until(lambda: script.held)
        script.release(script.held[0])
        await until(lambda: told and told[-1] == 0.5, 1_000_000)
        script.release()
        await running
    assert told == sorted(told)


# Verifying


async def test_what_was_written_is_verified_and_read_back():
    script = Script(64 * KiB)
    with registered():
        job = scripted(
            script, mix={"read": 1, "write": 1, "zeroes": 1}, sizes={512: 1, 1024: 1}, count=500, verify=True
        )
        [result] = (await Bench([job]).run()).jobs
    changed = {
        place
        for call in script.calls("pwritev") + script.calls("pwrite_zeroes")
        for place in range(call.offset, call.offset + call.nbytes, 512)
    }
    assert len(changed) > 64
    assert result.verified == result.kinds["read"].bytes + len(changed) * 512


@pytest.mark.parametrize("mix", [{"read": 1, "write": 1}, {"write": 1}])
async def test_a_planted_corruption_is_found(mix):
    """One bit flips on its way to the disk: found by a read, or by reading back at the end."""
    script = Script(64 * KiB)
    put = script.put
    writes = 0

    def flipping(offset, data, *, grow):
        nonlocal writes
        writes += 1
        put(offset, data, grow=grow)
        if writes == 30:
            script.content[offset + 300] ^= 0x10

    script.put = flipping
    job = scripted(script, mix=mix, sizes={512: 1}, pattern="sequential", count=100, depth=2, verify=True)
    with registered(), pytest.raises(VerifyError, match=r"job: offset \d+: write 30, but damaged from byte 296"):
        await Bench([job]).run()
    assert script.calls("close")


# Cancelling


async def test_cancelled_it_gives_what_there_is_and_leaves_nothing():
    script = Script(64 * KiB)
    script.hold("pwritev")
    bench = Bench([scripted(script, mix={"write": 1}, depth=4, seconds=1000)])
    with registered():
        running = asyncio.create_task(bench.run())
        await until(lambda: len(script.held) == 4)
        for held in list(script.held[:3]):
            script.release(held)
        await until(lambda: len(script.calls("pwritev")) == 7)
        assert bench.result().jobs[0].operations == 3
        running.cancel()
        await until(lambda: running.cancelling())
        assert not running.done() and not script.calls("close")  # what has begun runs to its end first
        script.release()
        with pytest.raises(asyncio.CancelledError):
            await running
    result = bench.result()
    assert not result.complete and result.jobs[0].operations == 3
    assert len(script.calls("close")) == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("rate", [None, 1e6])
async def test_cancelled_anywhere_it_closes_everything(tmp_path, again, rate):
    path = tmp_path / "a.qcow2"
    await aioblock.create(path, "qcow2", size=1 << 20)
    number = 1
    while True:
        mix = {"read": 1, "write": 1, "flush": 1}
        job = Job(image=str(path), format="qcow2", mix=mix, count=12, depth=3, verify=True, rate=rate)
        bench = Bench([job], progress=lambda done: None)
        run = await cancelled_at(bench.run(), number, again=again)
        await settled(lambda: not open_files(tmp_path))  # a thread may be about to close it
        assert asyncio.all_tasks() == {asyncio.current_task()}
        bench.result()
        if not run.reached:
            break
        assert run.error is None
        number += 1
    assert run.result.jobs[0].operations == 12
    assert number > 10
    assert (await aioblock.check(path, format="qcow2")).corruptions == 0
