"""Extent: a run of a chain for those who take them one by one."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

from aioblock.base.flags import EOF, OFFSET_VALID, status_names
from aioblock.core.node import BlockNode

if TYPE_CHECKING:
    from aioblock.blockio.extents import ChainExtents

__all__ = ["Extent", "merged"]


class Extent(NamedTuple):
    """A run of bytes of a chain: all of it says the same. Sizes in bytes."""

    offset: int
    length: int
    flags: int
    map: int
    """Offset of the raw bytes in `file`; counts only with OFFSET_VALID."""
    file: BlockNode | None
    depth: int
    """Which layer decided, 1 = the top; 0: none did, all of them leave it open."""

    def __str__(self) -> str:
        where = f" at {self.map:#x} of {self.file.filename}" if self.flags & OFFSET_VALID and self.file else ""
        return f"{self.offset:#x}+{self.length:#x} {status_names(self.flags)} depth {self.depth}{where}"


async def merged(batches: "AsyncIterator[ChainExtents]") -> AsyncGenerator[Extent, None]:
    """The runs of batches that follow each other, neighbours that say the same as one."""
    last: Extent | None = None
    async for batch in batches:
        at = batch.offset
        columns = (batch.lengths, batch.flags, batch.map, batch.depth, batch.file_index)
        for length, flags, where, depth, index in zip(*(column.tolist() for column in columns), strict=True):
            run = Extent(at, length, flags, where, batch.files[index] if index >= 0 else None, depth)
            at += length
            if last is not None and _continues(last, run):
                last = last._replace(length=last.length + length, flags=flags)
                continue
            if last is not None:
                yield last
            last = run
    if last is not None:
        yield last


def _continues(last: Extent, run: Extent) -> bool:
    if last.depth != run.depth or (last.flags ^ run.flags) & ~EOF or last.file is not run.file:
        return False
    return not run.flags & OFFSET_VALID or last.map + last.length == run.map
