"""A new file that appears under its name when it is complete, and not before."""

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from .failures import Failure

if TYPE_CHECKING:
    from .terminal import Terminal

__all__ = ["appears_complete", "refuse_to_overwrite", "seen_from"]


def _path(name: str) -> str | None:
    """The path that a name means; None where it is no file of this machine."""
    head, colon, _ = name.partition(":")
    if colon and "/" not in head and head != "file":
        return None
    return name.removeprefix("file:")


def refuse_to_overwrite(name: str, *, force: bool) -> None:
    """Raises: Failure where there is something under that name, unless `force`."""
    path = _path(name)
    if path is not None and os.path.lexists(path) and not force:
        raise Failure(f"{name} is there already", hint="Take another name, or add --force to replace it.")


@asynccontextmanager
async def appears_complete(terminal: "Terminal", name: str) -> AsyncIterator[str]:
    """`async with appears_complete(terminal, "b.qcow2") as made:` make the image `made`, beside it.

    At the end it takes the place of what was there, which stays as it is until then. Left by an error, or cancelled:
    what was made is removed. A device, or what is no file of this machine, is written to directly: `made` is its name.
    """
    path = _path(name)
    if path is None or _is_device(path):
        terminal.left = f"{name} holds a part of it."
        yield name
        return
    place = os.path.realpath(path)  # a link stays, and what it leads to is replaced
    if not os.path.isdir(os.path.dirname(place)):
        raise Failure(f"{name}: there is no directory '{os.path.dirname(path)}'", hint="Make it first: mkdir -p")
    part = os.path.join(os.path.dirname(place), f".{os.path.basename(place)}.{os.getpid()}.part")
    before = os.path.lexists(place)
    terminal.left = f"{name} is as it was before." if before else f"Nothing is left: {name} was not made."
    try:
        yield part
        if before:
            os.chmod(part, stat.S_IMODE(os.stat(place).st_mode))
        os.replace(part, place)
        terminal.left = f"{name} is complete."
    except BaseException:
        try:
            os.unlink(part)
        except FileNotFoundError:
            pass
        raise


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode)


def seen_from(image: str, backing: str) -> str:
    """The name of a backing file as the image is to hold it: from its own directory, unless it is absolute."""
    head, colon, _ = backing.partition(":")
    if os.path.isabs(backing) or (colon and "/" not in head):
        return backing
    home = os.path.dirname(image.removeprefix("file:")) or "."
    return os.path.relpath(backing, home)
