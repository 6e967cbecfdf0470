"""`blkverify`: two images, one answer."""

import asyncio
import errno
import random
from pathlib import Path

import pytest

import aioblock
from aioblock.base.errors import OptionError
from aioblock.core.images import Role
from aioblock.drivers.filters.blkverify import BlkverifyDriver
from tests.kit.fake_context import open_driver, read_from
from tests.kit.memory_io import Call, MemoryIO, fail_nth

EIO = OSError(errno.EIO, "Input/output error")


async def over(raw: MemoryIO, test: MemoryIO) -> BlkverifyDriver:
    return await open_driver(BlkverifyDriver, children={Role.RAW: raw, Role.TEST: test})


async def test_a_difference_is_an_error_that_says_where() -> None:
    raw, test = MemoryIO(bytes(4096)), MemoryIO(bytes(4096))
    driver = await over(raw, test)
    await driver.pwritev(512, memoryview(b"x" * 512), 0)
    assert raw.data == test.data
    assert await read_from(driver, 0, 4096) == bytes(512) + b"x" * 512 + bytes(3072)
    test.data[700] = 0
    with pytest.raises(
        aioblock.VerifyError, match="blkverify: read offset=0 bytes=4096 contents mismatch at offset 700"
    ):
        await read_from(driver, 0, 4096)
    assert await read_from(driver, 1024, 512) == bytes(512)


@pytest.mark.parametrize("verb", ["read", "write"])
async def test_only_one_that_fails_is_a_difference(verb: str) -> None:
    for failing, codes in ((0, "0 != -5"), (1, "-5 != 0")):
        children = MemoryIO(bytes(4096)), MemoryIO(bytes(4096))
        children[failing].before = fail_nth(1, EIO)
        driver = await over(*children)
        with pytest.raises(aioblock.VerifyError) as caught:
            await (read_from(driver, 0, 512) if verb == "read" else driver.pwritev(0, memoryview(bytes(512)), 0))
        assert caught.value.strerror == f"blkverify: {verb} offset=0 bytes=512 return value mismatch {codes}"


async def test_both_that_fail_alike_agree() -> None:
    raw, test = MemoryIO(bytes(4096)), MemoryIO(bytes(4096))
    raw.before, test.before = fail_nth(1, EIO), fail_nth(1, OSError(errno.EIO, "the same"))
    driver = await over(raw, test)
    with pytest.raises(OSError, match="the same") as caught:
        await read_from(driver, 0, 512)
    assert not isinstance(caught.value, aioblock.VerifyError)


async def test_a_cancelled_read_leaves_nothing_behind() -> None:
    raw, test = MemoryIO(bytes(4096)), MemoryIO(bytes(4096))
    gate = asyncio.Event()

    async def hold(call: Call) -> None:
        await gate.wait()

    raw.before = test.before = hold
    driver = await over(raw, test)
    task = asyncio.create_task(read_from(driver, 0, 512))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_qcow2_against_raw(tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "image.qcow2"
    await aioblock.create(raw, "raw", size=1 << 20)
    await aioblock.create(image, "qcow2", {"cluster_size": 4096}, size=1 << 20)
    options = {"raw.driver": "file", "raw.filename": str(raw), "test.driver": "qcow2", "test.file.filename": str(image)}
    rng = random.Random(3)
    async with await aioblock.open(options, format="blkverify", writable=True) as disk:
        for _ in range(50):
            offset, nbytes = rng.randrange(1 << 20), rng.randrange(1, 20000)
            nbytes = min(nbytes, (1 << 20) - offset)
            verb = rng.choice(["write", "zero", "discard", "read"])
            if verb == "write":
                await disk.pwrite(offset, rng.randbytes(nbytes))
            elif verb == "zero":
                await disk.pwrite_zeroes(offset, nbytes)
            elif verb == "discard":
                await disk.pdiscard(offset, nbytes)
            else:
                await disk.pread(offset, nbytes)
        await disk.pread(0, 1 << 20)
    async with await aioblock.open(f"blkverify:{raw}:{image}", format="blkverify", probe=True) as disk:
        assert disk.name == f"blkverify:{raw}:{image}"
        assert disk.length == 1 << 20


async def test_names() -> None:
    with pytest.raises(OptionError, match="blkverify requires raw copy and original image path"):
        await aioblock.open("blkverify:raw", format="raw")
    with pytest.raises(OptionError, match='A block device must be specified for "raw"'):
        await aioblock.open({"driver": "blkverify", "filename": "raw"})
