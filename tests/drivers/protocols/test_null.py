"""`null-co`."""

import asyncio
from typing import Any

import pytest

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import OFFSET_VALID, ZERO
from aioblock.core.images import Prealloc
from aioblock.drivers.protocols.null import NullDriver
from tests.kit.fake_context import open_driver


async def test_defaults() -> None:
    driver = await open_driver(NullDriver)
    assert await driver.getlength() == 1 << 30
    assert await driver.allocated_size() == 0
    assert not driver.has_zero_init()
    buffer = bytearray(b"as it was")
    await driver.preadv(0, memoryview(buffer), 0)
    assert buffer == b"as it was"
    assert await driver.block_status(512, 1024, True) == (OFFSET_VALID, 1024, 512, None)
    with pytest.raises(NotSupported):
        await driver.truncate(1, exact=True, prealloc=Prealloc.OFF, flags=0)


async def test_read_zeroes() -> None:
    driver = await open_driver(NullDriver, {"size": "1M", "read-zeroes": "on", "filename": "null-co://"})
    assert await driver.getlength() == 1 << 20
    assert driver.has_zero_init()
    buffer = bytearray(b"as it was")
    await driver.pwritev(0, memoryview(b"something"), 0)
    await driver.preadv(0, memoryview(buffer), 0)
    assert buffer == bytes(9)
    assert await driver.block_status(512, 1024, True) == (OFFSET_VALID | ZERO, 1024, 512, None)


async def test_every_request_takes_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []

    async def sleep(seconds: float, *args: Any) -> None:
        slept.append(seconds)

    driver = await open_driver(NullDriver, {"latency-ns": 2_000_000})
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await driver.preadv(0, memoryview(bytearray(512)), 0)
    await driver.pwritev(0, memoryview(bytes(512)), 0)
    await driver.pwrite_zeroes(0, 512, 0)
    await driver.flush()
    monkeypatch.undo()
    assert slept == [0.002] * 4


async def test_wrong_latency() -> None:
    with pytest.raises(OptionError, match="latency-ns is invalid"):
        await open_driver(NullDriver, {"latency-ns": "-3"})
