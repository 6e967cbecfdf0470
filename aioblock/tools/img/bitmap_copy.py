"""`convert --bitmaps`: the persistent bitmaps of an image, copied to another one."""

from typing import TYPE_CHECKING

from ..program import ProgramError, print_error

if TYPE_CHECKING:
    from aioblock import BlockBackend, DirtyBitmap

__all__ = ["check_source_bitmaps", "copy_bitmaps"]


def _persistent(disk: "BlockBackend") -> "list[DirtyBitmap]":
    return [bitmap for bitmap in disk.bitmaps().values() if bitmap.persistent]


def check_source_bitmaps(source: "BlockBackend", skip_broken: bool) -> None:
    """Before anything is made: whether the bitmaps can be copied. Raises: ProgramError."""
    if not source.stores_bitmaps:
        raise ProgramError("Source lacks bitmap support")
    if skip_broken:
        return
    for bitmap in reversed(_persistent(source)):
        if bitmap.inconsistent:
            raise ProgramError(
                f"Cannot copy inconsistent bitmap '{bitmap.name}'\n"
                "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"
            )


async def copy_bitmaps(source: "BlockBackend", target: "BlockBackend") -> None:
    """Copy the bitmaps that are consistent, and say which are not. Raises: NotSupported, BitmapError, OSError."""
    import aioblock

    for bitmap in reversed(_persistent(source)):
        if bitmap.inconsistent:
            print_error(f"warning: Skipping inconsistent bitmap '{bitmap.name}'")
    await aioblock.copy_bitmaps(source, target, skip_inconsistent=True)
