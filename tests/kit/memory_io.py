"""MemoryIO: a whole BlockIO over a bytearray, for drivers and jobs that are tested without a graph.

It is a protocol that can grow. What is written is kept in `data`; every call is noted in `log`; `before` is called, and
awaited, before each call does anything: a test puts its gates and its faults there.

    file = MemoryIO()
    file.before = fail_nth(3, OSError(errno.EIO, "Input/output error"), verb="pwrite")

Stable storage is simulated too: `stable` is what would be left if the power failed now and nothing since the last
flush had reached the disk.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aioblock.base.flags import ALLOCATED, DATA, EOF, OFFSET_VALID, ZERO
from aioblock.core.extents import ExtentBatch
from aioblock.core.images import Prealloc
from aioblock.core.io import BlockIO, Buffer, ChainStatus, Status, StoredData
from aioblock.core.node import BlockNode

__all__ = ["Call", "MemoryIO", "fail_nth"]

Hook = Callable[["Call"], Awaitable[None]]

GRAIN = 4096


class Call(NamedTuple):
    """One call of a verb. Bytes; `nbytes` of a truncate is the new length."""

    verb: str
    offset: int
    nbytes: int
    flags: int = 0


def fail_nth(number: int, error: OSError, verb: str | None = None) -> Hook:
    """A hook that lets the first `number` - 1 calls (of that verb) pass, and all after the next one, which fails."""
    left = number

    async def before(call: Call) -> None:
        nonlocal left
        if verb is None or call.verb == verb:
            left -= 1
            if left == 0:
                raise error

    return before


class MemoryIO(BlockIO):
    """A BlockIO over a bytearray. Zeroes are holes, in grains of 4 KiB."""

    def __init__(self, data: bytes | bytearray = b"", *, name: str = "memory") -> None:
        self.data = bytearray(data)
        self.stable = bytes(data)
        self.log: list[Call] = []
        self.before: Hook | None = None
        self.node = BlockNode(name, read_only=False)

    def __repr__(self) -> str:
        return f"<MemoryIO {self.node.name} {len(self.data)} bytes, {len(self.log)} calls>"

    @property
    def length(self) -> int:
        return len(self.data)

    def calls(self, verb: str) -> list[Call]:
        """The calls of one verb, in order."""
        return [call for call in self.log if call.verb == verb]

    async def _enter(self, verb: str, offset: int, nbytes: int, flags: int = 0) -> None:
        assert offset >= 0
        assert nbytes >= 0
        call = Call(verb, offset, nbytes, flags)
        self.log.append(call)
        if self.before is not None:
            await self.before(call)

    async def readinto(self, offset: int, buffer: bytearray | memoryview, flags: int = 0) -> None:
        view = memoryview(buffer)
        await self._enter("pread", offset, view.nbytes, flags)
        part = self.data[offset : offset + view.nbytes]
        view[: len(part)] = part
        view[len(part) :] = bytes(view.nbytes - len(part))

    async def pwrite(self, offset: int, data: Buffer, flags: int = 0) -> None:
        await self._enter("pwrite", offset, len(data), flags)
        self._put(offset, data)

    async def copy_range(self, offset: int, nbytes: int, target: BlockIO, target_offset: int, flags: int = 0) -> None:
        await self._enter("copy_range", offset, nbytes, flags)
        await target.pwrite(target_offset, bytes(self.data[offset : offset + nbytes]), flags)

    async def pwrite_stored(self, offset: int, data: StoredData, flags: int = 0) -> None:
        await self._enter("pwrite_stored", offset, len(data), flags)
        content = bytearray(len(data))
        await data.driver.preadv(data.offset, memoryview(content), 0)
        self._put(offset, content)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int = 0) -> None:
        await self._enter("pwrite_zeroes", offset, nbytes, flags)
        self._put(offset, bytes(nbytes))

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        await self._enter("pdiscard", offset, nbytes)
        nbytes = max(0, min(nbytes, len(self.data) - offset))
        self._put(offset, bytes(nbytes))

    async def flush(self) -> None:
        await self._enter("flush", 0, 0)
        self.stable = bytes(self.data)

    async def truncate(
        self, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF, flags: int = 0
    ) -> None:
        await self._enter(f"truncate {prealloc}", 0, length, flags)
        self.data = self.data[:length].ljust(length, b"\0")

    def _put(self, offset: int, data: Buffer) -> None:
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data

    async def block_status(self, offset: int, nbytes: int, want_zero: bool = True) -> Status:
        await self._enter("block_status", offset, nbytes)
        return self._run(offset, nbytes)

    def _run(self, offset: int, nbytes: int) -> Status:
        end = min(offset + nbytes, len(self.data))
        if offset >= end:
            return Status(EOF if offset >= len(self.data) else 0, 0)
        first, at = self._grain(offset)
        while at < end:
            kind, after = self._grain(at)
            if kind != first:
                break
            at = after
        flags = first | ALLOCATED | OFFSET_VALID
        pnum = min(at, end) - offset
        return Status(flags | (EOF if offset + pnum == len(self.data) else 0), pnum, offset, self)

    def _grain(self, offset: int) -> tuple[int, int]:
        """DATA or ZERO, and where the grain that holds `offset` ends."""
        start = offset // GRAIN * GRAIN
        grain = self.data[start : start + GRAIN]
        return (ZERO if grain.count(0) == len(grain) else DATA), start + GRAIN

    async def block_status_above(
        self, base: BlockNode | None, offset: int, nbytes: int, *, include_base: bool = False, want_zero: bool = True
    ) -> ChainStatus:
        await self._enter("block_status_above", offset, nbytes)
        run = self._run(offset, nbytes)
        return ChainStatus(run.flags, run.pnum, run.map, self.node, 1)

    async def is_zero(self, offset: int, nbytes: int) -> bool:
        await self._enter("is_zero", offset, nbytes)
        return not any(self.data[offset : offset + nbytes])

    async def extents(self, offset: int, nbytes: int, want_zero: bool = True) -> ExtentBatch:
        await self._enter("extents", offset, nbytes)
        runs = []
        at, end = offset, min(offset + nbytes, len(self.data))
        while at < end:
            run = self._run(at, end - at)
            runs.append(run)
            at += run.pnum
        return ExtentBatch.of_runs(offset, runs)
