"""`copy-on-read`: what is read from a backing file is written into the image on the way."""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Self

from aioblock.base.errors import NotSupported
from aioblock.base.flags import (
    OFFSET_VALID,
    RAW,
    REQ_COMPRESSED,
    REQ_COPY_ON_READ,
    REQ_FUA,
    REQ_MAY_UNMAP,
    REQ_NO_FALLBACK,
    REQ_UNCHANGED,
)
from aioblock.core.driver import BlockDriver
from aioblock.core.images import Prealloc, Role
from aioblock.core.io import Status
from aioblock.core.limits import BlockLimits

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.io import BlockIO

__all__ = ["CopyOnReadDriver"]


class CopyOnReadDriver(BlockDriver):
    """Asks its child to copy on read, and passes all else through."""

    name = "copy-on-read"
    kind = "filter"
    supported_write_flags = REQ_FUA | REQ_UNCHANGED
    supported_zero_flags = REQ_MAY_UNMAP | REQ_FUA | REQ_NO_FALLBACK

    def __init__(self, file: "BlockIO") -> None:
        self.file = file
        self.limits = BlockLimits()

    def __repr__(self) -> str:
        return "<CopyOnReadDriver>"

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Option: `file`, the image. `bottom`, which would end the copying at a layer, is not supported."""
        if context.options.take("bottom") is not None:
            raise NotSupported("copy-on-read: the option 'bottom' is not supported")
        return cls(await context.open_child(Role.FILE))

    async def close(self) -> None:
        """Nothing of its own to give up."""

    async def getlength(self) -> int:
        """As the child."""
        return self.file.length

    def has_zero_init(self) -> bool:
        """As the child."""
        return self.file.node.driver.has_zero_init()

    def preadv(self, offset: int, buffer: memoryview, flags: int) -> Awaitable[None]:
        """Read, and let the child keep what came from below it."""
        return self.file.readinto(offset, buffer, flags | REQ_COPY_ON_READ)

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
