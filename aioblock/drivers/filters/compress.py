"""`compress`: what is written goes into the image compressed."""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, ClassVar, Self

from aioblock.base.errors import OptionError
from aioblock.base.flags import REQ_COMPRESSED, REQ_FUA
from aioblock.core.driver import BlockDriver
from aioblock.core.filter import FilterDriver
from aioblock.core.images import Role
from aioblock.core.limits import BlockLimits

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext

__all__ = ["CompressDriver"]


class CompressDriver(FilterDriver):
    """Writes are compressed by the child, in its clusters: parts of one are read, filled in and written as a whole."""

    name: ClassVar[str] = "compress"
    supported_write_flags: int = REQ_FUA

    def __repr__(self) -> str:
        return "<CompressDriver>"

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Option: `file`, the image. Raises: OptionError where it cannot store anything compressed."""
        driver = cls(await context.open_child(Role.FILE))
        below = driver.file.node.driver
        if type(below).pwritev_compressed is BlockDriver.pwritev_compressed or not below.cluster_size:
            raise OptionError(f"Compression is not supported for underlying format: {below.name}", option="file")
        driver.limits = BlockLimits(request_alignment=below.cluster_size)
        return driver

    def pwritev(self, offset: int, data: memoryview, flags: int) -> Awaitable[None]:
        """Write compressed. The last cluster may be padded to behind the end of the disk."""
        return self.file.pwrite(offset, data[: self.file.length - offset], flags | REQ_COMPRESSED)
