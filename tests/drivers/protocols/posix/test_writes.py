"""Writes: one thread for the buffered writes of a file, small ones many at a time."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aioblock.drivers.protocols.posix import transfer
from aioblock.drivers.protocols.posix import writes as module
from aioblock.drivers.protocols.posix.descriptor import Descriptor
from aioblock.drivers.protocols.posix.file import FileDriver
from aioblock.drivers.protocols.posix.writes import SMALL, Writes
from tests.kit.thread_gate import ThreadGate


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> ThreadGate:
    made = ThreadGate(os.pwritev)
    monkeypatch.setattr(transfer, "_pwritev", made)
    return made


@pytest_asyncio.fixture
async def descriptor(path: Path) -> AsyncIterator[Descriptor]:
    opened = Descriptor(os.open(path, os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC), -1000)
    yield opened
    await opened.close()


def block(number: int) -> memoryview:
    return memoryview(bytes([number]) * 10)


async def test_what_comes_meanwhile_goes_together(
    descriptor: Descriptor, path: Path, gate: ThreadGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    write_all = module._write_all

    def recorded(fd: int, batch: list[module._Small]) -> list[Exception | None]:
        batches.append(len(batch))
        return write_all(fd, batch)

    monkeypatch.setattr(module, "_write_all", recorded)
    small = Writes(descriptor)
    writes = [small.write(0, block(0))]
    await gate.arrival()
    writes += [small.write(number * 10, block(number)) for number in range(1, 101)]
    assert repr(small) == "Writes(small=100, long=0, running=True)"
    gate.open()
    await asyncio.gather(*writes)
    assert batches == [1, 64, 36]
    assert path.read_bytes() == b"".join(block(number) for number in range(101))
    assert repr(small) == "Writes(small=0, long=0, running=False)"
    await small.write(0, block(7))
    assert batches == [1, 64, 36, 1]


async def test_one_that_fails_does_not_hinder_the_others(
    descriptor: Descriptor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pwritev(fd: int, buffers: tuple[memoryview], offset: int) -> int:
        if offset == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.pwritev(fd, buffers, offset)

    monkeypatch.setattr(transfer, "_pwritev", pwritev)
    small = Writes(descriptor)
    results = await asyncio.gather(*(small.write(n * 10, block(n)) for n in range(4)), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), OSError, type(None)]
    assert path.read_bytes() == block(0).tobytes() + bytes(block(1)) + bytes(10) + bytes(block(3))


async def test_a_cancelled_write_that_no_thread_has_never_happens(
    descriptor: Descriptor, path: Path, gate: ThreadGate
) -> None:
    small = Writes(descriptor)
    running = small.write(0, block(1))
    await gate.arrival()
    waiting = small.write(10, block(2))
    running.cancel()
    waiting.cancel()
    idle = asyncio.ensure_future(descriptor.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    gate.open()
    await idle
    await small.write(20, block(3))
    assert path.read_bytes() == bytes(block(1)) + bytes(10) + bytes(block(3))


async def test_bugs_are_raised_too(descriptor: Descriptor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_fully", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await Writes(descriptor).write(0, block(1))


async def test_one_long_write_at_a_time_and_small_ones_between(
    driver: FileDriver, gate: ThreadGate, path: Path
) -> None:
    """The kernel does one; the others would only spin for its lock."""
    driver._write_inline = False
    block = memoryview(b"x" * (2 * SMALL))
    long = [asyncio.ensure_future(driver.pwritev(number * len(block), block, 0)) for number in range(4)]
    await gate.arrival()
    small = [asyncio.ensure_future(driver.pwritev(4 * len(block) + 10 * n, block[:10], 0)) for n in range(2)]
    await asyncio.sleep(0)
    assert len(gate.calls) == 1
    gate.open()
    await asyncio.gather(*long, *small)
    assert [len(buffers[0]) for _, buffers, _ in gate.calls] == [2 * SMALL, 10, 10, *[2 * SMALL] * 3]
    assert path.read_bytes()[: 4 * len(block) + 20] == bytes(block) * 4 + bytes(block[:20])


async def test_writes_of_one_turn_begin_together(descriptor: Descriptor, path: Path) -> None:
    told: list[tuple[int, Exception | None]] = []
    done = asyncio.Event()
    writes = Writes(descriptor)
    for number in range(3):

        def called(error: Exception | None, number: int = number) -> None:
            told.append((number, error))
            if number == 2:
                done.set()

        writes.begin(10 * number, block(number), called)
    assert not told
    await done.wait()
    assert told == [(0, None), (1, None), (2, None)]
    assert path.read_bytes() == bytes(block(0)) + bytes(block(1)) + bytes(block(2))


async def test_a_file_that_was_closed_takes_nothing(path: Path) -> None:
    descriptor = Descriptor(os.open(path, os.O_RDWR | os.O_CLOEXEC), -1000)
    writes = Writes(descriptor)
    await descriptor.close()
    waiting = writes.write(0, block(1)), writes.write(0, memoryview(bytes(2 * SMALL)))
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert repr(writes) == "Writes(small=0, long=0, running=False)"


async def test_a_long_write_that_is_cancelled_or_fails_does_not_hold_up_the_next(
    driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver._write_inline = False
    block = memoryview(b"x" * (2 * SMALL))

    def write(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwritev(fd, buffers, offset)

    gate = ThreadGate(write)
    monkeypatch.setattr(transfer, "_pwritev", gate)
    failing, cancelled, last = (
        asyncio.ensure_future(driver.pwritev(number * len(block), block, 0)) for number in range(3)
    )
    await gate.arrival()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.open()
    with pytest.raises(OSError) as caught:
        await failing
    assert caught.value.errno == errno.ENOSPC
    await last
    assert path.read_bytes()[2 * len(block) : 3 * len(block)] == bytes(block)
    assert len(gate.calls) == 2
