"""Prefetch: have a range brought to where the next read of it is fast, if possible without its bytes coming here."""

import errno

from aioblock.base.flags import RAW
from aioblock.blockio.read import read
from aioblock.blockio.request import aligned, check_range, request_error
from aioblock.blockio.status import ask_driver
from aioblock.core.driver import BlockDriver
from aioblock.core.node import BlockNode

__all__ = ["prefetch"]

_STEP = 1 << 20
"""Bytes that are read at a time where nobody knows a shorter way."""


async def prefetch(node: BlockNode, offset: int, nbytes: int, flags: int = 0) -> None:
    """Ask the driver, or the child whose bytes it passes on; else read the range (with `flags`, as `read`) and drop it.

    Cancelled or failed: some of it is there. Raises: OSError, also where the range is not inside the node.
    """
    check_range(node, offset, nbytes)
    if offset + nbytes > node.length:
        raise request_error(errno.EIO, node)
    if flags or not nbytes or not await _passed_on(node, offset, nbytes):
        buffer = memoryview(bytearray(min(nbytes, _STEP)))
        for at in range(offset, offset + nbytes, _STEP):
            await read(node, at, buffer[: offset + nbytes - at], flags)


async def _passed_on(node: BlockNode, offset: int, nbytes: int) -> bool:
    """Whether the driver, or the child, has done it."""
    ticket = node.requests.begin()
    try:
        if type(node.driver).prefetch is not BlockDriver.prefetch:
            begin, end = aligned(node, offset, nbytes)
            await node.driver.prefetch(begin, end - begin)
            return True
        flags, pnum, where, file = await ask_driver(node, offset, nbytes, False)
        if flags & RAW and file is not None and pnum == nbytes:
            await prefetch(file.node, where, nbytes)
            return True
    except OSError:
        pass  # qemu-nbd 7.2 says EPERM of a read-only export; what is really wrong will be seen while reading
    finally:
        node.requests.end(ticket)
    return False
