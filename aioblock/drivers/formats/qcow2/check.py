"""Checking a qcow2 image. The work is in `checker`, imported only when there is something to check: it needs NumPy."""

from typing import TYPE_CHECKING

from aioblock.base.errors import NotSupported
from aioblock.core.images import CheckResult

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO
    from aioblock.drivers.formats.qcow2.header import Header

__all__ = ["check_image"]


async def check_image(file: "BlockIO", header: "Header") -> CheckResult:
    """Check the image whose metadata lies in `file`, and change nothing. Nobody else changes it meanwhile.

    Cancelled: nothing is left behind; a slice of computation may still run to its end in a thread.
    Raises: NotSupported; OSError where the file is too large to be checked in memory.
    """
    from aioblock.drivers.formats.qcow2.checker import Checker

    if header.has_data_file:
        raise NotSupported("Images with an external data file cannot be checked yet")
    return await Checker(file, header).run()
