"""Checking and repairing qcow2 images, open ones too. The work is in modules that are imported only when there is
something to check: they need NumPy.
"""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from aioblock.base.errors import message_of
from aioblock.core.images import CheckResult
from aioblock.drivers.formats.qcow2.commit import write_back
from aioblock.drivers.formats.qcow2.entries import table_from_bytes
from aioblock.drivers.formats.qcow2.image import Image, log

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO
    from aioblock.drivers.formats.qcow2.header import Header

__all__ = ["check_image", "check_open_image", "repair_dirty"]

Progress = Callable[[int, int], None]


async def check_image(
    file: "BlockIO",
    header: "Header",
    *,
    fix_leaks: bool = False,
    fix_errors: bool = False,
    progress: Progress | None = None,
) -> CheckResult:
    """Check the image whose metadata lies in `file`; repair it there where asked. Nobody else changes it meanwhile.

    A repair may change `header` too. `progress` is called with the bytes of metadata done, and of all known by then.
    Cancelled: a check leaves nothing behind, but a slice of computation may still run to its end in a thread; a repair
    leaves an image that is no worse than before. Raises: OSError where the file is too large to be checked in memory,
    or where a repair failed.
    """
    if fix_leaks or fix_errors:
        from aioblock.drivers.formats.qcow2.repair import repair

        return await repair(file, header, leaks=fix_leaks, errors=fix_errors, progress=progress)
    from aioblock.drivers.formats.qcow2.checker import Checker

    return await Checker(file, header, progress).run()


async def check_open_image(
    image: Image, *, fix_leaks: bool = False, fix_errors: bool = False, progress: Progress | None = None
) -> CheckResult:
    """Write back what is in memory, check and repair the file, and read anew what may have changed.

    No request is in flight. An image that was found to be corrupt can be written again when all is repaired; if that
    was found with changes in memory, which the file will never have, it has to be opened anew first.
    Raises: as `check_image`; OSError EROFS where it cannot be written.
    """
    await image.settle_marking()
    if not image.read_only and not image.corrupt:
        await write_back(image)
    if not fix_leaks and not fix_errors:
        return await check_image(image.file, image.header, progress=progress)
    if image.read_only:
        raise OSError(errno.EROFS, "The image is read-only and cannot be repaired")
    if image.failure is not None or image.l2.dirty or image.l1_dirty:
        raise OSError(errno.EIO, "Changes were lost: the image has to be opened anew before it is repaired")
    try:
        return await check_image(
            image.file, image.header, fix_leaks=fix_leaks, fix_errors=fix_errors, progress=progress
        )
    finally:
        await _reload(image)


async def repair_dirty(image: Image) -> None:
    """Repair an image whose refcounts were not written back when it was last used. Raises: OSError.

    What is found and repaired is logged, a line each.
    """
    if not image.header.dirty:
        return
    try:
        result = await check_image(image.file, image.header, fix_leaks=True, fix_errors=True)
    except OSError as error:
        raise OSError(error.errno, f"qcow2: Could not repair dirty image: {message_of(error)}") from error
    for finding in result.findings:
        log.warning("%s", finding.message)
    if result.check_errors:
        raise OSError(errno.EIO, "qcow2: Could not repair dirty image: Input/output error")
    await _reload(image)


async def _reload(image: Image) -> None:
    """Forget all tables in memory, and read anew those that are always there. Raises: OSError."""
    header = image.header
    image.l2.dirty.clear()
    image.forget_mapping()
    image.refcounts.forget()
    image.packer.forget()
    image.frees.clear()
    image.l1 = table_from_bytes(await image.file.pread(header.l1_table_offset, 8 * header.l1_size))
    image.l1_offset = header.l1_table_offset
    image.l1_dirty.clear()
    image.l1_moved = False
    await image.refcounts.load()
    image.lazily_dirty = header.dirty
    image.corrupt = header.corrupt
