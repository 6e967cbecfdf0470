"""RecordedDisk: a memory disk at the bottom of a real graph that notes every request, and lets a test hold or fail it.

disk = RecordedDisk(content)
disk.before = fail_nth(3, OSError(errno.EIO, "Input/output error"))
image = await aioblock.open({"driver": "qcow2", "file": disk.options()}, writable=True)
"""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Self

from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.core.context import OpenContext
from aioblock.core.registry import register
from aioblock.drivers.protocols.memory import MemoryDisk, MemoryDriver

__all__ = ["Hook", "Record", "RecordedDisk", "fail_nth"]


class Record(NamedTuple):
    """One request that reached the disk, noted when it takes effect."""

    verb: str
    """read, write, zero, discard or flush."""
    offset: int
    """Of a flush: how many records there were when it began; those are stable now."""
    data: bytes
    """What was written; for zero and discard, as many zeroes."""

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


Hook = Callable[[str, int, int], Awaitable[None]]


class RecordedDisk(MemoryDisk):
    """The content, the records, and a hook `before(verb, offset, nbytes)`, awaited before a request does anything."""

    __slots__ = ("before", "first", "records")

    def __init__(self, content: bytes = b"") -> None:
        super().__init__(content=content)
        self.records: list[Record] = []
        self.before: Hook | None = None
        self.first = content
        """What it held before the first record."""

    def options(self) -> dict[str, Any]:
        """The options that open a node over this disk."""
        return {"driver": RecordedDriver.name, "disk": self}

    def changes(self) -> list[Record]:
        """The records without those of reads."""
        return [record for record in self.records if record.verb != "read"]


def fail_nth(number: int, error: OSError, verbs: tuple[str, ...] = ("write", "zero", "discard", "flush")) -> Hook:
    """A hook that lets the first `number` - 1 requests of these verbs pass, fails one, and lets all others pass."""
    left = number

    async def before(verb: str, offset: int, nbytes: int) -> None:
        nonlocal left
        if verb in verbs:
            left -= 1
            if left == 0:
                raise error

    return before


class RecordedDriver(MemoryDriver):
    """The node over a RecordedDisk."""

    name = "recorded"
    supported_write_flags = 0
    supported_zero_flags = REQ_MAY_UNMAP
    disk: RecordedDisk

    @classmethod
    async def open(cls, context: OpenContext) -> Self:
        return cls(context.options.take("disk"))

    async def _enter(self, verb: str, offset: int, nbytes: int) -> None:
        if self.disk.before is not None:
            await self.disk.before(verb, offset, nbytes)

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        await self._enter("read", offset, len(buffer))
        await super().preadv(offset, buffer, flags)
        self.disk.records.append(Record("read", offset, b""))

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        await self._enter("write", offset, len(data))
        self.disk.records.append(Record("write", offset, bytes(data)))
        await super().pwritev(offset, data, flags)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        await self._enter("zero", offset, nbytes)
        self.disk.records.append(Record("zero", offset, bytes(nbytes)))
        await super().pwrite_zeroes(offset, nbytes, flags)

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        await self._enter("discard", offset, nbytes)
        self.disk.records.append(Record("discard", offset, bytes(nbytes)))
        await super().pdiscard(offset, nbytes)

    async def flush(self) -> None:
        begun_with = len(self.disk.records)
        await self._enter("flush", 0, 0)
        self.disk.records.append(Record("flush", begun_with, b""))


register(RecordedDriver)
