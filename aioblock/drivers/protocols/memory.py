"""`memory`: a disk in memory. Sparse, quick, never suspends; for tests and for whatever need not last."""

from typing import TYPE_CHECKING, Final, Self

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import DATA, OFFSET_VALID, REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK, ZERO
from aioblock.core.driver import BlockDriver
from aioblock.core.images import Prealloc
from aioblock.core.io import Status
from aioblock.core.limits import BlockLimits

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext

__all__ = ["MemoryDisk", "MemoryDriver"]

CHUNK: Final = 1 << 16


class MemoryDisk:
    """Bytes in chunks of 64 KiB; a chunk that nobody wrote is a hole, and reads as zeroes."""

    __slots__ = ("_chunks", "size")

    def __init__(self, size: int = 0, content: bytes = b"") -> None:
        """`content` lies at offset 0; the disk is as long as that at least."""
        self.size = max(size, len(content))
        self._chunks: dict[int, bytearray] = {}
        if content:
            self.write(0, memoryview(content))

    def __repr__(self) -> str:
        return f"MemoryDisk(size={self.size}, allocated={self.allocated})"

    @property
    def allocated(self) -> int:
        """Bytes of memory in use."""
        return len(self._chunks) * CHUNK

    def content(self) -> bytes:
        """All of it."""
        data = bytearray(self.size)
        self.read(0, memoryview(data))
        return bytes(data)

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; zeroes behind the end."""
        done = 0
        while done < len(buffer):
            number, inside = divmod(offset + done, CHUNK)
            count = min(CHUNK - inside, len(buffer) - done)
            chunk = self._chunks.get(number)
            buffer[done : done + count] = bytes(count) if chunk is None else chunk[inside : inside + count]
            done += count

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data`; the disk grows where it ends before."""
        done = 0
        while done < len(data):
            number, inside = divmod(offset + done, CHUNK)
            count = min(CHUNK - inside, len(data) - done)
            chunk = self._chunks.get(number)
            if chunk is None:
                chunk = self._chunks[number] = bytearray(CHUNK)
            chunk[inside : inside + count] = data[done : done + count]
            done += count
        self.size = max(self.size, offset + len(data))

    def zero(self, offset: int, nbytes: int) -> None:
        """Make a range read as zeroes; whole chunks become holes. The length stays."""
        end = offset + nbytes
        first, last = offset // CHUNK, (end - 1) // CHUNK
        if last - first > len(self._chunks):
            numbers = [number for number in self._chunks if first <= number <= last]
        else:
            numbers = [number for number in range(first, last + 1) if number in self._chunks]
        for number in numbers:
            start, stop = max(offset - number * CHUNK, 0), min(end - number * CHUNK, CHUNK)
            if stop - start == CHUNK:
                del self._chunks[number]
            else:
                self._chunks[number][start:stop] = bytes(stop - start)

    def resize(self, length: int) -> None:
        """Set the length; what is cut off is gone."""
        if length < self.size:
            self.zero(length, self.size - length)
        self.size = length

    def run_at(self, offset: int, end: int) -> tuple[bool, int]:
        """Whether the run at `offset` has data, and where it ends, at most at `end`."""
        number = offset // CHUNK
        data = number in self._chunks
        if not data and (end - offset) // CHUNK > len(self._chunks):
            stop = min((there for there in self._chunks if there > number), default=end)
            return False, min(stop * CHUNK, end)
        while number * CHUNK < end and (number in self._chunks) == data:
            number += 1
        return data, min(number * CHUNK, end)


class MemoryDriver(BlockDriver):
    """A MemoryDisk as a node. The disk outlives the node if the option `disk` brought it."""

    name = "memory"
    kind = "protocol"
    can_grow = True
    supported_write_flags = REQ_FUA
    supported_zero_flags = REQ_MAY_UNMAP | REQ_FUA | REQ_NO_FALLBACK

    def __init__(self, disk: MemoryDisk) -> None:
        self.disk = disk
        self.limits = BlockLimits()

    def __repr__(self) -> str:
        return f"<MemoryDriver {self.disk!r}>"

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `size` of a new disk (default 0, it grows), or `disk`, a MemoryDisk to use."""
        disk = context.options.take("disk")
        size = context.options.take_size("size", None)
        if disk is None:
            disk = MemoryDisk(size or 0)
        elif size is not None:
            raise OptionError("Parameters 'disk' and 'size' cannot be used together", option="size")
        elif not isinstance(disk, MemoryDisk):
            raise OptionError("Parameter 'disk' expects a MemoryDisk", option="disk")
        return cls(disk)

    async def close(self) -> None:
        """Nothing to give up; without another user of the disk, it is gone."""

    async def getlength(self) -> int:
        """The length of the disk."""
        return self.disk.size

    async def allocated_size(self) -> int | None:
        """Bytes of memory in use."""
        return self.disk.allocated

    def has_zero_init(self) -> bool:
        """What was not written reads as zeroes."""
        return True

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        """Copy out."""
        self.disk.read(offset, buffer)

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Copy in."""
        self.disk.write(offset, data)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Zero a range, and grow up to its end."""
        self.disk.zero(offset, nbytes)
        self.disk.size = max(self.disk.size, offset + nbytes)

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """The range reads as zeroes afterwards."""
        self.disk.zero(offset, nbytes)

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """Set the length. There is nothing to preallocate."""
        if prealloc is not Prealloc.OFF:
            raise NotSupported(f"Unsupported preallocation mode: {prealloc}")
        self.disk.resize(length)

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        """Data or hole, by chunks."""
        data, end = self.disk.run_at(offset, offset + nbytes)
        return Status((DATA if data else ZERO) | OFFSET_VALID, end - offset, offset)
