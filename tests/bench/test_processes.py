"""Several processes: they do the work together, and end together, however they end."""

import asyncio
import errno
import multiprocessing

import pytest

import aioblock
from aioblock import JobError, OptionError
from aioblock.bench import Job, ProcessBench
from aioblock.bench.processes import _sendable
from tests.kit.cancel_points import settled

MiB = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.leaks("multiprocessing keeps the pipe of its resource tracker open for later processes"),
]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(MiB))
    return str(path)


def left():
    return multiprocessing.active_children()


async def test_they_share_the_work(image):
    told = []
    jobs = [
        Job(image=image, format="raw", name="one", count=1001, depth=2),
        Job(image=image, format="raw", name="other", count=50, rate=1e6, mix={"read": 1, "status": 1}),
    ]
    result = await ProcessBench(jobs, 2, interval=0.001, progress=told.append).run()
    assert result.complete and result.processes == 2
    one, other = result.jobs
    assert one.operations == one.statistics["reads"] == 1001
    assert one.job == jobs[0].as_dict()  # the whole, not the part of one process
    assert other.operations == 50 and set(other.kinds) == {"read", "status"}
    assert result.usage.peak_memory > 20 * MiB
    assert not left()


async def test_each_verifies_a_part_of_its_own(image, tmp_path):
    socket = tmp_path / "s"
    async with (
        await aioblock.open(image, format="raw", writable=True) as disk,
        await aioblock.serve(disk, str(socket)),
    ):
        mix = {"read": 1, "write": 1}
        uri = f"nbd+unix:///?socket={socket}"
        job = Job(image=uri, format="raw", mix=mix, count=300, clients=2, shared=False, verify=True)
        result = await ProcessBench([job], 2).run()
        assert result.jobs[0].operations == 300 and result.jobs[0].verified > 0
        assert disk.statistics.bytes_written == result.jobs[0].kinds["write"].bytes
    assert not left()


async def test_one_that_fails_ends_all(image):
    faulty = {
        "driver": "raw",
        "file": {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": image},
            "inject-error": [{"event": "none", "iotype": "read", "errno": errno.EIO}],
        },
    }
    with pytest.raises(OSError) as caught:
        await ProcessBench([Job(image=faulty, name="faulty", seconds=1000)], 2).run()
    assert caught.value.errno == errno.EIO and "faulty: read of 4096 bytes at offset" in str(caught.value)
    assert not left()


async def test_an_image_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        await ProcessBench([Job(image=str(tmp_path / "none"), format="raw")], 2).run()
    assert not left()


async def test_cancelled_they_give_what_they_have(image):
    bench = ProcessBench([Job(image=image, format="raw", seconds=1000)], 2, interval=0.001)
    moved = asyncio.Event()
    bench._moved = moved.set
    for child in bench._children:
        child._moved = moved.set
    running = asyncio.create_task(bench.run())
    await moved.wait()
    await settled(lambda: all(child.done > 0 for child in bench._children))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result = bench.result()
    assert bench.begun and not result.complete and result.jobs[0].operations > 0
    assert not left()


async def test_cancelled_before_they_began_there_is_no_result(image):
    bench = ProcessBench([Job(image=image, format="raw", seconds=1000)], 2)
    running = asyncio.create_task(bench.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not bench.begun
    with pytest.raises(JobError):
        bench.result()
    assert not left()


async def test_a_process_that_dies_is_an_error(image):
    bench = ProcessBench([Job(image=image, format="raw", seconds=1000)], 2, interval=0.001)
    running = asyncio.create_task(bench.run())
    await settled(lambda: all(child.done > 0 for child in bench._children))
    process = bench._children[0]._process
    assert process is not None
    process.kill()
    with pytest.raises(JobError, match="ended before it was done"):
        await running
    assert not left()


async def test_an_open_image_stays_in_its_process(image):
    async with await aioblock.open(image, format="raw") as disk:
        with pytest.raises(OptionError, match="open image"):
            ProcessBench([Job(image=disk)], 2)


def test_errors_that_cannot_be_sent_send_their_words():
    class Strange(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    assert type(_sendable(OSError(errno.EIO, "x"))) is OSError
    assert str(_sendable(Strange(1, 2))) == "Strange: 1 and 2"
    kept = _sendable(OptionError("depth: no", option="depth"))
    assert isinstance(kept, aioblock.BlockError) and str(kept) == "depth: no"
