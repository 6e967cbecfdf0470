"""Files in memory below a driver, and the timeline of all that happens to them.

A change takes effect at once for whoever reads, and is under way for a moment: other requests run meanwhile. It is
stable when a flush of the same file, that began after it had ended, has ended.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.core.context import OpenContext
from aioblock.core.images import Prealloc
from aioblock.core.registry import register
from aioblock.drivers.protocols.memory import MemoryDisk, MemoryDriver

__all__ = ["Change", "FlushMark", "RecordedFile", "Timeline"]

NEVER = 1 << 62


@dataclass(slots=True, eq=False)
class Change:
    """A write (or a zeroed, discarded range, or a new length) of one file; `begin` and `end` are times."""

    file: int
    kind: str
    """write, zero, discard or truncate."""
    offset: int
    """Of a truncate: the new length."""
    data: bytes
    begin: int
    end: int = NEVER

    @property
    def stop(self) -> int:
        return self.offset + len(self.data)


@dataclass(slots=True, eq=False)
class FlushMark:
    """A flush of one file."""

    file: int
    begin: int
    end: int = NEVER


class Timeline:
    """What happened, in order; a time is a number of events."""

    def __init__(self, seed: str) -> None:
        self.events: list[tuple[str, Any]] = []
        self.files: list[RecordedFile] = []
        self.chance = random.Random(seed)
        """Decides how long each request takes."""

    @property
    def now(self) -> int:
        return len(self.events)

    def note(self, what: str, about: Any) -> int:
        """Note an event; its time."""
        self.events.append((what, about))
        return len(self.events) - 1

    def file(self, content: bytes = b"") -> "RecordedFile":
        """A new file, which is watched from now on."""
        file = RecordedFile(self, len(self.files), content)
        self.files.append(file)
        return file

    async def delay(self) -> None:
        """What a request takes."""
        for _ in range(self.chance.randrange(3)):
            await asyncio.sleep(0)


Hook = Callable[["RecordedFile", str, int, memoryview | None], Awaitable[None]]


class RecordedFile(MemoryDisk):
    """A file in memory; `first` is its content when the timeline began."""

    __slots__ = ("before", "first", "number", "timeline")

    def __init__(self, timeline: Timeline, number: int, content: bytes) -> None:
        super().__init__(content=content)
        self.timeline = timeline
        self.number = number
        self.first = content
        self.before: Hook | None = None
        """Awaited before a change or a flush does anything: it may raise."""

    def options(self) -> dict[str, Any]:
        """The options that open a node over this file."""
        return {"driver": RecordedFileDriver.name, "disk": self}


class RecordedFileDriver(MemoryDriver):
    """The node over a RecordedFile."""

    name = "recorded-file"
    supported_write_flags = 0
    supported_zero_flags = REQ_MAY_UNMAP
    disk: RecordedFile

    @classmethod
    async def open(cls, context: OpenContext) -> Self:
        return cls(context.options.take("disk"))

    async def _enter(self, verb: str, offset: int, data: memoryview | None = None) -> None:
        if self.disk.before is not None:
            await self.disk.before(self.disk, verb, offset, data)

    async def _change(self, kind: str, offset: int, data: bytes) -> Change:
        timeline = self.disk.timeline
        change = Change(self.disk.number, kind, offset, data, timeline.now)
        timeline.note("begin", change)
        return change

    async def _done(self, change: Change) -> None:
        timeline = self.disk.timeline
        await timeline.delay()
        change.end = timeline.note("end", change)

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        await self._enter("read", offset)
        await super().preadv(offset, buffer, flags)

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        await self._enter("write", offset, data)
        change = await self._change("write", offset, bytes(data))
        await super().pwritev(offset, data, flags)
        await self._done(change)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        await self._enter("zero", offset)
        change = await self._change("zero", offset, bytes(nbytes))
        await super().pwrite_zeroes(offset, nbytes, flags)
        await self._done(change)

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        await self._enter("discard", offset)
        change = await self._change("discard", offset, bytes(nbytes))
        await super().pdiscard(offset, nbytes)
        await self._done(change)

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        await self._enter("truncate", length)
        change = await self._change("truncate", length, b"")
        await super().truncate(length, exact=exact, prealloc=Prealloc.OFF, flags=flags)
        await self._done(change)

    async def flush(self) -> None:
        await self._enter("flush", 0)
        timeline = self.disk.timeline
        mark = FlushMark(self.disk.number, timeline.now)
        timeline.note("flush", mark)
        await timeline.delay()
        mark.end = timeline.note("flushed", mark)


register(RecordedFileDriver)
