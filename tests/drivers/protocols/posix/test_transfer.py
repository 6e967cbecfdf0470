"""Whole transfers out of system calls that do less than they were asked."""

import errno
import mmap
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aioblock.drivers.protocols.posix import transfer
from aioblock.drivers.protocols.posix.aligned import AlignedMemory


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    yield number
    os.close(number)


def stingy(function: Callable[..., int], most: int = 7) -> Callable[..., int]:
    """Each second call is interrupted, the others transfer 1 to `most` bytes."""
    rng = random.Random(1)
    calls = 0

    def call(number: int, buffers: tuple[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise InterruptedError(errno.EINTR, "Interrupted system call")
        return function(number, (buffers[0][: rng.randint(1, most)],), offset)

    return call


def test_partial_reads_and_interruptions(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(2).randbytes(1000)
    os.pwrite(fd, data, 0)
    monkeypatch.setattr(transfer, "_preadv", stingy(os.preadv))
    assert transfer.read_fully(fd, 100, 500, AlignedMemory()) == data[100:600]
    assert transfer.read_fully(fd, 900, 200, AlignedMemory()) == data[900:] + bytes(100)
    assert transfer.read_fully(fd, 5000, 10, AlignedMemory()) == bytes(10)


def test_partial_writes_and_interruptions(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(3).randbytes(1000)
    monkeypatch.setattr(transfer, "_pwritev", stingy(os.pwritev))
    transfer.write_fully(fd, 10, memoryview(data))
    assert os.pread(fd, 2000, 0) == bytes(10) + data
    transfer.write_zeroes(fd, 20, 300)
    assert os.pread(fd, 2000, 0) == bytes(10) + data[:10] + bytes(300) + data[310:]


def test_a_write_of_nothing_is_an_error(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_pwritev", lambda *args: 0)
    with pytest.raises(OSError) as caught:
        transfer.write_fully(fd, 0, memoryview(b"data"))
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_errors_come_through(fd: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*args: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(transfer, "_preadv", fail)
    monkeypatch.setattr(transfer, "_pwritev", fail)
    for call in (
        lambda: transfer.read_fully(fd, 0, 1, AlignedMemory()),
        lambda: transfer.write_fully(fd, 0, memoryview(b"1")),
        lambda: transfer.write_zeroes(fd, 0, 1),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == code


def test_direct_transfers_use_aligned_memory_and_stop_at_a_partial_block(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = AlignedMemory()
    os.pwrite(fd, b"x" * 1300, 0)
    offsets = []

    def pread(number: int, buffers: tuple[memoryview], offset: int) -> int:
        offsets.append(offset)
        assert isinstance(buffers[0].obj, mmap.mmap)
        return os.preadv(number, buffers, offset)

    monkeypatch.setattr(transfer, "_preadv", pread)
    used = memory.take(4096)
    used[:] = b"\xff" * 4096
    memory.give(used)
    view = transfer.read_fully(fd, 0, 4096, memory, 512)
    assert view == b"x" * 1300 + bytes(2796)
    assert offsets == [0]  # a second one at 1300 would not be aligned
    memory.give(view)

    def pwrite(number: int, buffers: tuple[memoryview], offset: int) -> int:
        assert isinstance(buffers[0].obj, mmap.mmap)
        return os.pwritev(number, buffers, offset)

    monkeypatch.setattr(transfer, "_pwritev", pwrite)
    data = random.Random(4).randbytes(transfer.SLICE + 4096)
    transfer.write_direct(fd, 512, memoryview(data), memory)
    assert os.pread(fd, len(data), 512) == data


def test_aligned_memory_is_used_again_up_to_a_bound() -> None:
    memory = AlignedMemory(keep=16 << 10)
    view = memory.take(5000)
    block = view.obj
    memory.give(view)
    assert repr(memory) == "AlignedMemory(kept=8192)"
    again = memory.take(8192)
    assert again.obj is block
    assert len(again) == 8192
    views = [memory.take(4096) for _ in range(10)]
    assert len({id(view.obj) for view in views}) == 10
    for view in [*views, again]:
        memory.give(view)
    assert repr(memory) == "AlignedMemory(kept=16384)"
