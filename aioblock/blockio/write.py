"""Write: bounds, padding by read-modify-write, splitting, zero detection, flags that a driver does not do itself."""

import errno

from aioblock.base.buffers import is_zero
from aioblock.base.errors import NotSupported
from aioblock.base.flags import REQ_COMPRESSED, REQ_FUA, REQ_MAY_UNMAP, REQ_SERIALISING, REQ_UNCHANGED
from aioblock.blockio.flush import flush
from aioblock.blockio.request import aligned, check_writable, request_error
from aioblock.core.dirty_bitmap import mark
from aioblock.core.io import Done
from aioblock.core.node import BlockNode

__all__ = ["driver_write", "write", "write_soon", "write_within"]


def write_soon(node: BlockNode, offset: int, data: memoryview, done: Done) -> bool:
    """Begin a plain aligned write that the driver takes at once, while nobody is serialising, or return False.

    False: nothing was done, use `write`. True: the request is in flight until it has ended; then `done` is called.
    """
    nbytes = len(data)
    requests = node.requests
    if (
        offset < 0
        or not nbytes
        or offset + nbytes > node.length
        or requests.serialising
        or (offset | nbytes) & node.align_mask
        or (node.max_transfer and nbytes > node.max_transfer)
        or node.read_only
        or node.bitmaps
        or node.detect_zeroes != "off"
    ):
        return False

    def ended(error: Exception | None) -> None:
        node.flush_state.written += 1  # also when it failed: some of it may have been written
        requests.end(ticket)
        done(error)

    if not node.driver.pwritev_soon(offset, data, ended):
        return False
    ticket = requests.begin(offset, offset + nbytes)
    return True


async def write(node: BlockNode, offset: int, data: memoryview, flags: int = 0) -> None:
    """Write all of `data` at `offset`.

    Failed: the range holds old data, new data, or some of each. Not to be cancelled: see `core.eager.run_to_end`.
    Raises: OSError (EACCES read-only, EIO past the end, ENOTSUP for compressed data where there is none).
    """
    nbytes = len(data)
    if node.read_only or offset < 0 or offset + nbytes > node.length:
        check_writable(node, offset, nbytes)
    if not nbytes and not flags & REQ_COMPRESSED:
        return
    if node.detect_zeroes != "off" and not flags & REQ_COMPRESSED and is_zero(data):
        from aioblock.blockio.zeroes import write_zeroes  # it writes with this verb where it cannot do better

        unmap = REQ_MAY_UNMAP if node.detect_zeroes == "unmap" else 0
        await write_zeroes(node, offset, nbytes, flags | unmap)
        return
    requests = node.requests
    if flags & REQ_SERIALISING or (offset | nbytes) & node.align_mask:
        ticket = requests.begin_serialising(*aligned(node, offset, nbytes))
    else:
        ticket = requests.begin(offset, offset + nbytes)
    try:
        if requests.serialising:
            await requests.wait(ticket)
            check_writable(node, offset, nbytes)  # what it waited for may have cut the node
        if node.bitmaps:  # before it is begun: what fails may be half written, and is dirty too
            mark(node.bitmaps.values(), offset, nbytes, grows=node.can_grow)
        if flags & REQ_COMPRESSED:
            try:
                await node.driver.pwritev_compressed(offset, data)
            finally:
                node.flush_state.written += 1
            if flags & REQ_FUA:
                await flush(node)
        else:
            await write_within(node, offset, data, flags)
    finally:
        requests.end(ticket)


async def write_within(node: BlockNode, offset: int, data: memoryview, flags: int) -> None:
    """Write a range that is entered already: the padding, the driver, and FUA where the driver has none."""
    mask = node.align_mask
    if (offset | len(data)) & mask:
        offset, data = await _padded(node, offset, data)
    await driver_write(node, offset, data, flags)
    if flags & REQ_FUA and not node.driver.supported_write_flags & REQ_FUA:
        await flush(node)


async def driver_write(node: BlockNode, offset: int, data: memoryview, flags: int) -> None:
    """Hand an aligned write to the driver, in pieces as long as it takes; then count it and what it made grow."""
    driver = node.driver
    passed = flags & driver.supported_write_flags & (REQ_FUA | REQ_UNCHANGED)
    nbytes = len(data)
    end = offset + nbytes
    longest = node.max_transfer
    try:
        if not longest or nbytes <= longest:
            await driver.pwritev(offset, data, passed)
        else:
            for at in range(0, nbytes, longest):
                await driver.pwritev(offset + at, data[at : at + longest], passed)
    finally:
        node.flush_state.written += 1  # also when it failed: some of it may have been written
    if end > node.length and node.can_grow:  # where it cannot, the padding of the last block reaches behind the end
        node.length = end


async def _padded(node: BlockNode, offset: int, data: memoryview) -> tuple[int, memoryview]:
    """`data` with what the storage holds before and behind it, out to the alignment. The range is serialised."""
    start, end = aligned(node, offset, len(data))
    unit = node.align_mask + 1
    whole = memoryview(bytearray(end - start))
    if start != offset or end - start == unit:
        await _old(node, start, whole[:unit], "head" if start != offset else "tail")
    if end != offset + len(data) and end - start > unit:
        await _old(node, end - unit, whole[-unit:], "tail")
    whole[offset - start : offset - start + len(data)] = data
    return start, whole


async def _old(node: BlockNode, offset: int, block: memoryview, which: str) -> None:
    if node.debugger is not None:
        await node.debugger.event(f"pwritev_rmw_{which}")
    if offset < node.length:
        await node.driver.preadv(offset, block, 0)
    if node.debugger is not None:
        await node.debugger.event(f"pwritev_rmw_after_{which}")


def require_compressed(node: BlockNode, offset: int, nbytes: int) -> None:
    """Raises: OSError EINVAL where a compressed write is not made of whole clusters; NotSupported without clusters."""
    cluster = node.driver.cluster_size
    if not cluster:
        raise NotSupported
    if nbytes and (offset % cluster or (nbytes % cluster and offset + nbytes != node.length)):
        raise request_error(errno.EINVAL, node)
