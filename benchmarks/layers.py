"""A layer that takes a fixed time to answer: what stands for a chain on slow storage."""

import asyncio
from typing import Any, Self

import aioblock
from aioblock.core.context import OpenContext
from aioblock.core.driver import BlockDriver
from aioblock.core.images import Role
from aioblock.core.io import Status
from aioblock.core.limits import BlockLimits
from aioblock.core.registry import register

LENGTH = 1 << 30


class SlowLayer(BlockDriver):
    """Decides nothing, and needs `seconds` to say so; the lowest layer of a chain reads as zeroes."""

    name = "slow-layer"
    kind = "format"
    supports_backing = True

    def __init__(self, seconds: float) -> None:
        self.limits = BlockLimits()
        self.seconds = seconds

    @classmethod
    async def open(cls, context: OpenContext) -> Self:
        driver = cls(context.options.take("seconds"))
        await context.open_inner(Role.BACKING, None)
        return driver

    async def close(self) -> None:
        pass

    async def getlength(self) -> int:
        return LENGTH

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        await asyncio.sleep(self.seconds)
        buffer[:] = bytes(len(buffer))

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        await asyncio.sleep(self.seconds)
        return Status(0, nbytes)


async def open_chain(layers: int, seconds: float, *, window: int) -> aioblock.BlockBackend:
    """A chain of that many layers."""
    register(SlowLayer)
    options: dict[str, Any] | None = None
    for _ in range(layers):
        options = {"driver": "slow-layer", "seconds": seconds} | ({"backing": options} if options else {})
    assert options is not None
    return await aioblock.open(options, window=window)
