"""Descriptor: open exactly as long as somebody uses it."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from aioblock.drivers.protocols.posix import descriptor as module
from aioblock.drivers.protocols.posix import threads
from aioblock.drivers.protocols.posix.descriptor import Descriptor
from tests.kit.thread_gate import ThreadGate

DEVICE = -1000


def make(path: Path) -> Descriptor:
    return Descriptor(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), DEVICE)


async def test_close_waits_for_a_job_whose_awaiter_is_gone(tmp_path: Path) -> None:
    file = make(tmp_path / "file")
    gate = ThreadGate(os.fstat)
    number = file.fd
    job = asyncio.ensure_future(file.run(gate, number))
    await gate.arrival()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    closing = asyncio.ensure_future(file.close())
    await asyncio.sleep(0)
    os.fstat(number)  # still open
    assert not closing.done()
    assert "closing" in repr(file)
    gate.open()
    await closing
    with pytest.raises(OSError):
        os.fstat(number)
    assert repr(file) == "Descriptor(-1, closed, jobs=0)"


async def test_a_number_is_not_reused_under_a_running_write(tmp_path: Path) -> None:
    """The canary: another file that gets the number of one that a thread still writes to."""
    file = make(tmp_path / "file")
    number = file.fd
    gate = ThreadGate(os.pwrite)
    job = asyncio.ensure_future(file.run(gate, number, b"late", 0))
    await gate.arrival()
    job.cancel()
    closing = asyncio.ensure_future(file.close())
    await asyncio.sleep(0)
    canaries = [os.open(tmp_path / f"canary{i}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) for i in range(8)]
    assert number not in canaries
    gate.open()
    await closing
    for canary in canaries:
        assert os.fstat(canary).st_size == 0
        os.close(canary)
    assert (tmp_path / "file").read_bytes() == b"late"


async def test_a_cancelled_close_closes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make(tmp_path / "file")
    number = file.fd
    gate = ThreadGate(os.fstat)
    job = asyncio.ensure_future(file.run(gate, number))
    await gate.arrival()
    closing = asyncio.ensure_future(file.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    os.fstat(number)
    closed = ThreadGate(os.close)
    monkeypatch.setattr(module, "_close", closed)
    gate.open()
    await closed.arrival()
    assert closed.calls == [(number,)]
    closed.open()
    await job


async def test_close_raises_what_the_kernel_said_and_gives_up_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(fd: int) -> None:
        os.close(fd)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(module, "_close", failing)
    file = make(tmp_path / "file")
    with pytest.raises(OSError, match="lost"):
        await file.close()
    assert not threads._pools
    with pytest.raises(ValueError, match="closed"):
        await file.close()
    with pytest.raises(ValueError, match="closed"):
        await file.run(os.getpid)


async def test_idle_waits_for_cancelled_jobs_and_no_longer(tmp_path: Path) -> None:
    file = make(tmp_path / "file")
    await file.idle()
    gate = ThreadGate(os.fstat)
    jobs = [asyncio.ensure_future(file.run(gate, file.fd)) for _ in range(3)]
    await gate.arrival(3)
    for job in jobs:
        job.cancel()
    idle = asyncio.ensure_future(file.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    assert "jobs=3" in repr(file)
    gate.open()
    await idle
    assert "jobs=0" in repr(file)
    await asyncio.gather(*jobs, return_exceptions=True)
    await file.close()


async def test_a_job_that_waits_for_a_thread_can_be_cancelled(tmp_path: Path) -> None:
    file = make(tmp_path / "file")
    gate = ThreadGate(os.fstat)
    running = [asyncio.ensure_future(file.run(gate, file.fd)) for _ in range(threads.IO_THREADS)]
    await gate.arrival(threads.IO_THREADS)
    late = asyncio.ensure_future(file.run(gate, file.fd))
    await asyncio.sleep(0)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    gate.open()
    await asyncio.gather(*running)
    await file.close()
    assert len(gate.calls) == threads.IO_THREADS


async def test_flush_finds_a_thread_when_all_reads_hang(tmp_path: Path) -> None:
    file = make(tmp_path / "file")
    other = make(tmp_path / "other")
    gate = ThreadGate(os.fstat)
    stuck = [asyncio.ensure_future(file.run(gate, file.fd)) for _ in range(2 * threads.IO_THREADS)]
    await gate.arrival(threads.IO_THREADS)
    await file.sync()
    await other.sync()
    await other.close()
    gate.open()
    await asyncio.gather(*stuck)
    await file.close()


async def test_devices_do_not_share_threads(tmp_path: Path) -> None:
    hung = make(tmp_path / "hung")
    other = Descriptor(os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), DEVICE - 1)
    gate = ThreadGate(os.fstat)
    stuck = [asyncio.ensure_future(hung.run(gate, hung.fd)) for _ in range(64)]
    await gate.arrival(threads.IO_THREADS)
    assert (await other.run(os.fstat, other.fd)).st_size == 0
    await other.close()
    gate.open()
    await asyncio.gather(*stuck)
    await hung.close()
    assert len(gate.calls) == 64


async def test_the_first_failed_flush_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.ENOSPC, "no space")]
    synced: list[int] = []

    def sync(fd: int) -> None:
        if failures:
            raise failures.pop()
        synced.append(fd)

    monkeypatch.setattr(module, "_fdatasync", sync)
    file = make(tmp_path / "file")
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            await file.sync()
        assert caught.value.errno == errno.ENOSPC
    assert not synced
    await file.close()


async def test_pools_are_shared_and_end_with_the_last_user(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    assert list(threads._pools) == [DEVICE]
    await first.close()
    assert list(threads._pools) == [DEVICE]
    await second.close()
    assert not threads._pools
