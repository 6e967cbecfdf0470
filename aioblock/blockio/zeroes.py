"""Write-zeroes: the driver's own way where it has one, split at its alignment, else a buffer of zeroes."""

import errno

from aioblock.base.errors import NotSupported
from aioblock.base.flags import REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK
from aioblock.blockio.flush import flush
from aioblock.blockio.request import aligned, check_writable
from aioblock.blockio.write import driver_write, write_within
from aioblock.core.dirty_bitmap import mark
from aioblock.core.driver import BlockDriver
from aioblock.core.node import BlockNode

__all__ = ["write_zeroes", "zero_within"]

BOUNCE_BYTES = 1 << 20
"""The largest buffer of zeroes that is written where a driver cannot do better."""


async def write_zeroes(node: BlockNode, offset: int, nbytes: int, flags: int = 0) -> None:
    """Make a range read as zeroes.

    REQ_MAY_UNMAP: the storage may be given back. REQ_NO_FALLBACK: rather fail than write zeroes as data.
    Failed: each part of the range holds old data or zeroes. Not to be cancelled.
    Raises: OSError; NotSupported with REQ_NO_FALLBACK where it would be slow.
    """
    check_writable(node, offset, nbytes)
    if not nbytes:
        return
    if not node.unmap:
        flags &= ~REQ_MAY_UNMAP
    requests = node.requests
    unit = node.limits.pwrite_zeroes_alignment or 1
    # Serialising: the driver may give clusters back, which a request in flight still uses.
    ticket = requests.begin_serialising(*aligned(node, offset, nbytes, unit))
    try:
        await requests.wait(ticket)
        check_writable(node, offset, nbytes)  # what it waited for may have cut the node
        if node.bitmaps:
            mark(node.bitmaps.values(), offset, nbytes, grows=node.can_grow)
        await zero_within(node, offset, nbytes, flags)
        if flags & REQ_FUA:
            await flush(node)
    finally:
        requests.end(ticket)


async def zero_within(node: BlockNode, offset: int, nbytes: int, flags: int) -> None:
    """Zero a range that is entered already: parts of aligned blocks by read-modify-write, the rest by the driver."""
    mask = node.align_mask
    end = offset + nbytes
    if offset & mask:
        head = min(end, (offset | mask) + 1)
        await write_within(node, offset, memoryview(bytes(head - offset)), 0)
        offset = head
    tail = max(offset, end & ~mask)
    if tail > offset:
        await _zero_aligned(node, offset, tail, flags & ~REQ_FUA)
    if end > tail:
        await write_within(node, tail, memoryview(bytes(end - tail)), 0)


async def _zero_aligned(node: BlockNode, offset: int, end: int, flags: int) -> None:
    """Split at the driver's alignment for zeroes, so that a partial head and tail come alone."""
    limits = node.limits
    unit = max(limits.pwrite_zeroes_alignment, limits.request_alignment)
    longest = (limits.max_pwrite_zeroes or 1 << 62) // unit * unit or unit
    able = type(node.driver).pwrite_zeroes is not BlockDriver.pwrite_zeroes
    while offset < end:
        if offset % unit:
            stop = min(end, offset + -offset % unit)
        else:
            stop = min(end - end % unit, offset + longest) if end - offset >= unit else end
        await _zero_piece(node, offset, stop - offset, flags, able)
        offset = stop


async def _zero_piece(node: BlockNode, offset: int, nbytes: int, flags: int, able: bool) -> None:
    driver = node.driver
    if able:
        try:
            await driver.pwrite_zeroes(offset, nbytes, flags & driver.supported_zero_flags)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                node.flush_state.written += 1
                raise
        else:
            node.flush_state.written += 1
            if offset + nbytes > node.length:
                node.length = offset + nbytes
            return
    if flags & REQ_NO_FALLBACK:
        raise NotSupported
    step = min(nbytes, BOUNCE_BYTES)
    zeroes = memoryview(bytes(step))
    for at in range(0, nbytes, step):
        await driver_write(node, offset + at, zeroes[: min(step, nbytes - at)], 0)
