"""`null-co`: takes every write and keeps nothing; for measuring what is above it."""

import asyncio
from typing import TYPE_CHECKING, Final, Self

from aioblock.base.errors import OptionError
from aioblock.base.flags import OFFSET_VALID, REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK, ZERO
from aioblock.core.driver import BlockDriver
from aioblock.core.io import Status
from aioblock.core.limits import BlockLimits

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext

_NAME: Final = "null-co://"

__all__ = ["NullDriver"]


class NullDriver(BlockDriver):
    """A disk of a given size without content. What a read brings is zeroes with `read-zeroes`, else left to chance."""

    name = "null-co"
    kind = "protocol"
    naming_options = frozenset({"size", "read-zeroes"})
    supported_write_flags = REQ_FUA
    supported_zero_flags = REQ_MAY_UNMAP | REQ_FUA | REQ_NO_FALLBACK

    def __init__(self, size: int, *, latency: float = 0.0, read_zeroes: bool = False) -> None:
        """`latency`: seconds that each request and each flush takes."""
        self._size = size
        self._latency = latency
        self._read_zeroes = read_zeroes
        self.limits = BlockLimits()

    def __repr__(self) -> str:
        return f"<NullDriver size={self._size} latency={self._latency} read_zeroes={self._read_zeroes}>"

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `size` (default 1 GiB), `latency-ns` (nanoseconds), `read-zeroes`."""
        options = context.options
        if options.take_str("filename", _NAME) not in (_NAME, ""):
            raise OptionError(f"The only allowed filename for this driver is '{_NAME}'", option="filename")
        size = options.take_size("size", 1 << 30)
        latency = options.take_int("latency-ns", 0)
        if latency < 0:
            raise OptionError("latency-ns is invalid", option="latency-ns")
        return cls(size, latency=latency / 1e9, read_zeroes=options.take_bool("read-zeroes", False))

    async def close(self) -> None:
        """Nothing to give up."""

    async def getlength(self) -> int:
        """The size that was asked for."""
        return self._size

    async def allocated_size(self) -> int | None:
        """Nothing."""
        return 0

    def has_zero_init(self) -> bool:
        """With `read-zeroes`."""
        return self._read_zeroes

    async def _wait(self) -> None:
        if self._latency:
            await asyncio.sleep(self._latency)

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        """Zero the buffer, or leave it as it is."""
        await self._wait()
        if self._read_zeroes:
            buffer[:] = bytes(len(buffer))

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Take the data, and forget it."""
        await self._wait()

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """As a write."""
        await self._wait()

    async def flush(self) -> None:
        """Takes its time, too."""
        await self._wait()

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        """All of it is alike."""
        return Status(OFFSET_VALID | ZERO if self._read_zeroes else OFFSET_VALID, nbytes, offset)
