"""`preallocate`: a file that grows in large steps, and ends with what was written."""

import errno
from pathlib import Path
from typing import Any

import pytest

import aioblock
from aioblock.base.errors import NotSupported, OptionError
from aioblock.core.images import Prealloc, Role
from aioblock.drivers.filters.preallocate import PreallocateDriver
from aioblock.drivers.protocols.memory import MemoryDisk, MemoryDriver
from tests.kit.fake_context import open_driver
from tests.kit.memory_io import Call, MemoryIO

SIZES: dict[str, Any] = {"prealloc-align": 65536, "prealloc-size": 100_000}


async def over(file: MemoryIO, **options: Any) -> PreallocateDriver:
    file.node.set_driver(MemoryDriver(MemoryDisk()), len(file.data))
    return await open_driver(PreallocateDriver, SIZES | options, children={Role.FILE: file})


async def test_the_first_write_behind_the_end_makes_room_for_many() -> None:
    file = MemoryIO(b"a" * 1000)
    driver = await over(file)
    await driver.pwritev(5000, memoryview(b"b" * 512), 0)
    assert [(call.verb, call.offset, call.nbytes) for call in file.log] == [
        ("pwrite_zeroes", 1024, 131072 - 1024),
        ("pwrite", 5000, 512),
    ]
    assert (await driver.getlength(), len(file.data)) == (5512, 131072)
    file.log.clear()
    await driver.pwritev(130000, memoryview(b"c" * 1072), 0)
    assert [call.verb for call in file.log] == ["pwrite"]
    assert await driver.getlength() == 131072
    await driver.close()
    assert bytes(file.data) == b"a" * 1000 + bytes(4000) + b"b" * 512 + bytes(130000 - 5512) + b"c" * 1072


async def test_truncate_takes_back_what_nobody_wrote_first() -> None:
    file = MemoryIO(bytes(1000))
    driver = await over(file)
    await driver.pwritev(1000, memoryview(b"x" * 24), 0)
    file.log.clear()
    await driver.truncate(5000, exact=True, prealloc=Prealloc.OFF, flags=0)
    assert [(call.verb, call.nbytes) for call in file.log] == [("truncate off", 1024), ("truncate off", 5000)]
    assert (await driver.getlength(), len(file.data)) == (5000, 5000)


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOSPC])
async def test_storage_that_cannot_is_asked_once(code: int) -> None:
    file = MemoryIO(bytes(1000))
    driver = await over(file)

    async def refuse(call: Call) -> None:
        if call.verb == "pwrite_zeroes":
            raise NotSupported if code == errno.ENOTSUP else OSError(code, "No space left on device")

    file.before = refuse
    await driver.pwritev(2000, memoryview(b"x" * 24), 0)
    await driver.pwritev(4000, memoryview(b"x" * 24), 0)
    assert [call.verb for call in file.log].count("pwrite_zeroes") <= 1
    assert len(file.data) == await driver.getlength() == 4024
    await driver.close()
    assert len(file.data) == 4024


async def test_nothing_ahead_is_nothing_done() -> None:
    file = MemoryIO(bytes(1000))
    driver = await over(file, **{"prealloc-size": 0})
    await driver.pwrite_zeroes(1000, 1000, 0)
    assert [call.verb for call in file.log] == ["pwrite_zeroes"]
    assert len(file.data) == await driver.getlength() == 2000


async def test_the_unit_is_made_of_sectors() -> None:
    with pytest.raises(OptionError, match="prealloc-align parameter of preallocate filter is not aligned to 512"):
        await over(MemoryIO(), **{"prealloc-align": 1000})


async def test_below_qcow2(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    await aioblock.create(path, "qcow2", size=64 << 20)
    file = {"driver": "preallocate", "prealloc-align": 1 << 20, "file": {"driver": "file", "filename": str(path)}}
    async with await aioblock.open({"driver": "qcow2", "file": file}, writable=True) as disk:
        for number in range(5):
            await disk.pwrite(number << 20, bytes([number + 1]) * 70000)
        await disk.flush()
        assert path.stat().st_size > 128 << 20
    assert path.stat().st_size < 4 << 20
    async with await aioblock.open(path) as disk:
        for number in range(5):
            assert await disk.pread(number << 20, 70000) == bytes([number + 1]) * 70000
        result = await disk.check()
        assert (result.corruptions, result.leaks) == (0, 0)
