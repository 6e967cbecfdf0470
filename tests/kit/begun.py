"""Requests of a driver that have begun, and are awaited later."""

import asyncio

from aioblock.core.driver import BlockDriver
from aioblock.core.io import wakes

__all__ = ["reading", "writing", "writing_soon"]


def reading(driver: BlockDriver, offset: int, nbytes: int = 4096) -> "tuple[bytearray, asyncio.Future[None]]":
    """A read, and where its data comes; until then it is no zeroes."""
    buffer = bytearray(b"\xa5" * nbytes)
    return buffer, asyncio.ensure_future(driver.preadv(offset, memoryview(buffer), 0))


def writing(driver: BlockDriver, offset: int, data: bytes) -> "asyncio.Future[None]":
    return asyncio.ensure_future(driver.pwritev(offset, memoryview(data), 0))


def writing_soon(driver: BlockDriver, offset: int, data: bytes) -> "asyncio.Future[None]":
    """As `writing`, the way without a coroutine."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    assert driver.pwritev_soon(offset, memoryview(data), wakes(ended))
    return ended
