"""`host_device`: on a loop device where there can be one, and with the calls of the device faked."""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import NotSupported
from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.core.images import Prealloc
from aioblock.drivers.protocols.posix import host_device as module
from aioblock.drivers.protocols.posix.host_device import HostCdromDriver, HostDeviceDriver
from tests.kit.fake_context import open_driver, read_from
from tests.kit.loop_device import loop_device
from tests.kit.oracle import qemu_img

SIZE = 1 << 20


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    backing = tmp_path / "backing"
    backing.write_bytes(b"x" * SIZE)
    with loop_device(backing) as path:
        yield path


async def test_only_devices(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "fifo"):
        filename = str(tmp_path / name)
        message = f"'host_device' driver requires '{filename}' to be either a character or block device"
        with pytest.raises(OSError, match=message) as caught:
            await open_driver(HostDeviceDriver, {"filename": filename})
        assert caught.value.errno == errno.EINVAL


async def test_a_character_device_has_no_length() -> None:
    driver = await open_driver(HostDeviceDriver, {"filename": "/dev/null"}, read_only=True)
    assert await driver.getlength() == 0
    assert not driver.has_zero_init()
    await driver.close()


async def test_a_device(device: str) -> None:
    driver = await open_driver(HostDeviceDriver, {"filename": device})
    assert await driver.getlength() == SIZE
    assert driver.limits.request_alignment == 1
    assert await read_from(driver, 100, 200) == b"x" * 200
    await driver.pwritev(4096, memoryview(b"y" * 512), 0)
    await driver.pwrite_zeroes(8192, 4096, 0)
    await driver.pwrite_zeroes(16384, 4096, REQ_MAY_UNMAP)
    await driver.pdiscard(32768, 4096)
    await driver.flush()
    content = await read_from(driver, 0, SIZE)
    assert content[:32768] == (
        b"x" * 4096 + b"y" * 512 + b"x" * 3584 + bytes(4096) + b"x" * 4096 + bytes(4096) + b"x" * 12288
    )
    assert content[36864:] == b"x" * (SIZE - 36864)
    await driver.close()


async def test_a_device_without_the_page_cache(device: str) -> None:
    driver = await open_driver(HostDeviceDriver, {"filename": device}, direct=True)
    alignment = driver.limits.request_alignment
    assert alignment >= 512
    await driver.pwritev(8 * alignment, memoryview(b"y" * alignment), 0)
    assert await read_from(driver, 7 * alignment, 2 * alignment) == b"x" * alignment + b"y" * alignment
    await driver.close()


async def test_a_device_is_as_long_as_it_is(device: str) -> None:
    driver = await open_driver(HostDeviceDriver, {"filename": device})
    await driver.truncate(SIZE, exact=True, prealloc=Prealloc.OFF, flags=0)
    await driver.truncate(SIZE // 2, exact=False, prealloc=Prealloc.OFF, flags=0)
    with pytest.raises(NotSupported, match="Cannot resize device files"):
        await driver.truncate(SIZE // 2, exact=True, prealloc=Prealloc.OFF, flags=0)
    with pytest.raises(OSError, match="Cannot grow device files"):
        await driver.truncate(SIZE * 2, exact=False, prealloc=Prealloc.OFF, flags=0)
    with pytest.raises(NotSupported, match="Preallocation"):
        await driver.truncate(SIZE * 2, exact=True, prealloc=Prealloc.FULL, flags=0)
    await driver.close()


@pytest.mark.oracle
async def test_creation_only_looks(device: str) -> None:
    await HostDeviceDriver.create_file(device, {"size": SIZE // 2})
    with pytest.raises(OSError) as caught:
        await HostDeviceDriver.create_file(device, {"size": SIZE * 2})
    done = qemu_img("create", "-q", "-f", "raw", device, str(SIZE * 2), check=False)
    assert done.stderr == f"qemu-img: {device}: {caught.value.strerror}\n"


class Device:
    """The commands of a block device, with failures."""

    def __init__(self) -> None:
        self.fails: dict[int, int] = {}
        self.calls: list[tuple[int, int, int]] = []

    def ioctl(self, fd: int, command: int, argument: bytes) -> bytes | int:
        if code := self.fails.get(command):
            self.calls.append((command, 0, 0))
            raise OSError(code, os.strerror(code))
        if command == module._BLKGETSIZE64:
            return struct.pack("=Q", 1 << 40)
        if command == module._BLKSSZGET:
            return struct.pack("=i", 4096)
        self.calls.append((command, *struct.unpack("=QQ", argument)))
        return 0

    def fallocate(self, fd: int, mode: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(module, "_ioctl", device.ioctl)
    monkeypatch.setattr(module, "fallocate", device.fallocate)
    return device


async def open_fake(**context: Any) -> HostDeviceDriver:
    return await open_driver(HostDeviceDriver, {"filename": "/dev/null"}, **context)


async def test_commands(fake: Device) -> None:
    driver = await open_fake()
    assert await driver.getlength() == 1 << 40
    assert driver.limits.pwrite_zeroes_alignment == driver.limits.pdiscard_alignment == 4096
    await driver.pwrite_zeroes(8192, 4096, REQ_MAY_UNMAP)
    await driver.pdiscard(1 << 33, 1 << 34)
    assert fake.calls == [(module._BLKZEROOUT, 8192, 4096), (module._BLKDISCARD, 1 << 33, 1 << 34)]
    await driver.close()


@pytest.mark.parametrize(
    ("code", "asked"), [(errno.EOPNOTSUPP, 1), (errno.ENOTTY, 1), (errno.EINVAL, 2)], ids=["never", "unknown", "range"]
)
async def test_what_a_device_cannot_do(fake: Device, code: int, asked: int) -> None:
    driver = await open_fake()
    fake.fails = {module._BLKZEROOUT: code, module._BLKDISCARD: code}
    for _ in range(2):
        with pytest.raises(NotSupported):
            await driver.pwrite_zeroes(0, 4096, 0)
        with pytest.raises(NotSupported):
            await driver.pdiscard(0, 4096)
    assert len(fake.calls) == 2 * asked
    await driver.close()


async def test_failures_of_a_device(fake: Device) -> None:
    driver = await open_fake()
    fake.fails = dict.fromkeys((module._BLKZEROOUT, module._BLKDISCARD, module._BLKGETSIZE64), errno.EIO)
    for call in (driver.pwrite_zeroes(0, 4096, 0), driver.pdiscard(0, 4096), driver.getlength()):
        with pytest.raises(OSError) as caught:
            await call
        assert caught.value.errno == errno.EIO
    await driver.close()


async def test_a_drive_without_a_disc_has_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError) as caught:
        driver = await open_driver(HostCdromDriver, {"filename": "/dev/null"}, read_only=True)
        await driver.getlength()
    assert caught.value.errno == errno.ENOMEDIUM
    monkeypatch.setattr(module, "_drive_status", lambda fd, command, slot: 4)
    assert await driver.getlength() == 0  # that of /dev/null
    await driver.close()


async def test_a_disc_that_is_put_in_later(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    async with await aioblock.open({"driver": "host_cdrom", "filename": device}) as disk:
        for request in (disk.getlength, lambda: disk.pread(0, 512)):
            with pytest.raises(OSError) as caught:
                await request()
            assert caught.value.errno == errno.ENOMEDIUM
        monkeypatch.setattr(module, "_drive_status", lambda fd, command, slot: 4)
        assert await disk.getlength() == SIZE
        assert await disk.pread(0, 512) == b"x" * 512
