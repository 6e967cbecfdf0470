"""WholeImage: the verbs of `Qcow2Driver` that concern the image as a whole. Nothing else is in flight meanwhile.

What a verb needs is imported when it is asked for: reading and writing do without.
"""

from aioblock.core.driver import BlockDriver
from aioblock.core.images import CheckResult, DriverInfo
from aioblock.drivers.formats.qcow2.commit import write_back
from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["WholeImage"]


class WholeImage(BlockDriver):
    """Information, check, and what else is done to an image from without."""

    image: Image

    def info(self) -> DriverInfo:
        """What `qemu-img info` shows."""
        from aioblock.drivers.formats.qcow2.info import describe

        return describe(self.image.header, self.image.bitmaps)

    def has_zero_init(self) -> bool:
        """Preallocated clusters read as what the file holds."""
        image = self.image
        if image.l1 and image.l1[0]:
            return image.data_file.node.driver.has_zero_init()
        return True

    async def check(self, *, fix_leaks: bool = False, fix_errors: bool = False) -> CheckResult:
        """Check the metadata in the file, after writing back what is in memory."""
        from aioblock.base.errors import NotSupported

        if fix_leaks or fix_errors:
            raise NotSupported("Repairing qcow2 images is not built yet")
        image = self.image
        if not image.read_only and not image.corrupt:
            await write_back(image)
        from aioblock.drivers.formats.qcow2.check import check_image

        return await check_image(image.file, image.header)
