"""Read: zeroes behind the end, padding to the alignment, splitting, copy-on-read."""

from aioblock.base.buffers import is_zero
from aioblock.base.flags import ALLOCATED, REQ_COPY_ON_READ, REQ_UNCHANGED, REQ_ZEROES_AS_DATA
from aioblock.blockio.request import aligned, check_range
from aioblock.blockio.status import block_status
from aioblock.blockio.write import write_within
from aioblock.blockio.zeroes import zero_within
from aioblock.core.eager import run_to_end
from aioblock.core.node import BlockNode

__all__ = ["read", "read_now"]


def read_now(node: BlockNode, offset: int, buffer: memoryview) -> bool:
    """Fill `buffer` if that takes no waiting: a plain aligned read of what is in memory, while nobody is serialising.

    False: nothing was done that counts, use `read`. Such a request is over before anybody could see it in flight.
    Raises: OSError.
    """
    nbytes = len(buffer)
    if (
        offset < 0
        or not nbytes
        or offset + nbytes > node.length
        or node.requests.serialising
        or (offset | nbytes) & node.align_mask
        or (node.max_transfer and nbytes > node.max_transfer)
    ):
        return False
    return node.driver.preadv_now(offset, buffer)


async def read(node: BlockNode, offset: int, buffer: memoryview, flags: int = 0) -> None:
    """Fill `buffer` from `offset`; what lies behind the end of the node reads as zeroes.

    Cancelled or failed: the content of `buffer` is undefined.
    Raises: OSError.
    """
    nbytes = len(buffer)
    if offset < 0 or offset + nbytes > node.length:
        check_range(node, offset, nbytes)
        if (nbytes := _zero_behind_end(node, offset, buffer)) == 0:
            return
        buffer = buffer[:nbytes]
    if not nbytes:
        return
    requests = node.requests
    if flags or (offset | nbytes) & node.align_mask or (node.max_transfer and nbytes > node.max_transfer):
        await _read_the_long_way(node, offset, buffer, flags)
        return
    ticket = requests.begin(offset, offset + nbytes)
    try:
        if requests.serialising:
            await requests.wait(ticket)
            if offset + nbytes > node.length:
                await _read_within(node, offset, buffer)
                return
        await node.driver.preadv(offset, buffer, 0)
    finally:
        requests.end(ticket)


def _zero_behind_end(node: BlockNode, offset: int, buffer: memoryview) -> int:
    """Zero what `buffer` holds of the bytes behind the end; how many bytes lie before it."""
    inside = min(max(node.length - offset, 0), len(buffer))
    buffer[inside:] = bytes(len(buffer) - inside)
    return inside


async def _read_the_long_way(node: BlockNode, offset: int, buffer: memoryview, flags: int) -> None:
    if flags & REQ_COPY_ON_READ and not node.read_only:
        private = memoryview(bytearray(len(buffer)))  # the copying goes on when its caller is cancelled
        await run_to_end(_copy_on_read(node, offset, private, flags), node.tasks)
        buffer[:] = private
        return
    requests = node.requests
    ticket = requests.begin(*aligned(node, offset, len(buffer)))
    try:
        if requests.serialising:
            await requests.wait(ticket)
        await _read_within(node, offset, buffer)
    finally:
        requests.end(ticket)


async def _read_within(node: BlockNode, offset: int, buffer: memoryview) -> None:
    """Read a range that is entered already: the padding, and the splitting to the longest transfer."""
    nbytes = len(buffer)
    if offset + nbytes > node.length:  # what it waited for has cut the node
        nbytes = _zero_behind_end(node, offset, buffer)
        buffer = buffer[:nbytes]
    start, end = aligned(node, offset, nbytes)
    bounce = None
    if start != offset or end != offset + nbytes:
        bounce = memoryview(bytearray(end - start))
    target = buffer if bounce is None else bounce
    step = node.max_transfer or max(len(target), 1)
    for at in range(0, len(target), step):
        await node.driver.preadv(start + at, target[at : at + step], 0)
    if bounce is not None:
        buffer[:] = bounce[offset - start : offset - start + nbytes]


COPY_STEP = 16 << 20
"""How much copy-on-read holds in memory at a time, in bytes. Whole clusters of every size up to that."""


async def _copy_on_read(node: BlockNode, offset: int, buffer: memoryview, how: int) -> None:
    """Read, and write into this layer what it did not decide itself, in whole clusters."""
    unit = node.driver.cluster_size or 1
    start, end = aligned(node, offset, len(buffer), unit)
    ticket = node.requests.begin_serialising(start, end)  # nobody may change meanwhile what is written back
    try:
        await node.requests.wait(ticket)
        buffer = buffer[: _zero_behind_end(node, offset, buffer)]
        at, end = start, min(end, node.length)
        while at < end:
            flags, run, _, _ = await block_status(node, at, end - at, False)
            run = min(run, COPY_STEP)
            low, high = max(offset, at), min(offset + len(buffer), at + run)
            if not flags & ALLOCATED:
                bounce = memoryview(bytearray(run))
                await _read_within(node, at, bounce)
                await _write_unchanged(node, at, bounce, how)
                if high > low:
                    buffer[low - offset : high - offset] = bounce[low - at : high - at]
            elif high > low:
                await _read_within(node, low, buffer[low - offset : high - offset])
            at += run
    finally:
        node.requests.end(ticket)


async def _write_unchanged(node: BlockNode, offset: int, data: memoryview, how: int) -> None:
    """Store what this range reads as anyway. It is entered already, as serialising."""
    if node.debugger is not None:
        await node.debugger.event("cor_write")
    if not how & REQ_ZEROES_AS_DATA and is_zero(data):
        await zero_within(node, offset, len(data), 0)
    else:
        await write_within(node, offset, data, REQ_UNCHANGED)
