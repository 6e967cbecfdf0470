"""Checking and changing an image as a whole."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

from aioblock.api.opening import Image, Opening, opened
from aioblock.base.errors import OptionError
from aioblock.core.images import CheckResult, Prealloc

__all__ = ["amend", "check", "resize"]


async def check(
    image: Image,
    *,
    fix_leaks: bool = False,
    fix_errors: bool = False,
    progress: Callable[[int, int], None] | None = None,
    format: str | None = None,
    **how: Unpack[Opening],
) -> CheckResult:
    """Check the metadata of an image against itself, and repair it where asked.

    The result counts what was found, and what of that was repaired; to know what is left, check again.
    `progress(done, total)` is told bytes of metadata; the total grows while more of it becomes known. `format`, `how`:
    as in `open`; to repair, the format must be given.

    Cancelled: a repair that has begun goes on to its end, and the call with it where the image was given by its name.
    Failed: the image is no worse than before. Raises: as `open`; NotSupported; OSError.
    """
    repair = fix_leaks or fix_errors
    async with opened(image, format=format, how=how, writable=repair, for_check=True) as disk:
        return await disk.check(fix_leaks=fix_leaks, fix_errors=fix_errors, progress=progress)


async def resize(
    image: Image,
    size: int,
    *,
    shrink: bool = False,
    prealloc: str = "off",
    format: str | None = None,
    **how: Unpack[Opening],
) -> None:
    """Make the disk of an image `size` bytes long; what is grown reads as zeroes. On stable storage when done.

    `shrink`: what lies behind a smaller size may be lost. `prealloc`: how much of what is grown is allocated at once:
    off, metadata, falloc or full. `format`, `how`: as in `open`.

    Cancelled: it is not begun, or goes on to its end. Failed: the disk has the old size or the new one.
    Raises: as `open`; OptionError, whose `option` is size, shrink or prealloc, before anything is changed;
    NotSupported; OSError.
    """
    try:
        mode = Prealloc(prealloc)
    except ValueError:
        raise OptionError(f"Invalid preallocation mode '{prealloc}'", option="prealloc") from None
    async with opened(image, format=format, how=how, writable=True, resize=True) as disk:
        if size <= 0:
            raise OptionError("New image size must be positive", option="size")
        if size <= disk.length and mode is not Prealloc.OFF:
            raise OptionError("Preallocation can only be used for growing images", option="prealloc")
        if size < disk.length and not shrink:
            raise OptionError(
                f"'{disk.name}' is {disk.length} bytes long: to make it shorter loses what lies behind byte {size}, "
                "and must be allowed with `shrink`",
                option="shrink",
            )
        await disk.truncate(size, prealloc=mode)
        await disk.flush()


async def amend(
    image: Image,
    options: Mapping[str, Any],
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    format: str | None = None,
    **how: Unpack[Opening],
) -> None:
    """Change what an image was made with: a value, or a string, for each of its driver's `amend_options` that is given.

    `force`: also where data may be lost. `progress(done, total)` is told how much is done, of how much. `format`,
    `how`: as in `open`. On stable storage when done.

    Cancelled: it is not begun, or goes on to its end. Failed: some of it may be changed.
    Raises: as `open`; OptionError and NotSupported before anything is written; OSError.
    """
    async with opened(image, format=format, how=how, writable=True, resize=True) as disk:
        await disk.amend(options, force=force, progress=progress)
