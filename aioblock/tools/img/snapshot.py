"""`snapshot`: list, make, apply and delete the internal snapshots of an image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..program import ProgramError, define_object, error_text, print_error, run
from .command import Options, opened, usage_error
from .snapshot_list import snapshot_list

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename"

_LONG = {"object": "object:", "image-opts": "image-opts", "force-share": "U"}


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    action = name = ""
    image_opts = force_share = False
    options = Options(argv, "la:c:d:qU", _LONG)
    for option, value in options:
        if option in ("l", "a", "c", "d"):
            if action:
                raise usage_error("Cannot mix '-l', '-a', '-c', '-d'")
            action, name = option, value
        elif option == "U":
            force_share = True
        elif option == "image-opts":
            image_opts = True
        elif option == "object":
            define_object(value)
    filename = options.one_image()
    writable = action not in ("", "l")

    async def body() -> None:
        async with opened(
            filename,
            image_opts=image_opts,
            writable=writable,
            resize=action == "a",
            force_share=force_share,
            metadata_only=not writable,
            discard="unmap" if writable else "ignore",
        ) as disk:
            await _act(disk, action, name)

    return run(body, fast=False)


async def _act(disk: "BlockBackend", action: str, name: str) -> None:
    from aioblock import BlockError

    try:
        if action == "c":
            await disk.snapshot_create(name, icount=0)
        elif action == "a":
            await disk.snapshot_apply(name)
        elif action == "d":
            await _delete(disk, name)
        elif action == "l":
            print("\n".join(snapshot_list(disk.snapshots())), end="\n" if disk.snapshots() else "")
    except (OSError, BlockError) as error:
        raise _failure(action, name, error) from error


async def _delete(disk: "BlockBackend", name: str) -> None:
    """The first snapshot of this name: an id does not do here. Raises: ProgramError; OSError."""
    for snapshot in disk.snapshots():
        if snapshot.name == name:
            await disk.snapshot_delete(snapshot.id)
            return
    raise ProgramError(f"Could not delete snapshot '{name}': snapshot not found")


def _failure(action: str, name: str, error: Exception) -> ProgramError:
    """QEMU's words: it tells the errno of a creation, and the reason where there is one to tell."""
    import errno
    import os

    code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    reason = error_text(error)
    if action == "c":
        return ProgramError(f"Could not create snapshot '{name}': {-code} ({os.strerror(code)})")
    if action == "d":
        return ProgramError(f"Could not delete snapshot '{name}': {reason}")
    if reason.endswith("does not support internal snapshots"):
        reason = "Block driver does not support snapshots"
    elif not reason.startswith("Device has"):
        if code not in (errno.ENOENT, errno.ENOTSUP):
            print_error(reason)  # QEMU's last word is the errno
        reason = f"Failed to load snapshot: {os.strerror(code)}"
    return ProgramError(f"Could not apply snapshot '{name}': {reason}")
