"""Child: an edge of the graph with the verbs on it. What drivers reach their children by, and backends their root."""

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from aioblock.base.buffers import as_view
from aioblock.blockio.copy import copy_range, write_stored
from aioblock.blockio.discard import discard
from aioblock.blockio.flush import flush
from aioblock.blockio.read import read, read_now
from aioblock.blockio.status import block_status, block_status_above, is_zero
from aioblock.blockio.truncate import truncate
from aioblock.blockio.write import write, write_soon
from aioblock.blockio.zeroes import write_zeroes
from aioblock.core.images import Prealloc
from aioblock.core.io import BlockIO, Buffer, ChainStatus, Done, Status, StoredData
from aioblock.core.node import BlockNode, Edge

if TYPE_CHECKING:
    from aioblock.core.extents import ExtentBatch

__all__ = ["Child"]


class Child(Edge):
    """An edge whose node can be read, written and asked: each verb is the generic one of `blockio`."""

    __slots__ = ()

    @property
    def length(self) -> int:
        return self.node.length

    def readinto(self, offset: int, buffer: bytearray | memoryview, flags: int = 0) -> Awaitable[None]:
        return read(self.node, offset, buffer if type(buffer) is memoryview else as_view(buffer), flags)

    def readinto_now(self, offset: int, buffer: memoryview) -> bool:
        return read_now(self.node, offset, buffer)

    def pwrite(self, offset: int, data: Buffer, flags: int = 0) -> Awaitable[None]:
        return write(self.node, offset, as_view(data), flags)

    def pwrite_soon(self, offset: int, data: memoryview, done: Done) -> bool:
        return write_soon(self.node, offset, data, done)

    def copy_range(
        self, offset: int, nbytes: int, target: BlockIO, target_offset: int, flags: int = 0
    ) -> Awaitable[None]:
        return copy_range(self.node, offset, nbytes, target, target_offset, flags)

    def pwrite_stored(self, offset: int, data: StoredData, flags: int = 0) -> Awaitable[None]:
        return write_stored(self.node, offset, data, flags)

    def pwrite_zeroes(self, offset: int, nbytes: int, flags: int = 0) -> Awaitable[None]:
        return write_zeroes(self.node, offset, nbytes, flags)

    def pdiscard(self, offset: int, nbytes: int) -> Awaitable[None]:
        return discard(self.node, offset, nbytes)

    def flush(self) -> Awaitable[None]:
        return flush(self.node)

    def truncate(
        self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF, flags: int = 0
    ) -> Awaitable[None]:
        return truncate(self.node, length, exact=exact, prealloc=prealloc, flags=flags)

    def block_status(self, offset: int, nbytes: int, want_zero: bool = True) -> Awaitable[Status]:
        return block_status(self.node, offset, nbytes, want_zero)

    def block_status_above(
        self, base: BlockNode | None, offset: int, nbytes: int, *, include_base: bool = False, want_zero: bool = True
    ) -> Awaitable[ChainStatus]:
        return block_status_above(self.node, base, offset, nbytes, include_base=include_base, want_zero=want_zero)

    def is_zero(self, offset: int, nbytes: int) -> Awaitable[bool]:
        return is_zero(self.node, offset, nbytes)

    async def extents(self, offset: int, nbytes: int, want_zero: bool = True) -> "ExtentBatch":
        from aioblock.blockio.extents import layer_extents  # brings numpy, which most programs never need

        return await layer_extents(self.node, offset, nbytes, want_zero)
