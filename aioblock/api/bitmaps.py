"""Dirty bitmaps of an image. Of one that stays open, its own verbs of the same names do the same, and more.

A function that opens an image for itself has stored the bitmaps on stable storage when it is done.
"""

from contextlib import AsyncExitStack
from typing import Unpack

from aioblock.api.info import BitmapInfo, bitmaps_of
from aioblock.api.opening import Image, Opening, opened
from aioblock.base.errors import BitmapError, BlockError, NotSupported, with_context
from aioblock.core.dirty_bitmap import DirtyBitmap
from aioblock.graph.backend import BlockBackend

__all__ = [
    "bitmap_add",
    "bitmap_clear",
    "bitmap_disable",
    "bitmap_enable",
    "bitmap_merge",
    "bitmap_remove",
    "bitmaps",
    "copy_bitmaps",
]


async def bitmaps(image: Image, *, format: str | None = None, **how: Unpack[Opening]) -> tuple[BitmapInfo, ...]:
    """The dirty bitmaps of an image, in its own order. `format`, `how`, raises: as `open`.

    Cancelled or failed: nothing is left behind.
    """
    async with opened(image, format=format, how=how, backing=False, metadata_only=True) as disk:
        return bitmaps_of(disk)


async def bitmap_add(
    image: Image,
    name: str,
    *,
    granularity: int | None = None,
    disabled: bool = False,
    format: str | None = None,
    **how: Unpack[Opening],
) -> None:
    """Add a clean, persistent bitmap. `granularity` in bytes, a power of two from 512 to 2 GiB; None: the cluster size,
    within 4 KiB and 64 KiB. `disabled`: writes do not mark it until it is enabled.

    `format`, `how`: as in `open`. Cancelled: it is there, or not. Failed: it is not.
    Raises: as `open`; BitmapError; NotSupported where the image cannot keep it; OSError.
    """
    async with opened(image, format=format, how=how, writable=True, backing=False) as disk:
        await disk.bitmap_add(name, granularity, disabled=disabled)


async def bitmap_remove(image: Image, name: str, *, format: str | None = None, **how: Unpack[Opening]) -> None:
    """Remove a bitmap, also an inconsistent one.

    `format`, `how`: as in `open`. Cancelled or failed: it is there as before, or gone.
    Raises: as `open`; BitmapError; OSError.
    """
    async with opened(image, format=format, how=how, writable=True, backing=False) as disk:
        await disk.bitmap_remove(name)


async def bitmap_clear(image: Image, name: str, *, format: str | None = None, **how: Unpack[Opening]) -> None:
    """Take all marks from a bitmap.

    `format`, `how`: as in `open`. Cancelled: it is as before, or clean. Raises: as `open`; BitmapError; OSError.
    """
    async with opened(image, format=format, how=how, writable=True, backing=False) as disk:
        await disk.bitmap_clear(name)


async def bitmap_enable(image: Image, name: str, *, format: str | None = None, **how: Unpack[Opening]) -> None:
    """From now on writes mark it.

    `format`, `how`: as in `open`. Cancelled: it is as before, or enabled. Raises: as `open`; BitmapError; OSError.
    """
    async with opened(image, format=format, how=how, writable=True, backing=False) as disk:
        await disk.bitmap_enable(name)


async def bitmap_disable(image: Image, name: str, *, format: str | None = None, **how: Unpack[Opening]) -> None:
    """From now on it stays as it is.

    `format`, `how`: as in `open`. Cancelled: it is as before, or disabled. Raises: as `open`; BitmapError; OSError.
    """
    async with opened(image, format=format, how=how, writable=True, backing=False) as disk:
        await disk.bitmap_disable(name)


async def bitmap_merge(
    image: Image,
    target: str,
    source: str,
    *,
    source_image: Image | None = None,
    source_format: str | None = None,
    format: str | None = None,
    **how: Unpack[Opening],
) -> None:
    """Mark in the bitmap `target` what is marked in the bitmap `source`, which may be that of another image.

    Both disks have the same length; granularities may differ. `format`, `source_format`, `how`: as in `open`.
    Cancelled: it is as before, or all is marked. Failed: it is as before. Raises: as `open`; BitmapError; OSError.
    """
    async with AsyncExitStack() as stack:
        disk = await stack.enter_async_context(opened(image, format=format, how=how, writable=True, backing=False))
        other = None
        if source_image is not None:
            mine: Opening = {} if isinstance(source_image, BlockBackend) else how
            other = await stack.enter_async_context(opened(source_image, format=source_format, how=mine, backing=False))
        await disk.bitmap_merge(target, source, other)


async def copy_bitmaps(source: BlockBackend, target: BlockBackend, *, skip_inconsistent: bool = False) -> list[str]:
    """Copy the persistent bitmaps of an open image into another one of the same length, which has none of their names.

    `skip_inconsistent`: those whose content is lost are left out; their names are returned. The target stores the
    copies when it is closed. Cancelled or failed: some are copied, whole; one that is not whole is removed again.
    Raises: NotSupported where one of the two keeps no bitmaps; BitmapError where there is an inconsistent one, and
    nothing is copied; BitmapError and OSError, with the name of the bitmap that could not be copied.
    """
    check_bitmaps(source, skip_inconsistent=skip_inconsistent)
    if not target.stores_bitmaps:
        raise NotSupported(f"Format driver '{target.node.driver.name}' does not support bitmaps")
    skipped = []
    for bitmap in _persistent(source):
        if bitmap.inconsistent:
            skipped.append(bitmap.name)
        else:
            await _copy(bitmap, source, target)
    return skipped


async def _copy(bitmap: DirtyBitmap, source: BlockBackend, target: BlockBackend) -> None:
    name = bitmap.name
    try:
        await target.bitmap_add(name, bitmap.granularity, disabled=True)
    except (OSError, BlockError) as error:
        with_context(error, f"Failed to create bitmap {name}: ")
        raise
    try:
        await target.bitmap_merge(name, name, source)
        if bitmap.enabled:
            await target.bitmap_enable(name)
    except BaseException as error:
        await target.bitmap_remove(name)
        if isinstance(error, OSError | BlockError):
            with_context(error, f"Failed to populate bitmap {name}: ")
        raise


def check_bitmaps(source: BlockBackend, *, skip_inconsistent: bool = False) -> None:
    """Whether `copy_bitmaps` could begin. Raises: NotSupported; BitmapError for an inconsistent one."""
    if not source.stores_bitmaps:
        raise NotSupported("Source lacks bitmap support")
    for bitmap in reversed(_persistent(source)):
        if bitmap.inconsistent and not skip_inconsistent:
            raise BitmapError(f"Cannot copy inconsistent bitmap '{bitmap.name}'", name=bitmap.name)


def _persistent(disk: BlockBackend) -> list[DirtyBitmap]:
    return [bitmap for bitmap in disk.bitmaps().values() if bitmap.persistent]
