"""WholeImage: the verbs of `Qcow2Driver` that concern the image as a whole. Nothing else is in flight meanwhile.

What a verb needs is imported when it is asked for: reading and writing do without.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aioblock.core.dirty_bitmap import DirtyBitmap
from aioblock.core.driver import BlockDriver
from aioblock.core.images import CheckResult, DriverInfo, SnapshotInfo
from aioblock.drivers.formats.qcow2.image import Image
from aioblock.drivers.formats.qcow2.overlap import load_inactive

__all__ = ["WholeImage"]


class WholeImage(BlockDriver):
    """Information, check, and what else is done to an image from without."""

    image: Image

    def info(self) -> DriverInfo:
        """What `qemu-img info` shows."""
        from aioblock.drivers.formats.qcow2.info import describe

        image = self.image
        persistent = [bitmap for bitmap in image.bitmaps.values() if bitmap.persistent]
        return describe(image.header, persistent, image.volume)

    def has_zero_init(self) -> bool:
        """Preallocated clusters read as what the file holds."""
        image = self.image
        if image.l1 and image.l1[0]:
            return not image.encrypted and image.data_file.node.driver.has_zero_init()
        return True

    async def check(
        self,
        *,
        fix_leaks: bool = False,
        fix_errors: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> CheckResult:
        """Check the metadata in the file, after writing back what is in memory; repair it there."""
        from aioblock.drivers.formats.qcow2.check import check_open_image

        return await check_open_image(self.image, fix_leaks=fix_leaks, fix_errors=fix_errors, progress=progress)

    # -- dirty bitmaps -----------------------------------------------------------------------------------------------

    def stores_bitmaps(self) -> bool:
        """Only since version 3: there are no autoclear bits before."""
        return self.image.header.version >= 3

    def check_new_bitmap(self, bitmap: DirtyBitmap) -> None:
        """Against the limits of the format."""
        from aioblock.drivers.formats.qcow2.bitmaps import check_new_bitmap

        others = [other for other in self.image.bitmaps.values() if other.persistent]
        check_new_bitmap(bitmap, others, self.image.header)

    async def load_bitmap(self, bitmap: DirtyBitmap) -> None:
        """Read it from its clusters."""
        from aioblock.drivers.formats.qcow2.bitmap_store import load_bitmap

        await load_bitmap(self.image, bitmap)

    async def remove_bitmap(self, bitmap: DirtyBitmap) -> None:
        """Write a directory without it."""
        if self.stores_bitmaps() and bitmap.name in self.image.stored_bitmaps:
            from aioblock.drivers.formats.qcow2.bitmap_store import remove_bitmap

            await remove_bitmap(self.image, bitmap.name)

    async def store_bitmaps(self) -> None:
        """Put the persistent ones into the file, which was written back, and is not written any more."""
        image = self.image
        if self.stores_bitmaps() and (image.bitmaps or image.stored_bitmaps):
            from aioblock.drivers.formats.qcow2.bitmap_store import store_bitmaps

            await store_bitmaps(image)

    async def amend(
        self,
        options: Mapping[str, Any],
        *,
        force: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """See `amend`."""
        from aioblock.drivers.formats.qcow2.amend import amend

        try:
            await amend(self.image, options, force=force, progress=progress)
        finally:
            await self._snapshots_changed()

    async def make_empty(self) -> None:
        """Drop every cluster and L2 table of the disk; what snapshots hold stays."""
        from aioblock.drivers.formats.qcow2.shrink import make_empty

        try:
            await make_empty(self.image)
        finally:
            await self.image.settle_marking()

    async def change_backing_file(self, filename: str | None, format: str | None) -> None:
        """The name and the format that the header has."""
        from aioblock.drivers.formats.qcow2.amend import change_backing_file

        await change_backing_file(self.image, filename, format)

    # -- internal snapshots ------------------------------------------------------------------------------------------

    def snapshots(self) -> Sequence[SnapshotInfo]:
        """The entries of the snapshot table."""
        if not self.image.header.snapshots:
            return ()
        from aioblock.drivers.formats.qcow2.snapshot_find import describe_snapshots

        return describe_snapshots(self.image.header)

    async def snapshot_create(
        self, name: str, *, vm_state_size: int = 0, vm_clock_nsec: int = 0, icount: int | None = None
    ) -> SnapshotInfo:
        """Keep the disk, and with a `vm_state_size` the VM state area, which is empty afterwards."""
        from aioblock.drivers.formats.qcow2.snapshots import create_snapshot

        try:
            await create_snapshot(
                self.image, name, vm_state_size=vm_state_size, vm_clock_nsec=vm_clock_nsec, icount=icount
            )
        finally:
            await self._snapshots_changed()
        return self.snapshots()[-1]

    async def snapshot_apply(self, id_or_name: str) -> None:
        """Make the disk what the snapshot with this id, else the first with this name, holds."""
        from aioblock.drivers.formats.qcow2.snapshots import apply_snapshot

        try:
            await apply_snapshot(self.image, id_or_name)
        finally:
            await self._snapshots_changed()

    async def snapshot_delete(self, id_or_name: str) -> None:
        """Forget the snapshot with this id, else the first with this name."""
        from aioblock.drivers.formats.qcow2.snapshots import delete_snapshot

        try:
            await delete_snapshot(self.image, id_or_name)
        finally:
            await self._snapshots_changed()

    async def _snapshots_changed(self) -> None:
        """Other clusters than before hold metadata that is protected."""
        await self.image.settle_marking()
        await load_inactive(self.image)

    async def vm_state_read(self, offset: int, nbytes: int) -> bytearray:
        """Bytes of the area behind the last L2 table of the disk."""
        from aioblock.drivers.formats.qcow2.vm_state import read_vm_state

        return await read_vm_state(self.image, offset, nbytes)

    async def vm_state_write(self, offset: int, data: memoryview) -> None:
        """Write into that area."""
        from aioblock.drivers.formats.qcow2.vm_state import write_vm_state

        try:
            await write_vm_state(self.image, offset, data)
        finally:
            await self.image.settle_marking()
