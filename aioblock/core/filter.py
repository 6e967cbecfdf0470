"""FilterDriver: a driver that passes everything on to its one child, for filters that change a part of that."""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, ClassVar

from aioblock.base.flags import (
    OFFSET_VALID,
    RAW,
    REQ_COMPRESSED,
    REQ_FUA,
    REQ_MAY_UNMAP,
    REQ_NO_FALLBACK,
    REQ_UNCHANGED,
)
from aioblock.core.driver import BlockDriver
from aioblock.core.images import DriverInfo, Prealloc
from aioblock.core.io import Status
from aioblock.core.limits import BlockLimits

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO

__all__ = ["FilterDriver"]


class FilterDriver(BlockDriver):
    """Every verb is that of the child, whose awaitables are returned as they are. What is left to write is `open`."""

    kind: ClassVar[str] = "filter"
    supported_write_flags: int = REQ_FUA | REQ_UNCHANGED
    supported_zero_flags: int = REQ_MAY_UNMAP | REQ_FUA | REQ_NO_FALLBACK

    def __init__(self, file: "BlockIO") -> None:
        self.file = file
        self.limits = BlockLimits()

    async def close(self) -> None:
        """Nothing of its own to give up."""

    async def getlength(self) -> int:
        """As the child."""
        return self.file.length

    def info(self) -> DriverInfo:
        """Only what is no matter of a format."""
        return DriverInfo(dirty=self.file.node.driver.info().dirty)

    def has_zero_init(self) -> bool:
        """As the child."""
        return self.file.node.driver.has_zero_init()

    def preadv(self, offset: int, buffer: memoryview, flags: int) -> Awaitable[None]:
        """Pass through."""
        return self.file.readinto(offset, buffer, flags)

    def pwritev(self, offset: int, data: memoryview, flags: int) -> Awaitable[None]:
        """Pass through."""
        return self.file.pwrite(offset, data, flags)

    def pwritev_compressed(self, offset: int, data: memoryview) -> Awaitable[None]:
        """Pass through."""
        return self.file.pwrite(offset, data, REQ_COMPRESSED)

    def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> Awaitable[None]:
        """Pass through."""
        return self.file.pwrite_zeroes(offset, nbytes, flags)

    def pdiscard(self, offset: int, nbytes: int) -> Awaitable[None]:
        """Pass through."""
        return self.file.pdiscard(offset, nbytes)

    def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> Awaitable[None]:
        """Pass through."""
        return self.file.truncate(length, exact=exact, prealloc=prealloc, flags=flags)

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        """Whatever the child says."""
        return Status(RAW | OFFSET_VALID, nbytes, offset, self.file)
