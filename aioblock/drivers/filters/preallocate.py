"""`preallocate`: writes behind the end of a file allocate more of it at once, so that it grows in large steps.

Between `length` (what was written) and `end` (what the file has) lie zeroes. Closing cuts them off.
"""

import asyncio
import errno
from typing import TYPE_CHECKING, ClassVar, Final, Self

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import REQ_NO_FALLBACK
from aioblock.core.filter import FilterDriver
from aioblock.core.images import Prealloc, Role

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.io import BlockIO

__all__ = ["PreallocateDriver"]

_SECTOR: Final = 512
_ALIGN: Final = 1 << 20
_SIZE: Final = 128 << 20


class PreallocateDriver(FilterDriver):
    """Keeps `prealloc-size` bytes behind what is written allocated, where the storage can do that the short way."""

    name: ClassVar[str] = "preallocate"
    naming_options: ClassVar[frozenset[str]] = frozenset({"prealloc-align", "prealloc-size"})

    def __init__(self, file: "BlockIO", *, align: int = _ALIGN, size: int = _SIZE) -> None:
        super().__init__(file)
        self._align, self._size = align, size
        self._length = file.length
        self._end = file.length
        self._able = size > 0
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<PreallocateDriver length={self._length} end={self._end}>"

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `file`; `prealloc-align`, to a multiple of which the file grows, by default 1 MiB, in bytes; and
        `prealloc-size`, by how much more than is needed, by default 128 MiB.
        """
        align = context.options.take_size("prealloc-align", _ALIGN)
        size = context.options.take_size("prealloc-size", _SIZE)
        if align % _SECTOR:
            raise OptionError("prealloc-align parameter of preallocate filter is not aligned to 512")
        return cls(await context.open_child(Role.FILE), align=align or 1, size=size)

    async def close(self) -> None:
        """Cut off what nobody wrote."""
        await self._cut()

    async def reopen(self, *, read_only: bool, direct: bool, no_flush: bool) -> None:
        """Cut off what nobody wrote before the file cannot be written any more."""
        if read_only:
            await self._cut()

    async def _cut(self) -> None:
        if self._end > self._length:
            await self.file.truncate(self._length)
            self._end = self._length

    async def getlength(self) -> int:
        """What was written."""
        return self._length

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Write, with room behind it."""
        end = offset + len(data)
        if end > self._end and self._able:
            await self._make_room(end)
        await self.file.pwrite(offset, data, flags)
        self._grown(end)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Zero, with room behind it."""
        if offset + nbytes > self._end and self._able:
            await self._make_room(offset + nbytes)
        await self.file.pwrite_zeroes(offset, nbytes, flags)
        self._grown(offset + nbytes)

    def _grown(self, end: int) -> None:
        self._length = max(self._length, end)
        self._end = max(self._end, end)

    async def _make_room(self, needed: int) -> None:
        """Allocate behind the end of the file. Where that fails, the write will tell whether it matters."""
        async with self._turn:  # a write behind `_end` waits, so nothing is zeroed that was just written
            if needed <= self._end:
                return
            start = self._end + -self._end % _SECTOR
            end = needed + self._size
            end += -end % self._align
            try:
                await self.file.pwrite_zeroes(start, end - start, REQ_NO_FALLBACK)
            except OSError as error:
                self._able = False
                if error.errno == errno.ENOTSUP:  # then nothing has changed
                    return
            self._end = end

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """Set the length; what was allocated behind the old one is given back first."""
        await self._cut()
        await self.file.truncate(length, exact=exact, prealloc=prealloc, flags=flags)
        self._length = self._end = self.file.length

    async def pwritev_compressed(self, offset: int, data: memoryview) -> None:
        """Files hold no compressed data."""
        raise NotSupported
