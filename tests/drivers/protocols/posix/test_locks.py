"""Lock bytes: which are held, and who is kept out, beside QEMU's programs and beside ourselves."""

import errno
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import PERM_ALL, PERM_CONSISTENT_READ, PERM_RESIZE, PERM_WRITE, PERM_WRITE_UNCHANGED
from aioblock.drivers.protocols.posix import locks as module
from aioblock.drivers.protocols.posix.file import FileDriver
from aioblock.drivers.protocols.posix.locks import ImageLocks
from tests.kit.fake_context import open_driver
from tests.kit.oracle import qemu_img, qemu_io
from tests.kit.qemu_io_session import holding

Open = Callable[..., Awaitable[FileDriver]]

READ = PERM_CONSISTENT_READ
SHARE_READS = PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED

#: What the users of an image ask and share: (perm, shared), by what a program does with it.
USERS = {
    "raw rw": (READ | PERM_WRITE, PERM_ALL),
    "raw ro": (READ, PERM_ALL),
    "qcow2 rw": (READ | PERM_WRITE | PERM_RESIZE, SHARE_READS),
    "qcow2 ro": (READ, SHARE_READS),
    "qcow2 ro -U": (READ, PERM_ALL),
}
ARGS = {
    "raw rw": ("-f", "raw"),
    "raw ro": ("-f", "raw", "-r"),
    "qcow2 rw": ("-f", "qcow2"),
    "qcow2 ro": ("-f", "qcow2", "-r"),
    "qcow2 ro -U": ("-f", "qcow2", "-r", "-U"),
}
#: The lock bytes that each holds.
BYTES = {
    "raw rw": {100, 101},
    "raw ro": {100},
    "qcow2 rw": {100, 101, 103, 201, 203},
    "qcow2 ro": {100, 201, 203},
    "qcow2 ro -U": {100},
}
WRITE_REFUSED = 'Failed to get "write" lock'
SHARE_REFUSED = 'Failed to get shared "write" lock'


def refusal(held: str, asked: str) -> str | None:
    """What `asked` is told while `held` has the image open."""
    (perm, shared), (new_perm, new_shared) = USERS[held], USERS[asked]
    if new_perm & ~shared & PERM_WRITE:
        return WRITE_REFUSED
    if perm & ~new_shared & PERM_WRITE:
        return SHARE_REFUSED
    return None


def locked_bytes(path: Path) -> set[int]:
    """The numbers of the lock bytes of a file, from the kernel's table."""
    status = path.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if device in words and "->" not in words:
            found |= set(range(int(words[-2]), int(words[-1]) + 1))
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    return path


@pytest_asyncio.fixture
async def opener(image: Path) -> AsyncIterator[Open]:
    opened: list[FileDriver] = []

    async def open_file(user: str | None = None, **options: object) -> FileDriver:
        driver = await open_driver(FileDriver, {"filename": str(image), **options})
        opened.append(driver)
        if user is not None:
            await driver.set_permissions(*USERS[user])
        return driver

    yield open_file
    for driver in opened:
        await driver.close()


@pytest.mark.parametrize("user", USERS)
async def test_the_bytes_are_those_that_qemu_holds(image: Path, opener: Open, user: str) -> None:
    await opener(user)
    assert locked_bytes(image) == BYTES[user]


@pytest.mark.oracle
@pytest.mark.parametrize("user", USERS)
def test_these_are_the_bytes_of_qemu(image: Path, user: str) -> None:
    with holding(image, *ARGS[user]):
        assert locked_bytes(image) == BYTES[user]


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("held", USERS)
async def test_what_qemu_holds_keeps_us_out(image: Path, opener: Open, held: str) -> None:
    with holding(image, *ARGS[held]):
        for asked in USERS:
            driver = await opener()
            before = locked_bytes(image)
            expected = refusal(held, asked)
            if expected is None:
                await driver.set_permissions(*USERS[asked])
                await driver.set_permissions(0, PERM_ALL)
            else:
                with pytest.raises(OSError) as caught:
                    await driver.set_permissions(*USERS[asked])
                assert caught.value.errno == errno.EAGAIN
                assert caught.value.strerror == f"{expected}\nIs another process using the image [{image}]?"
            assert locked_bytes(image) == before


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("held", USERS)
async def test_what_we_hold_keeps_qemu_out(image: Path, opener: Open, held: str) -> None:
    await opener(held)
    for asked in USERS:
        done = qemu_io(image, "length", options=ARGS[asked], check=False)
        expected = refusal(held, asked)
        if expected is None:
            assert done.returncode == 0, done.stderr
        else:
            assert done.returncode == 1
            assert f"{expected}\nIs another process using the image [{image}]?" in done.stderr


