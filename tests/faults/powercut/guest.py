"""The guest: operations on an open image, told to the timeline and to the model as they begin and end."""

from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import numpy as np

from aioblock.base.errors import BitmapError, NotSupported
from aioblock.base.flags import REQ_COMPRESSED, REQ_FUA, REQ_MAY_UNMAP
from aioblock.graph.backend import BlockBackend
from tests.faults.powercut.contents import SECTOR, bytes_of
from tests.faults.powercut.fsck import Damage, Image
from tests.faults.powercut.model import Model, Op
from tests.faults.powercut.recorder import Timeline
from tests.faults.powercut.spoil import spoilt

__all__ = ["Guest"]


class Guest:
    """Does operations on whole sectors; `disk` may be exchanged for the same one opened anew."""

    def __init__(self, timeline: Timeline, model: Model, disk: BlockBackend, cluster: int) -> None:
        self.timeline, self.model, self.disk, self.cluster = timeline, model, disk, cluster

    @property
    def sectors(self) -> int:
        """The size of the disk."""
        return self.disk.length // SECTOR

    async def _do(self, op: Op, verb: Awaitable[Any], refused: str = "") -> None:
        """Where it fails with a message that has `refused` in it, nothing was done."""
        self.model.ops.append(op)
        self.timeline.note("guest", op)
        try:
            await verb
        except (NotSupported, BitmapError):  # nothing was done
            op.refuse()
            return
        except OSError as error:
            if not refused or refused not in str(error):
                raise
            op.refuse()
            return
        op.end = self.timeline.note("promise" if op.durable or op.flushes else "done", op)

    def _op(self, low: int, tags: Any, **how: Any) -> Op:
        return Op(self.timeline.now, low, tags, **how)

    async def write(self, low: int, high: int, *, fua: bool = False) -> None:
        """As much of it as lies on the disk; so do the others."""
        high = min(high, self.sectors)
        if low >= high:
            return
        tags = self.model.tags(low, high)
        op = self._op(low, tags, durable=fua)
        await self._do(op, self.disk.pwrite(low * SECTOR, bytes_of(tags), REQ_FUA if fua else 0))

    async def compress(self, low: int, high: int) -> None:
        """Whole clusters, one after the other; those that have a place in the file are left as they are."""
        unit = self.cluster // SECTOR
        for at in range(low, min(high, self.sectors // unit * unit), unit):
            tags = self.model.tags(at, at + unit)
            verb = self.disk.pwrite(at * SECTOR, bytes_of(tags), REQ_COMPRESSED)
            await self._do(self._op(at, tags), verb, "cannot be stored compressed")

    async def zero(self, low: int, high: int, *, unmap: bool, fua: bool = False) -> None:
        high = min(high, self.sectors)
        if low >= high:
            return
        op = self._op(low, np.zeros(high - low, np.int64), durable=fua)
        flags = (REQ_MAY_UNMAP if unmap else 0) | (REQ_FUA if fua else 0)
        await self._do(op, self.disk.pwrite_zeroes(low * SECTOR, (high - low) * SECTOR, flags))

    async def discard(self, low: int, high: int) -> None:
        """The clusters that lie inside the range."""
        unit = self.cluster // SECTOR
        low, high = -(-low // unit) * unit, min(high, self.sectors) // unit * unit
        if low < high:
            op = self._op(low, np.zeros(high - low, np.int64), keeps_old=True)
            await self._do(op, self.disk.pdiscard(low * SECTOR, (high - low) * SECTOR))

    async def flush(self) -> None:
        await self._do(Op(self.timeline.now, flushes=True), self.disk.flush())

    async def close(self) -> None:
        """All that was done is stable then."""
        await self._do(Op(self.timeline.now, flushes=True), self.disk.close())

    async def reopen(self) -> None:
        """Read-only, and writable again; all that was done is stable when it is read-only."""
        await self._do(Op(self.timeline.now, flushes=True), self.disk.reopen(writable=False))
        await self.disk.reopen(writable=True)

    async def resize(self, sectors: int) -> None:
        low, high = sorted((sectors, self.sectors))
        op = self._op(low, np.zeros(high - low, np.int64), size=sectors * SECTOR, touched=(low, high))
        await self._do(op, self.disk.truncate(sectors * SECTOR))

    # -- snapshots and bitmaps ---------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Of the snapshots that are there."""
        return [each.name for each in self.disk.snapshots()]

    async def snapshot(self) -> None:
        """Make one."""
        self.model.serial += 1
        name = f"snapshot{self.model.serial}"
        seen = self.model.snapshots[name] = self.model.latest()
        seen.sizes = {self.disk.length}
        verb = self.disk.snapshot_create(name)
        await self._do(Op(self.timeline.now, creates=name, durable=True), verb, "refcount")  # they may be too narrow

    async def apply(self, name: str) -> None:
        """Go back to it."""
        seen = self.model.snapshots[name]
        (size,) = seen.sizes
        op = self._op(0, seen.exact, size=size, also=seen.others, durable=True)
        await self._do(op, self.disk.snapshot_apply(name), "refcount")

    async def delete(self, name: str) -> None:
        await self._do(Op(self.timeline.now, deletes=name, durable=True), self.disk.snapshot_delete(name))

    async def bitmap(self) -> None:
        """Add one, or remove the first of two."""
        there = list(self.disk.bitmaps())
        if len(there) > 1:
            op = Op(self.timeline.now, bitmap=there[0], deletes=there[0], durable=True)
            await self._do(op, self.disk.bitmap_remove(there[0]))
            return
        self.model.serial += 1
        name = f"bitmap{self.model.serial}"
        await self._do(Op(self.timeline.now, bitmap=name), self.disk.bitmap_add(name, 512))

    async def remove_bitmaps(self) -> None:
        """All of them, one after the other."""
        for name in list(self.disk.bitmaps()):
            op = Op(self.timeline.now, bitmap=name, deletes=name, durable=True)
            await self._do(op, self.disk.bitmap_remove(name))

    # -- the image as such -------------------------------------------------------------------------------------------

    def _header(self) -> Image:
        """What the image says of itself now."""
        return Image(bytearray(self.timeline.files[0].content()))

    def _says(self, new: dict[str, Any], **how: Any) -> Op:
        old = self._header()
        said = {name: (getattr(old, name), value) for name, value in new.items()}
        return Op(self.timeline.now, says=said, durable=True, **how)

    async def amend(self, options: dict[str, str], **says: Any) -> None:
        """Change what the image says of itself, `says` by names of `fsck.Image`; the disk stays as it is."""
        await self._do(self._says(says), self.disk.amend(options))

    async def amend_size(self, sectors: int) -> None:
        """As `resize`, but stable when done."""
        low, high = sorted((sectors, self.sectors))
        tags = np.zeros(high - low, np.int64)
        op = self._op(low, tags, size=sectors * SECTOR, touched=(low, high), durable=True)
        await self._do(op, self.disk.amend({"size": str(sectors * SECTOR)}))

    async def rename_backing(self, name: str) -> None:
        """The image names another backing file; the one that is open stays."""
        await self._do(self._says({"backing_name": name.encode()}), self.disk.change_backing_file(name, "raw"))

    @property
    def version(self) -> int:
        """Of the image."""
        return int(self._header().version)

    @property
    def backing_name(self) -> str:
        """As the image has it."""
        return self._header().backing_name.decode()

    async def repair(self) -> None:
        """Nothing is wrong any more when it is done, however the power may fail then."""
        await self._do(
            Op(self.timeline.now, durable=True, repairs=True), self.disk.check(fix_leaks=True, fix_errors=True)
        )

    async def find_damage(self) -> None:
        """Read it all: an error, and the image is marked corrupt and takes no more writes until it is repaired."""
        with suppress(OSError):
            await self.disk.pread(0, self.disk.length)
            raise Damage("open", "damage was not found")
        await self._do(Op(self.timeline.now, flushes=True), self.disk.flush())

    def spoil(self, kind: str) -> None:
        """Damage the image, which is not open."""
        file = self.timeline.files[0]
        content = spoilt(file.content(), kind)
        file.write(0, memoryview(content))
        wrong = ""
        try:
            Image(bytearray(content)).check()
        except Damage as damage:
            wrong = str(damage)
        self.timeline.note("spoilt", content)
        now = self.timeline.now
        self.model.ops.append(Op(now, spoils=wrong, end=now))
