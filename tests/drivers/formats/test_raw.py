"""`raw`: a window on a file, and the guard of what was only taken for raw."""

import asyncio
import errno
from pathlib import Path
from typing import Any, cast

import pytest

from aioblock.base.errors import InvalidImage, NotSupported, OptionError
from aioblock.base.flags import OFFSET_VALID, RAW, REQ_FUA, REQ_MAY_UNMAP
from aioblock.core import registry
from aioblock.core.driver import BlockDriver
from aioblock.core.images import Prealloc, Role
from aioblock.drivers.formats.raw import RawDriver
from tests.kit.fake_context import open_driver
from tests.kit.memory_io import Call, MemoryIO
from tests.kit.oracle import run

SIZE = 64 << 10


async def open_raw(file: MemoryIO | None = None, **options: Any) -> RawDriver:
    probed = options.pop("probed", False)
    file = file if file is not None else MemoryIO(bytes(range(256)) * (SIZE // 256))
    return await open_driver(RawDriver, options, children={Role.FILE: file}, probed=probed)


def file_of(driver: RawDriver) -> MemoryIO:
    return cast(MemoryIO, driver.file)


# -- the window


async def test_everything_goes_through_at_the_offset() -> None:
    driver = await open_raw(offset=1000)
    file = file_of(driver)
    assert await driver.getlength() == SIZE - 1000
    buffer = bytearray(16)
    await driver.preadv(5, memoryview(buffer), 0)
    assert buffer == file.data[1005:1021]
    await driver.pwritev(7, memoryview(b"data"), REQ_FUA)
    await driver.pwrite_zeroes(100, 200, REQ_MAY_UNMAP)
    await driver.pdiscard(512, 512)
    await driver.truncate(SIZE, exact=False, prealloc=Prealloc.FALLOC, flags=0)
    assert [tuple(call) for call in file.log] == [
        ("pread", 1005, 16, 0),
        ("pwrite", 1007, 4, REQ_FUA),
        ("pwrite_zeroes", 1100, 200, REQ_MAY_UNMAP),
        ("pdiscard", 1512, 512, 0),
        ("truncate falloc", 0, SIZE + 1000, 0),
    ]
    assert await driver.getlength() == SIZE
    assert await driver.block_status(10, 20, True) == (RAW | OFFSET_VALID, 20, 1010, file)
    assert repr(driver) == "<RawDriver offset=1000 size=None>"


async def test_a_read_costs_no_coroutine_of_its_own() -> None:
    driver = await open_raw()
    reading = driver.preadv(0, memoryview(bytearray(1)), 0)
    assert cast(Any, reading).cr_code is MemoryIO.readinto.__code__
    await reading


WINDOWS = [
    {"offset": 512},
    {"offset": SIZE},
    {"offset": SIZE + 1},
    {"offset": 1 << 62},
    {"size": 512},
    {"size": SIZE},
    {"size": 100},
    {"size": SIZE + 512},
    {"offset": 512, "size": SIZE},
    {"offset": 512, "size": SIZE - 512},
    {"offset": 1, "size": SIZE},
    {"offset": SIZE + 512, "size": 0},
]


@pytest.mark.oracle
@pytest.mark.parametrize("options", WINDOWS, ids=str)
async def test_windows_and_refusals_are_those_of_qemu(tmp_path: Path, options: dict[str, int]) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    text = "".join(f",{key}={value}" for key, value in options.items())
    image = f"driver=raw,file.driver=file,file.filename={tmp_path / 'file'}{text}"
    theirs = run("qemu-img", "info", "--image-opts", image, check=False)
    if theirs.returncode == 0:
        driver = await open_raw(**options)
        assert f"({await driver.getlength()} bytes)" in theirs.stdout
    else:
        with pytest.raises(OptionError) as caught:
            await open_raw(**options)
        assert theirs.stderr.strip() == f"qemu-img: Could not open '{image}': {caught.value}"


async def test_a_window_of_fixed_size() -> None:
    driver = await open_raw(offset=512, size=1024)
    assert await driver.getlength() == 1024
    with pytest.raises(NotSupported, match="Cannot resize fixed-size raw disks"):
        await driver.truncate(2048, exact=True, prealloc=Prealloc.OFF, flags=0)


async def test_a_length_beyond_all_files() -> None:
    driver = await open_raw(offset=512)
    with pytest.raises(OSError) as caught:
        await driver.truncate((1 << 63) - 512, exact=True, prealloc=Prealloc.OFF, flags=0)
    assert caught.value.errno == errno.EINVAL
    assert not file_of(driver).log


async def test_create() -> None:
    file = MemoryIO()
    await RawDriver.create(file, {"size": 4096})
    assert file.data == bytes(4096)
    assert [call.verb for call in file.log] == ["truncate off"]
    assert [option.name for option in RawDriver.create_options] == ["size"]  # how it is allocated, the protocol says


# -- the guard


class Magic(BlockDriver):
    """A format that is known by a word at offset 600, or two words, both of which must be there."""

    name = "magic"
    kind = "format"

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if head[600:605] == b"MAGIC" else 0


class Twin(Magic):
    name = "twin"

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if head[600:605] == b"MAGIC" and head[700:704] == b"TWIN" else 0


@pytest.fixture(autouse=True)
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_drivers", {})
    monkeypatch.setattr(registry, "_later", {})
    registry.register(RawDriver, Magic, Twin)


async def write(driver: RawDriver, offset: int, data: bytes) -> None:
    await driver.pwritev(offset, memoryview(data), 0)


async def refused(driver: RawDriver, offset: int, data: bytes) -> None:
    before = bytes(file_of(driver).data)
    with pytest.raises(PermissionError) as caught:
        await write(driver, offset, data)
    assert caught.value.strerror == "Operation not permitted"
    assert file_of(driver).data == before


async def test_no_other_format_can_be_written() -> None:
    driver = await open_raw(probed=True)
    await refused(driver, 600, b"MAGIC")
    await refused(driver, 0, bytes(600) + b"MAGIC" + bytes(SIZE - 605))
    await write(driver, 600, b"MAGI")
    await refused(driver, 604, b"C")
    await write(driver, 604, b"K")
    await write(driver, 2048, b"MAGIC")
    await write(driver, 2040, b"MAGIC" * 100)
    assert "probed" in repr(driver)


async def test_two_formats_at_once_are_refused_too() -> None:
    driver = await open_raw(probed=True)
    await write(driver, 700, b"TWIN")
    with pytest.raises(InvalidImage):
        registry.probe_format(bytes(600) + b"MAGIC" + bytes(95) + b"TWIN", "")
    await refused(driver, 600, b"MAGIC")


async def test_zeroes_and_discards_cannot_uncover_another_format() -> None:
    class Blank(Magic):
        """Known by what is *not* there."""

        @classmethod
        def probe(cls, head: bytes, filename: str) -> int:
            return 100 if head[:4] == bytes(4) else 0

    registry.register(Blank)
    driver = await open_raw(MemoryIO(b"x" * SIZE), probed=True)
    with pytest.raises(PermissionError):
        await driver.pwrite_zeroes(0, 512, 0)
    await driver.pdiscard(0, 512)
    await driver.pdiscard(512, 4096)
    assert file_of(driver).data == b"x" * 2048 + bytes(2560) + b"x" * (SIZE - 4608)
    await driver.pwrite_zeroes(512, 4096, 0)
    assert file_of(driver).data[:4608] == b"x" * 512 + bytes(4096)


async def test_two_harmless_writes_at_once_do_not_add_up() -> None:
    driver = await open_raw(probed=True)

    async def suspend(call: Call) -> None:
        await asyncio.sleep(0)

    file_of(driver).before = suspend
    results = await asyncio.gather(write(driver, 600, b"MAG"), write(driver, 603, b"IC"), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["NoneType", "PermissionError"]


async def test_who_said_raw_may_write_anything() -> None:
    driver = await open_raw()
    await write(driver, 600, b"MAGIC")
    assert file_of(driver).data[600:605] == b"MAGIC"


async def test_an_empty_file_that_grows() -> None:
    driver = await open_raw(MemoryIO(), probed=True)
    await refused(driver, 600, b"MAGIC")
    await write(driver, 100, b"harmless")
    assert await driver.getlength() == 108