@pytest.mark.parametrize("held", USERS)
async def test_two_opens_in_one_process_keep_each_other_out(opener: Open, held: str) -> None:
    await opener(held)
    for asked in USERS:
        driver = await opener()
        expected = refusal(held, asked)
        if expected is None:
            await driver.set_permissions(*USERS[asked])
            await driver.set_permissions(0, PERM_ALL)
        else:
            with pytest.raises(BlockingIOError, match=expected):
                await driver.set_permissions(*USERS[asked])


async def test_a_refused_change_leaves_the_old_locks(image: Path, opener: Open) -> None:
    first = await opener("raw rw")
    second = await opener("raw rw")
    with pytest.raises(BlockingIOError, match="shared"):
        await second.set_permissions(*USERS["qcow2 rw"])
    assert locked_bytes(image) == {100, 101}
    await first.set_permissions(0, PERM_ALL)
    assert locked_bytes(image) == {100, 101}  # the second's
    await second.set_permissions(*USERS["qcow2 rw"])
    assert locked_bytes(image) == BYTES["qcow2 rw"]


async def test_reopening_takes_the_locks_along(image: Path, opener: Open) -> None:
    driver = await opener("qcow2 rw")
    await driver.reopen(read_only=True, direct=False, no_flush=False)
    assert locked_bytes(image) == BYTES["qcow2 rw"]
    await driver.set_permissions(*USERS["qcow2 ro"])
    assert locked_bytes(image) == BYTES["qcow2 ro"]


async def test_locks_end_with_the_file(image: Path, opener: Open) -> None:
    driver = await open_driver(FileDriver, {"filename": str(image)})
    await driver.set_permissions(*USERS["qcow2 rw"])
    await driver.close()
    assert locked_bytes(image) == set()


async def test_locking_off(image: Path, opener: Open) -> None:
    await opener("qcow2 rw")
    driver = await opener("qcow2 rw", locking="off")
    await driver.set_permissions(0, PERM_ALL)
    assert locked_bytes(image) == BYTES["qcow2 rw"]
    with pytest.raises(OptionError):
        await opener(locking="maybe")


async def test_a_filesystem_without_locks(image: Path, opener: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, command: int, argument: bytes) -> bytes:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module, "fcntl", _Fcntl(refuse))
    await opener("qcow2 rw")
    await opener("qcow2 rw")  # auto: nobody is kept out
    with pytest.raises(NotSupported, match="locking=on"):
        await opener(locking="on")


def test_a_lock_that_fails_takes_the_others_back(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    failing = [103]

    def fail_at(number: int, command: int, argument: bytes) -> bytes:
        if command == fcntl.F_OFD_SETLK and argument[0] == fcntl.F_RDLCK and argument[8] in failing:
            raise OSError(errno.ENOLCK, "No locks available")
        return fcntl.fcntl(number, command, argument)

    monkeypatch.setattr(module, "fcntl", _Fcntl(fail_at))
    locks = ImageLocks(fd, "image")
    with pytest.raises(OSError, match="Failed to lock byte 103: No locks available"):
        locks.change(*USERS["qcow2 rw"])
    assert locked_bytes(image) == set()
    assert repr(locks) == "ImageLocks('image', [])"
    failing.clear()
    locks.change(*USERS["qcow2 rw"])
    assert locked_bytes(image) == BYTES["qcow2 rw"]
    os.close(fd)


class _Fcntl:
    """The module fcntl with another function in it."""

    def __init__(self, function: Callable[[int, int, bytes], bytes]) -> None:
        self.fcntl = function

    def __getattr__(self, name: str) -> object:
        return getattr(fcntl, name)


# -- creating a file that somebody uses


@pytest.mark.parametrize("held", USERS)
async def test_create_spares_an_image_in_use(image: Path, opener: Open, held: str) -> None:
    await opener(held)
    before = image.read_bytes()
    if held in ("qcow2 rw", "qcow2 ro"):
        with pytest.raises(BlockingIOError, match=WRITE_REFUSED):
            await FileDriver.create_file(str(image), {"size": 4096})
        assert image.read_bytes() == before
    else:
        await FileDriver.create_file(str(image), {"size": 4096})
        assert image.read_bytes() == bytes(4096)


@pytest.mark.oracle
@pytest.mark.parametrize(("number", "name"), [(103, 'shared "resize"'), (201, '"write"'), (203, '"resize"')])
async def test_create_asks_what_qemu_img_create_asks(image: Path, number: int, name: str) -> None:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    module._set_lock(fd, fcntl.F_RDLCK, number)
    done = qemu_img("create", "-q", "-f", "raw", image, "1M", check=False)
    with pytest.raises(BlockingIOError) as caught:
        await FileDriver.create_file(str(image), {"size": 1 << 20})
    assert done.stderr.strip() == f"qemu-img: {image}: {caught.value.strerror}"
    assert f"Failed to get {name} lock" in done.stderr
    os.close(fd)
