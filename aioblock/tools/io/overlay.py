"""The temporary overlay of -s: what is written goes into an image of its own, which nobody ever sees."""

import os
import tempfile
from typing import TYPE_CHECKING, Any

from ..program import open_image
from .opening import open_described

if TYPE_CHECKING:
    from aioblock import BlockBackend

__all__ = ["open_overlay"]


async def open_overlay(
    name: str | None, options: dict[str, Any], how: dict[str, Any], *, writable: bool, copy_on_read: bool
) -> "BlockBackend":
    """Open an image read-only below a new overlay; its file has no name any more, and ends with the image.

    Raises: OSError, BlockError.
    """
    import aioblock

    async with await open_described(name, options, how) as base:
        length = base.length
        below = dict(base.node.options)
    if how["force_share"]:
        below["force-share"] = True
    fd, path = tempfile.mkstemp(prefix="aioblock-", suffix=".qcow2", dir=os.environ.get("TMPDIR") or "/var/tmp")
    os.close(fd)
    try:
        await aioblock.create(path, "qcow2", size=length)
        return await open_image(
            {"driver": "qcow2", "file": {"driver": "file", "filename": path}, "backing": below},
            writable=writable,
            cache="unsafe",  # it never outlives this process
            discard=how["discard"],
            copy_on_read=copy_on_read,
        )
    finally:
        os.unlink(path)
