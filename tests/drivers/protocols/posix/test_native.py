"""`aio=native`: batches, cancellation, and how long engines last. What goes by threads instead: `test_direct`."""

import asyncio
import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import aioblock
from aioblock.base.errors import OptionError
from aioblock.drivers.protocols.posix import descriptor, native
from aioblock.drivers.protocols.posix.file import FileDriver
from aioblock.drivers.protocols.posix.kernel_aio import WRITE
from aioblock.drivers.protocols.posix.native import BATCH, DEPTH, SHARE, NativeAio
from tests.kit.begun import reading, writing, writing_soon
from tests.kit.fake_context import open_driver, read_from, refuse
from tests.kit.fake_kernel_aio import FakeKernelAio
from tests.kit.thread_gate import ThreadGate
from tests.kit.watching import until

BLOCK = 4096


# -- batches


async def test_what_one_turn_asks_goes_together(
    direct: FileDriver, kernel: FakeKernelAio, path: Path, threads_used: list[int]
) -> None:
    content = path.read_bytes()
    reads = [reading(direct, number * BLOCK) for number in range(5)]
    data = random.Random(1).randbytes(2 * BLOCK)
    writes = [writing(direct, 64 * BLOCK, data[:BLOCK]), writing_soon(direct, 65 * BLOCK, data[BLOCK:])]
    await until(lambda: kernel.running)
    assert kernel.batches == [7]
    assert [operation.opcode for operation in kernel.operations.values()].count(WRITE) == 2
    kernel.perform()
    await asyncio.gather(*(task for _, task in reads), *writes)
    assert [buffer for buffer, _ in reads] == [content[at : at + BLOCK] for at in range(0, 5 * BLOCK, BLOCK)]
    assert path.read_bytes()[64 * BLOCK : 66 * BLOCK] == data
    assert not threads_used


async def test_many_are_fetched_in_turns_with_those_who_ask_for_more(direct: FileDriver, kernel: FakeKernelAio) -> None:
    async def twice(offset: int) -> None:
        await direct.preadv(offset, memoryview(bytearray(BLOCK)), 0)
        await direct.preadv(offset, memoryview(bytearray(BLOCK)), 0)

    tasks = [asyncio.ensure_future(twice(number * BLOCK)) for number in range(SHARE * BATCH)]
    await until(lambda: kernel.running)
    kernel.perform()
    await until(lambda: len(kernel.running) == SHARE * BATCH)
    assert kernel.fetches[:SHARE] == [BATCH] * SHARE
    assert kernel.batches == [SHARE * BATCH] + [BATCH] * SHARE
    kernel.perform()
    await asyncio.gather(*tasks)


async def test_nothing_is_fetched_when_nothing_runs(direct: FileDriver, kernel: FakeKernelAio) -> None:
    reads = [reading(direct, number * BLOCK) for number in range(BATCH)]
    await until(lambda: kernel.running)
    kernel.perform()
    await asyncio.gather(*(task for _, task in reads))
    for _ in range(3):
        await asyncio.sleep(0)
    assert kernel.fetches == [4, 3, 2, 1, 1, 1, 1, 1, 1, 1]  # and none behind that: the context may be gone by then


async def test_more_than_the_kernel_takes_wait_their_turn(direct: FileDriver, kernel: FakeKernelAio) -> None:
    reads = [reading(direct, number * BLOCK % (1 << 20)) for number in range(DEPTH + 10)]
    await until(lambda: kernel.running)
    assert (len(kernel.running), repr(direct._opened.native)) == (
        DEPTH,
        f"NativeAio(users=1, running={DEPTH}, waiting=10)",
    )
    kernel.perform(3)
    await until(lambda: len(kernel.running) == DEPTH)
    assert [task.done() for _, task in reads[:4]] == [True, True, True, False]
    assert [kernel.operations[number].offset for number in kernel.running[-3:]] == [
        number * BLOCK for number in range(DEPTH, DEPTH + 3)
    ]
    kernel.perform()
    await until(lambda: len(kernel.running) == 7, 400)
    kernel.perform()
    await asyncio.gather(*(task for _, task in reads))
    assert repr(direct._opened.native) == "NativeAio(users=1, running=0, waiting=0)"


# -- cancellation


