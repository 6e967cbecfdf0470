"""Discard: advisory, cut to what the driver can give back."""

import errno

from aioblock.blockio.request import aligned, check_range, check_writable
from aioblock.core.dirty_bitmap import mark
from aioblock.core.driver import BlockDriver
from aioblock.core.node import BlockNode

__all__ = ["discard"]


async def discard(node: BlockNode, offset: int, nbytes: int) -> None:
    """Tell the driver that a range is not needed any more; parts smaller than its unit are left as they are.

    Failed: each part of the range holds old data or what a discarded one reads as. Not to be cancelled.
    Raises: OSError; never because the driver cannot.
    """
    check_range(node, offset, nbytes)
    check_writable(node, offset, min(nbytes, max(node.length - offset, 0)))
    if not nbytes or not node.unmap or type(node.driver).pdiscard is BlockDriver.pdiscard:
        return
    limits = node.limits
    unit = max(limits.pdiscard_alignment, limits.request_alignment)
    requests = node.requests
    # Serialising: what is given back may be used elsewhere at once, so nobody may be reading or writing it.
    ticket = requests.begin_serialising(*aligned(node, offset, nbytes, unit))
    try:
        await requests.wait(ticket)
        if node.bitmaps:
            mark(node.bitmaps.values(), offset, nbytes)
        start = offset + -offset % unit
        end = offset + nbytes
        end = end if end >= node.length else end - end % unit
        end = min(end, node.length)
        longest = (limits.max_pdiscard or 1 << 62) // unit * unit or unit
        while start < end:
            stop = min(end, start + longest)
            try:
                await node.driver.pdiscard(start, stop - start)
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise
                return
            finally:
                node.flush_state.written += 1
            start = stop
    finally:
        requests.end(ticket)
