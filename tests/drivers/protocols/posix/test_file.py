"""`file`: opening, reading on the spot and in threads, length, flush, reopening, creation."""

import asyncio
import errno
import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import DATA
from aioblock.core.images import Prealloc
from aioblock.drivers.protocols.posix import descriptor, transfer
from aioblock.drivers.protocols.posix import driver as posix
from aioblock.drivers.protocols.posix.file import FileDriver
from tests.kit.fake_context import open_driver, read_from, refuse
from tests.kit.oracle import qemu_img, qemu_map
from tests.kit.thread_gate import ThreadGate

SIZE = 1 << 20


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


# -- opening


@pytest.mark.parametrize("read_only", [True, False])
async def test_only_regular_files(tmp_path: Path, read_only: bool) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "link").symlink_to("fifo")
        wrong_kind = "'file' driver requires '{}' to be a regular file"
        expected = {
            "fifo": (errno.EINVAL, wrong_kind),
            "link": (errno.EINVAL, wrong_kind),
            "folder": (errno.EINVAL, wrong_kind)
            if read_only
            else (errno.EISDIR, "Could not open '{}': Is a directory"),
            "socket": (errno.ENXIO, "Could not open '{}': No such device or address"),
            "missing": (errno.ENOENT, "Could not open '{}': No such file or directory"),
        }
        for name, (code, message) in expected.items():
            filename = str(tmp_path / name)
            with pytest.raises(OSError) as caught:
                await open_driver(FileDriver, {"filename": filename}, read_only=read_only)
            assert (caught.value.errno, caught.value.strerror) == (code, message.format(filename))


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full"])
async def test_devices_are_refused_before_they_are_opened(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", refuse(errno.EIO))
    with pytest.raises(OSError, match=f"'file' driver requires '{device}' to be a regular file"):
        await open_driver(FileDriver, {"filename": device})


async def test_options(path: Path) -> None:
    with pytest.raises(OptionError, match="The 'file' block driver requires a file name"):
        await open_driver(FileDriver, {})
    with pytest.raises(OptionError, match="aio=native was specified, but it requires"):
        await open_driver(FileDriver, {"filename": str(path), "aio": "native"})
    with pytest.raises(OptionError, match="epoll"):
        await open_driver(FileDriver, {"filename": str(path), "aio": "epoll"})
    await (await open_driver(FileDriver, {"filename": str(path), "aio": "io_uring"})).close()
    with pytest.raises(NotSupported, match="x-check-cache-dropped"):
        await open_driver(FileDriver, {"filename": str(path), "x-check-cache-dropped": "on"})
    accepted = {"filename": str(path), "aio": "threads", "locking": "on", "drop-cache": "off"}
    await (await open_driver(FileDriver, accepted)).close()


async def test_a_cancelled_open_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = ThreadGate(os.open)
    monkeypatch.setattr(os, "open", gate)
    opening = asyncio.ensure_future(open_driver(FileDriver, {"filename": str(path)}))
    await gate.arrival()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.open()  # the descriptor that it opens now is nobody's; the fixture looks for it


@pytest.mark.parametrize("name", ["fstat", "set_blocking"])
async def test_a_failed_open_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse(errno.EIO))
        with pytest.raises(OSError):
            await open_driver(FileDriver, {"filename": str(path)})


