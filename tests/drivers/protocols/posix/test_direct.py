"""O_DIRECT: what the kernel does by itself, what it leaves to threads, and both against a copy in memory."""

import asyncio
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from aioblock.drivers.protocols.posix import transfer
from aioblock.drivers.protocols.posix.file import FileDriver
from aioblock.drivers.protocols.posix.kernel_aio import READ
from aioblock.drivers.protocols.posix.native import LONGEST
from aioblock.drivers.protocols.posix.transfer import SLICE
from tests.kit.begun import reading, writing, writing_soon
from tests.kit.fake_context import open_driver, read_from, refuse
from tests.kit.fake_kernel_aio import FakeKernelAio
from tests.kit.watching import until

BLOCK = 4096
BOTH_WAYS = pytest.mark.parametrize("write", [writing, writing_soon])


async def test_what_is_long_goes_to_threads(direct: FileDriver, kernel: FakeKernelAio, path: Path) -> None:
    content = path.read_bytes()
    assert await read_from(direct, 0, SLICE) == content
    data = random.Random(2).randbytes(LONGEST + BLOCK)
    await writing(direct, 0, data)
    assert not direct.pwritev_soon(0, memoryview(data), lambda error: None)
    assert path.read_bytes() == data + content[len(data) :]
    assert not kernel.batches


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINTR])
@BOTH_WAYS
async def test_what_would_wait_is_done_by_a_thread(
    direct: FileDriver, kernel: FakeKernelAio, path: Path, threads_used: list[int], code: int, write: Any
) -> None:
    content = path.read_bytes()
    for _ in range(2):  # and the kernel is asked again the next time
        threads_used.clear()
        buffer, read = reading(direct, BLOCK)
        written = write(direct, 2 * BLOCK, b"n" * BLOCK)
        await until(lambda: len(kernel.running) == 2)
        for number in tuple(kernel.running):
            kernel.end(number, -code)
        await asyncio.gather(read, written)
        assert buffer == content[BLOCK : 2 * BLOCK]
        assert path.read_bytes() == content[: 2 * BLOCK] + b"n" * BLOCK + content[3 * BLOCK :]
        assert sorted(threads_used) == [BLOCK, 2 * BLOCK]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
@BOTH_WAYS
async def test_a_file_without_it_is_asked_once(
    direct: FileDriver, kernel: FakeKernelAio, path: Path, code: int, write: Any
) -> None:
    content = path.read_bytes()
    kernel.answers = [OSError(code, os.strerror(code))]
    await write(direct, 0, b"o" * BLOCK)
    await writing(direct, BLOCK, b"p" * BLOCK)
    assert not direct.pwritev_soon(0, memoryview(b"o" * BLOCK), lambda error: None)
    assert await read_from(direct, 0, 3 * BLOCK) == b"o" * BLOCK + b"p" * BLOCK + content[2 * BLOCK : 3 * BLOCK]
    assert not kernel.batches


@BOTH_WAYS
async def test_errors_are_raised(
    direct: FileDriver, kernel: FakeKernelAio, threads_used: list[int], write: Any
) -> None:
    _, read = reading(direct, 0)
    written = write(direct, BLOCK, b"x" * BLOCK)
    await until(lambda: len(kernel.running) == 2)
    for number in tuple(kernel.running):
        kernel.end(number, -errno.EIO if kernel.operations[number].opcode == READ else -errno.ENOSPC)
    errors = await asyncio.gather(read, written, return_exceptions=True)
    assert [error.errno for error in errors if isinstance(error, OSError)] == [errno.EIO, errno.ENOSPC]
    assert not threads_used


@BOTH_WAYS
async def test_an_error_of_the_thread_that_helps_out_is_raised(
    direct: FileDriver, kernel: FakeKernelAio, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    monkeypatch.setattr(transfer, "_pwritev", refuse(errno.ENOSPC))
    written = write(direct, 0, b"x" * BLOCK)
    await until(lambda: kernel.running)
    kernel.end(kernel.running[0], -errno.EAGAIN)
    with pytest.raises(OSError) as caught:
        await written
    assert caught.value.errno == errno.ENOSPC


async def test_one_that_is_refused_does_not_hinder_the_others(direct: FileDriver, kernel: FakeKernelAio) -> None:
    kernel.answers = [2, OSError(errno.EIO, "I/O error"), 1]
    reads = [reading(direct, number * BLOCK) for number in range(5)]
    await until(lambda: len(kernel.running) == 4)
    assert kernel.batches == [2, 1, 1]
    kernel.perform()
    results = await asyncio.gather(*(task for _, task in reads), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), OSError, type(None), type(None)]


