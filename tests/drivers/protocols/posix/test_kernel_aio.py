"""KernelAio: what the kernel is given, and what comes back."""

import ctypes
import errno
import mmap
import os
import platform
import random
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from aioblock.drivers.protocols.posix import kernel_aio
from aioblock.drivers.protocols.posix.kernel_aio import READ, WRITE, KernelAio

BLOCK = 4096


@pytest.fixture(autouse=True)
def _settled(path: Path) -> None:
    """The file is on the disk, and not in the page cache: else the kernel would have to wait, and says EAGAIN."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def kernel(eventfd: int) -> Iterator[KernelAio]:
    made = KernelAio(8, eventfd)
    yield made
    made.close()


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 8 * BLOCK) as made:
        yield made


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def ended(kernel: KernelAio, eventfd: int, count: int) -> list[tuple[int, int]]:
    """Wait for that many operations."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        assert select.select([eventfd], [], [], 20)[0], "the kernel did not tell"
        os.eventfd_read(eventfd)
        found += kernel.completed(8)
    return sorted(found)


def test_what_an_operation_looks_like(kernel: KernelAio, eventfd: int) -> None:
    kernel.prepare(3, WRITE, 77, 0x1234567890, 512, 1 << 40)
    block = bytes(kernel._blocks)[3 * 64 : 4 * 64]
    data, _, rw_flags, opcode, priority, fd, address, nbytes, offset, reserved, flags, resfd = struct.unpack(
        "<QIIHhIQQqQII", block
    )
    assert (data, rw_flags, opcode, priority, fd) == (3, os.RWF_NOWAIT, 1, 0, 77)
    assert (address, nbytes, offset, reserved) == (0x1234567890, 512, 1 << 40, 0)
    assert (flags, resfd) == (1, eventfd)


def test_reads_and_writes(kernel: KernelAio, eventfd: int, path: Path, memory: mmap.mmap) -> None:
    content = random.Random(5).randbytes(1 << 20)  # as the fixture made it; to read it would cache it
    data = random.Random(4).randbytes(BLOCK)
    memory[2 * BLOCK : 3 * BLOCK] = data
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    first = address_of(memory)
    kernel.prepare(0, READ, fd, first, BLOCK, 3 * BLOCK)
    kernel.prepare(5, WRITE, fd, first + 2 * BLOCK, BLOCK, 8 * BLOCK)
    kernel.prepare(6, READ, fd, first + BLOCK, BLOCK, len(content))
    assert kernel.submit([5, 0, 6]) == 3
    done = dict(ended(kernel, eventfd, 3))
    assert (done[0], done[6]) == (BLOCK, 0)
    assert memory[:BLOCK] == content[3 * BLOCK : 4 * BLOCK]
    assert done[5] == BLOCK
    assert path.read_bytes()[8 * BLOCK : 9 * BLOCK] == data
    assert kernel.completed(8) == []
    os.close(fd)


def test_a_few_at_a_time(kernel: KernelAio, eventfd: int, path: Path, memory: mmap.mmap) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    for number in range(5):
        kernel.prepare(number, READ, fd, address_of(memory) + number * BLOCK, BLOCK, number * BLOCK)
    assert kernel.submit(range(5)) == 5
    found: list[tuple[int, int]] = []
    while len(found) < 5:
        assert select.select([eventfd], [], [], 20)[0]
        some = kernel.completed(2)
        assert len(some) <= 2
        found += some
    assert sorted(found) == [(number, BLOCK) for number in range(5)]
    os.close(fd)


def test_the_first_one_that_is_refused(kernel: KernelAio, eventfd: int, path: Path, memory: mmap.mmap) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    for number, where in enumerate((fd, (1 << 20) + 1, fd)):
        kernel.prepare(number, READ, where, address_of(memory), BLOCK, 0)
    assert kernel.submit([0, 1, 2]) == 1
    with pytest.raises(OSError) as caught:
        kernel.submit([1, 2])
    assert caught.value.errno == errno.EBADF
    assert ended(kernel, eventfd, 1) == [(0, BLOCK)]
    os.close(fd)


def test_an_unknown_machine_has_none(monkeypatch: pytest.MonkeyPatch, eventfd: int) -> None:
    kernel_aio._calls.cache_clear()
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    with pytest.raises(OSError) as caught:
        KernelAio(8, eventfd)
    assert caught.value.errno == errno.ENOSYS
    kernel_aio._calls.cache_clear()


def test_more_than_the_system_allows(eventfd: int) -> None:
    with pytest.raises(OSError) as caught:
        KernelAio(1 << 30, eventfd)
    assert caught.value.errno in (errno.EAGAIN, errno.EINVAL)