async def test_a_cancelled_read_never_touches_its_buffer(direct: FileDriver, kernel: FakeKernelAio) -> None:
    buffer, task = reading(direct, 0)
    await until(lambda: kernel.running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    buffer[:] = b"\x5a" * BLOCK  # it is its caller's again
    draining = asyncio.ensure_future(direct.drain_begin())
    await asyncio.sleep(0)
    assert not draining.done()
    assert "jobs=2" in repr(direct)  # the read, and what the drain waits for
    again, second = reading(direct, BLOCK)
    await until(lambda: len(kernel.running) == 2)  # in other memory: the fake sees to that
    kernel.perform()
    await asyncio.gather(draining, second)
    assert buffer == b"\x5a" * BLOCK
    assert again != b"\xa5" * BLOCK
    assert "jobs=0" in repr(direct)


async def test_what_is_cancelled_before_it_has_begun_never_happens(direct: FileDriver, kernel: FakeKernelAio) -> None:
    tasks = [reading(direct, 0)[1], writing(direct, 0, b"x" * BLOCK)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await direct.drain_begin()
    assert not kernel.batches
    assert repr(direct._opened.native) == "NativeAio(users=1, running=0, waiting=0)"


async def test_a_cancelled_write_keeps_the_file_open(
    kernels: list[FakeKernelAio], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_by: list[int] = []

    def close(fd: int) -> None:
        closed_by.append(threading.get_ident())
        os.close(fd)

    monkeypatch.setattr(descriptor, "_close", close)
    driver = await open_driver(FileDriver, {"filename": str(path)}, direct=True)
    fd = driver._fd
    task = writing(driver, 0, b"y" * BLOCK)
    await until(lambda: kernels[0].running)
    task.cancel()
    closing = asyncio.ensure_future(driver.close())
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0)
    assert not closing.done()
    os.fstat(fd)  # still open
    assert not kernels[0].closed
    kernels[0].perform()
    await closing
    assert path.read_bytes()[:BLOCK] == b"y" * BLOCK
    assert closed_by != [threading.get_ident()]  # close(2) may block
    assert len(closed_by) == 1
    await until(lambda: not native._engines)


async def test_a_cancelled_close_closes_all_the_same(kernels: list[FakeKernelAio], path: Path) -> None:
    driver = await open_driver(FileDriver, {"filename": str(path)}, direct=True)
    _, task = reading(driver, 0)
    await until(lambda: kernels[0].running)
    task.cancel()
    closing = asyncio.ensure_future(driver.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(task, closing, return_exceptions=True)
    kernels[0].perform()
    await until(lambda: not native._engines)  # the fixtures see that the descriptors are closed


# -- engines


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EAGAIN, errno.EPERM])
@pytest.mark.parametrize("aio", [None, "io_uring"])
async def test_where_the_kernel_gives_none_threads_do_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, aio: str | None
) -> None:
    content = path.read_bytes()
    monkeypatch.setattr(native, "_kernel_aio", refuse(code))
    driver = await open_driver(FileDriver, {"filename": str(path)}, direct=True, aio=aio)
    assert await read_from(driver, 0, BLOCK) == content[:BLOCK]
    await driver.close()
    with pytest.raises(OSError, match=f"Could not open '{path}' with aio=native: {os.strerror(code)}") as caught:
        await open_driver(FileDriver, {"filename": str(path), "aio": "native"}, direct=True)
    assert caught.value.errno == code


async def test_who_gets_an_engine(kernels: list[FakeKernelAio], path: Path) -> None:
    filename = {"filename": str(path)}
    for options, how in (
        (filename, {}),
        (filename | {"aio": "threads"}, {"direct": True}),
        (filename, {"direct": True, "aio": "threads"}),
        (filename | {"aio": "threads"}, {"direct": True, "aio": "native"}),
    ):
        driver = await open_driver(FileDriver, options, **how)
        assert await read_from(driver, 0, BLOCK) == path.read_bytes()[:BLOCK]
        await driver.close()
    assert not kernels
    with pytest.raises(OptionError, match=r"aio=native was specified, but it requires cache\.direct=on"):
        await open_driver(FileDriver, filename, aio="native")


async def test_the_argument_of_open_holds_for_the_whole_chain(kernels: list[FakeKernelAio], tmp_path: Path) -> None:
    base, top = str(tmp_path / "base"), str(tmp_path / "top")
    await aioblock.create(base, "qcow2", size=1 << 20)
    await aioblock.create(top, "qcow2", {"backing_file": base, "backing_fmt": "qcow2"})
    async with await aioblock.open(top, format="qcow2", cache="none", aio="threads") as disk:
        assert not any(await disk.pread(0, BLOCK))
    assert not kernels
    with pytest.raises(OptionError, match="aio=native was specified"):
        await aioblock.open(top, format="qcow2", aio="native")
    with pytest.raises(OptionError, match="Invalid aio mode 'epoll'"):
        await aioblock.open(top, format="qcow2", aio="epoll")


