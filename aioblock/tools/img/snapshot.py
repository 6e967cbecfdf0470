"""`snapshot`: list, make, apply and delete the internal snapshots of an image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..program import ProgramError, error_text, print_error, run
from .asked import Asked, long_options
from .command import opened, usage_error
from .snapshot_list import snapshot_list

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["USAGE", "main"]

USAGE = "[--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename"


class _Asked(Asked):
    SHORT = "la:c:d:qU"
    LONG = long_options("object", "image-opts", "force-share")

    action = name = ""

    def take(self, option: str, value: str) -> None:
        if option not in ("l", "a", "c", "d"):
            super().take(option, value)
            return
        if self.action:
            raise usage_error("Cannot mix '-l', '-a', '-c', '-d'")
        self.action, self.name = option, value


def main(argv: Sequence[str]) -> int:
    """Run the subcommand. Raises: ProgramError."""
    asked = _Asked(argv)
    filename = asked.one_image()
    writable = asked.action not in ("", "l")

    async def body() -> None:
        async with opened(
            filename,
            writable=writable,
            resize=asked.action == "a",
            metadata_only=not writable,
            discard="unmap" if writable else "ignore",
            **asked.how(),
        ) as disk:
            await _act(disk, asked.action, asked.name)

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