async def test_the_end_of_a_file_that_another_cut_off(
    direct: FileDriver, kernel: FakeKernelAio, path: Path, threads_used: list[int]
) -> None:
    content = path.read_bytes()
    os.truncate(path, 5000)
    reads = [reading(direct, at, 2 * BLOCK) for at in (0, BLOCK, 2 * BLOCK)]
    await until(lambda: kernel.running)
    kernel.perform()
    await asyncio.gather(*(task for _, task in reads))
    assert 5000 not in threads_used  # O_DIRECT has no such offset
    whole = content[:5000] + bytes(4 * BLOCK - 5000)
    assert [bytes(buffer) for buffer, _ in reads] == [whole[at : at + 2 * BLOCK] for at in (0, BLOCK, 2 * BLOCK)]


@BOTH_WAYS
async def test_a_thread_does_what_is_left(
    direct: FileDriver, kernel: FakeKernelAio, path: Path, threads_used: list[int], write: Any
) -> None:
    content = path.read_bytes()
    data = random.Random(3).randbytes(4 * BLOCK)
    buffer, read = reading(direct, 0, 4 * BLOCK)
    written = write(direct, 8 * BLOCK, data)
    await until(lambda: kernel.running)
    kernel.perform(nbytes=BLOCK)
    await asyncio.gather(read, written)
    assert sorted(threads_used) == [BLOCK, 9 * BLOCK]
    assert buffer == content[: 4 * BLOCK]
    assert path.read_bytes() == content[: 8 * BLOCK] + data + content[12 * BLOCK :]


async def test_a_view_that_its_owner_released_fails_alone(direct: FileDriver, kernel: FakeKernelAio) -> None:
    read_view, write_view = memoryview(bytearray(BLOCK)), memoryview(bytes(BLOCK))
    tasks = [
        asyncio.ensure_future(direct.preadv(0, read_view, 0)),
        asyncio.ensure_future(direct.pwritev(0, write_view, 0)),
    ]
    await asyncio.sleep(0)
    write_view.release()
    await until(lambda: kernel.running)
    read_view.release()
    kernel.perform()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert len(errors) == 2
    assert all(isinstance(error, (OSError, ValueError)) for error in errors)
    assert repr(direct._opened.native) == "NativeAio(users=1, running=0, waiting=0)"


@pytest.mark.parametrize("aio", ["native", "threads", "io_uring"])
async def test_like_a_copy_in_memory(path: Path, aio: str) -> None:
    """Random requests that run together where they do not overlap, with some cancelled."""
    choose = random.Random(11)
    model = bytearray(path.read_bytes())
    driver = await open_driver(FileDriver, {"filename": str(path), "aio": aio}, direct=True)
    alignment = driver.limits.request_alignment
    for _ in range(40):
        edges = sorted(choose.sample(range(0, len(model) + 1, max(alignment, 512)), 12))
        tasks: list[asyncio.Future[Any]] = []
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            kind = choose.choice(("read", "read", "write", "soon", "cancelled"))
            if kind in ("write", "soon"):
                data = choose.randbytes(end - start)
                model[start:end] = data
                if kind == "soon" and end - start <= LONGEST and aio != "threads":
                    tasks.append(writing_soon(driver, start, data))
                else:
                    tasks.append(writing(driver, start, data))
                continue
            buffer, task = reading(driver, start, end - start)
            if kind == "cancelled":
                asyncio.get_running_loop().call_soon(task.cancel)
            else:
                tasks.append(asyncio.ensure_future(_compared(task, buffer, bytes(model[start:end]))))
        await asyncio.gather(*tasks)
    await driver.close()
    assert path.read_bytes() == model


async def _compared(task: "asyncio.Task[None]", buffer: bytearray, expected: bytes) -> None:
    await task
    assert buffer == expected