async def test_all_files_of_a_device_share_one(kernels: list[FakeKernelAio], tmp_path: Path) -> None:
    drivers = []
    for number in range(50):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]) * BLOCK)
        drivers.append(await open_driver(FileDriver, {"filename": str(path)}, direct=True))
    reads = [reading(driver, 0) for driver in drivers]
    await until(lambda: kernels[0].running)
    assert [kernel.batches for kernel in kernels] == [[50]]
    kernels[0].perform()
    await asyncio.gather(*(task for _, task in reads))
    assert [bytes(buffer) for buffer, _ in reads] == [bytes([number]) * BLOCK for number in range(50)]
    for driver in drivers:
        assert native._engines
        await driver.close()
    assert not native._engines


async def test_reopening(kernels: list[FakeKernelAio], path: Path) -> None:
    driver = await open_driver(FileDriver, {"filename": str(path), "aio": "native"}, direct=True)
    await driver.reopen(read_only=True, direct=True, no_flush=False)
    assert [repr(engine) for engine in native._engines.values()] == ["NativeAio(users=1, running=0, waiting=0)"]
    with pytest.raises(OptionError, match="aio=native was specified"):
        await driver.reopen(read_only=True, direct=False, no_flush=False)
    _, task = reading(driver, 0)  # it goes on as it was
    await until(lambda: kernels[0].running)
    kernels[0].perform()
    await task
    await driver.close()
    assert len(kernels) == 1
    driver = await open_driver(FileDriver, {"filename": str(path)}, direct=True)
    await driver.reopen(read_only=True, direct=False, no_flush=False)
    assert not native._engines
    await driver.close()


def test_a_loop_that_was_closed_with_operations_under_way(kernels: list[FakeKernelAio], path: Path) -> None:
    loop = asyncio.new_event_loop()
    driver = loop.run_until_complete(open_driver(FileDriver, {"filename": str(path)}, direct=True))

    async def leave() -> None:
        _, task = reading(driver, 0)
        await until(lambda: kernels[0].running)
        closing = asyncio.ensure_future(driver.close())
        await asyncio.sleep(0)
        for left in (task, closing):
            left.cancel()
        await asyncio.gather(task, closing, return_exceptions=True)

    loop.run_until_complete(leave())
    loop.close()
    assert "closing" in repr(driver)
    gate = ThreadGate(kernels[0].close)
    kernels[0].close = gate  # type: ignore[method-assign]

    async def other() -> None:
        again = await open_driver(FileDriver, {"filename": str(path)}, direct=True)
        await gate.arrival()
        os.fstat(driver._fd)  # the kernel has not ended yet
        gate.open()
        await again.close()

    asyncio.run(other())
    assert len(kernels) == 2
    assert not native._engines
    # The fixtures wait until the threads have ended, and see that the file is closed.


def test_loops_of_several_threads_have_their_own(path: Path) -> None:
    content = path.read_bytes()
    together = threading.Barrier(3)
    engines: list[NativeAio | None] = []

    async def body(number: int) -> None:
        driver = await open_driver(FileDriver, {"filename": str(path)}, direct=True, read_only=True)
        engines.append(driver._opened.native)
        together.wait(20)
        for _ in range(20):
            at = random.Random(number).randrange(0, len(content) // BLOCK) * BLOCK
            assert await read_from(driver, at, BLOCK) == content[at : at + BLOCK]
        together.wait(20)
        await driver.close()

    threads = [threading.Thread(target=lambda number=number: asyncio.run(body(number))) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(engines)) == 3


FORKING = """
import asyncio, os, sys
import aioblock

async def read(disk, content):
    assert await disk.pread(4096, 4096) == content[4096:8192]

async def child(path, content):
    async with await aioblock.open(path, format="raw", cache="none", aio="native") as disk:
        await read(disk, content)

async def parent(path):
    with open(path, "rb") as file:
        content = file.read()
    async with await aioblock.open(path, format="raw", cache="none", aio="native") as disk:
        await read(disk, content)
        if not (pid := os.fork()):
            asyncio.events._set_running_loop(None)
            asyncio.run(child(path, content))
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        await read(disk, content)

asyncio.run(parent(sys.argv[1]))
"""


def test_a_child_process_has_an_engine_of_its_own(path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKING, path], check=True, timeout=45)