async def test_many_failed_opens(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with pytest.raises(OSError):
            await open_driver(FileDriver, {"filename": str(tmp_path)})
    assert len(os.listdir("/proc/self/fd")) == before


# -- reading


async def test_what_is_in_the_page_cache_is_read_without_a_thread(
    driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = path.read_bytes()
    monkeypatch.setattr(transfer, "_preadv", refuse(errno.EIO))
    task = driver.preadv(8192, memoryview(buffer := bytearray(4096)), 0)
    with pytest.raises(StopIteration):
        task.send(None)  # it never suspends
    assert buffer == content[8192:12288]


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINTR])
async def test_what_is_not_there_yet_is_read_by_a_thread(
    driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    content = path.read_bytes()
    tried = []

    def later(*args: Any) -> int:
        tried.append(args)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(posix, "_preadv", later)
    assert await read_from(driver, 4096, 4096) == content[4096:8192]
    assert await read_from(driver, 100, 3 << 18) == content[100 : 100 + (3 << 18)]
    assert len(tried) == 2


async def test_half_of_it_is_there(driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = path.read_bytes()

    def half(fd: int, buffers: tuple[memoryview], offset: int, flags: int) -> int:
        return os.preadv(fd, (buffers[0][: len(buffers[0]) // 2],), offset)

    monkeypatch.setattr(posix, "_preadv", half)
    assert await read_from(driver, 4096, 4096) == content[4096:8192]


async def test_a_filesystem_without_nowait_is_asked_once(
    driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = path.read_bytes()
    tried = []

    def unsupported(*args: Any) -> int:
        tried.append(args)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(posix, "_preadv", unsupported)
    monkeypatch.setattr(posix, "_pwritev", unsupported)
    for offset in range(0, 40960, 4096):
        assert await read_from(driver, offset, 4096) == content[offset : offset + 4096]
    assert len(tried) == 1
    for offset in range(0, 40960, 4096):
        await driver.pwritev(offset, memoryview(b"x" * 4096), 0)
    assert len(tried) == 2
    assert path.read_bytes() == b"x" * 40960 + content[40960:]


async def test_an_error_on_the_spot_is_raised(driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "_preadv", refuse(errno.EIO))
    monkeypatch.setattr(posix, "_pwritev", refuse(errno.ENOSPC))
    with pytest.raises(OSError) as caught:
        await read_from(driver, 0, 512)
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError) as caught:
        await driver.pwritev(0, memoryview(b"x"), 0)
    assert caught.value.errno == errno.ENOSPC


async def test_a_write_that_is_partly_taken_on_the_spot(
    driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = path.read_bytes()
    data = random.Random(6).randbytes(4096)

    def part(fd: int, buffers: tuple[memoryview], offset: int, flags: int) -> int:
        return os.pwritev(fd, (buffers[0][:1000],), offset)

    monkeypatch.setattr(posix, "_pwritev", part)
    await driver.pwritev(512, memoryview(data), 0)
    assert path.read_bytes() == content[:512] + data + content[4608:]


async def test_behind_the_end_of_a_file_that_another_cut_off(driver: FileDriver, path: Path) -> None:
    content = path.read_bytes()
    os.truncate(path, 5000)
    assert await read_from(driver, 4096, 8192) == content[4096:5000] + bytes(8192 - 904)
    assert await read_from(driver, 65536, 4096) == bytes(4096)
    assert await driver.getlength() == 5000


async def test_a_long_read_leaves_the_loop_to_others(path: Path, driver: FileDriver) -> None:
    os.truncate(path, 8 * transfer.SLICE + 100)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    assert await read_from(driver, 50, 8 * transfer.SLICE) == path.read_bytes()[50 : 50 + 8 * transfer.SLICE]
    task.cancel()
    assert turns >= 8


async def test_a_cancelled_read_never_touches_its_buffer(driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "_preadv", refuse(errno.EAGAIN))
    gate = ThreadGate(os.preadv)
    monkeypatch.setattr(transfer, "_preadv", gate)
    buffer = bytearray(b"\xa5" * 4096)
    task = asyncio.ensure_future(driver.preadv(0, memoryview(buffer), 0))
    await gate.arrival()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    buffer[:] = b"\x5a" * 4096  # it is its caller's again
    draining = asyncio.ensure_future(driver.drain_begin())
    await asyncio.sleep(0)
    assert not draining.done()
    gate.open()
    await draining
    assert buffer == b"\x5a" * 4096


async def test_a_cancelled_write_keeps_the_file_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = await open_driver(FileDriver, {"filename": str(path)})
    monkeypatch.setattr(posix, "_pwritev", refuse(errno.EAGAIN))
    gate = ThreadGate(os.pwritev)
    monkeypatch.setattr(transfer, "_pwritev", gate)
    data = b"y" * 4096
    task = asyncio.ensure_future(driver.pwritev(0, memoryview(data), 0))
    await gate.arrival()
    task.cancel()
    closing = asyncio.ensure_future(driver.close())
    await asyncio.gather(task, return_exceptions=True)
    assert not closing.done()
    gate.open()
    await closing
    assert path.read_bytes()[:4096] == data


# -- O_DIRECT


async def test_direct(path: Path) -> None:
    content = path.read_bytes()
    driver = await open_driver(FileDriver, {"filename": str(path)}, direct=True)
    alignment = driver.limits.request_alignment
    assert alignment in (1, 512, 1024, 2048, 4096)
    assert await read_from(driver, 0, SIZE) == content
    data = random.Random(8).randbytes(SIZE // 2)
    odd = memoryview(b"x" + data)[1:]  # memory that is not aligned
    await driver.pwritev(4096, odd, 0)
    assert await read_from(driver, 4096, SIZE // 2) == data
    os.truncate(path, 5000)
    length = 8192 + -8192 % alignment
    assert await read_from(driver, 0, length) == content[:4096] + data[:904] + bytes(length - 5000)
    flags, pnum, _, _ = await driver.block_status(4096, 4096, True)
    assert flags & DATA
    assert pnum >= alignment
    assert pnum % alignment == 0
    await driver.truncate(7000, exact=True, prealloc=Prealloc.FULL, flags=0)
    assert path.stat().st_size == 7000
    await driver.close()


async def test_direct_on_an_empty_file_and_growth(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    driver = await open_driver(FileDriver, {"filename": str(tmp_path / "empty")}, direct=True)
    await driver.truncate(3000, exact=True, prealloc=Prealloc.OFF, flags=0)
    assert (tmp_path / "empty").read_bytes() == bytes(3000)
    await driver.close()


# -- flush and length


async def test_flush(driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor, "_fdatasync", refuse(errno.EIO))
    with pytest.raises(OSError):
        await driver.flush()
    monkeypatch.undo()
    with pytest.raises(OSError):
        await driver.flush()  # what was lost is lost
    await driver.reopen(read_only=False, direct=False, no_flush=False)
    await driver.flush()


async def test_no_flush(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor, "_fdatasync", refuse(errno.EIO))
    driver = await open_driver(FileDriver, {"filename": str(path)}, no_flush=True)
    await driver.flush()
    await driver.reopen(read_only=False, direct=False, no_flush=False)
    with pytest.raises(OSError):
        await driver.flush()
    await driver.close()


@pytest.mark.parametrize("prealloc", [Prealloc.OFF, Prealloc.FALLOC, Prealloc.FULL])
async def test_growing(driver: FileDriver, path: Path, prealloc: Prealloc) -> None:
    content = path.read_bytes()
    before = allocated(path)
    await driver.truncate(2 * SIZE + 100, exact=True, prealloc=prealloc, flags=0)
    assert path.read_bytes() == content + bytes(SIZE + 100)
    assert (allocated(path) - before >= SIZE) == (prealloc is not Prealloc.OFF)


async def test_refused_lengths(driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = path.read_bytes()
    with pytest.raises(NotSupported, match="Unsupported preallocation mode: metadata"):
        await driver.truncate(2 * SIZE, exact=True, prealloc=Prealloc.METADATA, flags=0)
    for prealloc in (Prealloc.FALLOC, Prealloc.FULL):
        with pytest.raises(OptionError, match="growing"):
            await driver.truncate(SIZE // 2, exact=True, prealloc=prealloc, flags=0)
        await driver.truncate(SIZE, exact=True, prealloc=prealloc, flags=0)
    with pytest.raises(OSError) as caught:
        await driver.truncate(1 << 62, exact=True, prealloc=Prealloc.OFF, flags=0)
    assert caught.value.errno in (errno.EFBIG, errno.EINVAL)

    def half_done(fd: int, *args: Any) -> int:
        if os.fstat(fd).st_size == SIZE:
            return os.pwrite(fd, b"half", SIZE)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half_allocated(fd: int, *args: Any) -> None:
        half_done(fd)
        half_done(fd)

    monkeypatch.setattr(os, "posix_fallocate", half_allocated)
    monkeypatch.setattr(transfer, "_pwritev", half_done)
    for prealloc in (Prealloc.FALLOC, Prealloc.FULL):
        with pytest.raises(OSError, match="No space left on device") as caught:
            await driver.truncate(2 * SIZE, exact=True, prealloc=prealloc, flags=0)
        assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == content


# -- reopen


async def test_reopen_is_of_the_same_file(driver: FileDriver, path: Path) -> None:
    content = path.read_bytes()
    path.rename(path.with_name("elsewhere"))
    path.write_bytes(b"another")
    await driver.reopen(read_only=True, direct=False, no_flush=False)
    assert await read_from(driver, 0, SIZE) == content
    with pytest.raises(OSError):
        await driver.pwritev(0, memoryview(b"x"), 0)


async def test_reopen_without_proc_finds_out_that_it_is_another_file(
    driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = path.read_bytes()
    monkeypatch.setattr(posix, "_path_of", lambda fd: None)
    await driver.reopen(read_only=False, direct=False, no_flush=False)
    path.rename(path.with_name("elsewhere"))
    path.write_bytes(b"another")
    with pytest.raises(OSError, match="another file") as caught:
        await driver.reopen(read_only=True, direct=False, no_flush=False)
    assert caught.value.errno == errno.ESTALE
    await driver.pwritev(0, memoryview(b"still"), 0)
    assert await read_from(driver, 0, SIZE) == b"still" + content[5:]


async def test_reopen_in_and_out_of_direct(driver: FileDriver, path: Path) -> None:
    content = path.read_bytes()
    for direct in (True, False, True):
        await driver.reopen(read_only=False, direct=direct, no_flush=False)
        assert await read_from(driver, 0, SIZE) == content
        if not direct:
            assert driver.limits.request_alignment == 1


async def test_a_reopen_that_fails_or_is_cancelled_changes_nothing(
    driver: FileDriver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(posix, "_copy_locks", refuse(errno.ENOLCK))
        with pytest.raises(OSError):
            await driver.reopen(read_only=True, direct=False, no_flush=False)
    gate = ThreadGate(posix._copy_locks)
    with monkeypatch.context() as patch:
        patch.setattr(posix, "_copy_locks", gate)
        task = asyncio.ensure_future(driver.reopen(read_only=True, direct=False, no_flush=False))
        await gate.arrival()
        task.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
    await driver.pwritev(0, memoryview(b"writable"), 0)
    assert path.read_bytes()[:8] == b"writable"


# -- create


@pytest.mark.oracle
@pytest.mark.parametrize("prealloc", ["off", "falloc", "full"])
@pytest.mark.parametrize("size", [0, 512, 1 << 20])
async def test_created_files_are_like_those_of_qemu_img(tmp_path: Path, prealloc: str, size: int) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    await FileDriver.create_file(str(ours), {"size": size, "preallocation": prealloc})
    qemu_img("create", "-q", "-f", "raw", "-o", f"preallocation={prealloc}", theirs, str(size))
    assert ours.read_bytes() == theirs.read_bytes()
    assert allocated(ours) == allocated(theirs)
    assert qemu_map(ours, fmt="raw") == qemu_map(theirs, fmt="raw")
    assert ours.stat().st_mode == theirs.stat().st_mode


async def test_create_empties_what_was_there(path: Path) -> None:
    await FileDriver.create_file(str(path), {"size": 8192, "nocow": True, "extent_size_hint": 1 << 16})
    assert path.read_bytes() == bytes(8192)
    await FileDriver.create_file(str(path), {})
    assert path.read_bytes() == b""


async def test_create_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, code, message in (
        ("no/where", errno.ENOENT, "Could not create '{}': No such file or directory"),
        (".", errno.EISDIR, "Could not create '{}': Is a directory"),
        ("fifo", errno.EINVAL, "'file' driver requires '{}' to be a regular file"),
    ):
        filename = str(tmp_path / name)
        with pytest.raises(OSError) as caught:
            await FileDriver.create_file(filename, {"size": 512})
        assert (caught.value.errno, caught.value.strerror) == (code, message.format(filename))
    with pytest.raises(OptionError, match="invalid parameter value: some"):
        await FileDriver.create_file(str(tmp_path / "new"), {"size": 512, "preallocation": "some"})
    with pytest.raises(NotSupported, match="Unsupported preallocation mode: metadata"):
        await FileDriver.create_file(str(tmp_path / "new"), {"size": 512, "preallocation": "metadata"})
    assert not (tmp_path / "new").exists()
    with pytest.raises(OSError) as caught:
        await FileDriver.create_file(str(tmp_path / "new"), {"size": 1 << 62})
    assert caught.value.errno in (errno.EFBIG, errno.EINVAL)
