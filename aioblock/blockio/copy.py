"""Copy: let the storage copy a range from one graph to another, without the bytes passing through this process.

    copy_range(source)                  -> what lies below, down to the protocol that holds the bytes
        write_stored(target, StoredData) -> what lies below, down to the protocol that takes them

There is no fall-back here: NotSupported says that somebody on the way cannot, and whoever asked reads and writes.
"""

from aioblock.base.errors import NotSupported
from aioblock.base.flags import REQ_FUA
from aioblock.blockio.flush import flush
from aioblock.blockio.request import check_range, check_writable
from aioblock.core.dirty_bitmap import mark
from aioblock.core.io import BlockIO, StoredData
from aioblock.core.node import BlockNode

__all__ = ["copy_range", "write_stored"]


async def copy_range(
    source: BlockNode, offset: int, nbytes: int, target: BlockIO, target_offset: int, flags: int = 0
) -> None:
    """Copy a range of `source` into `target`, which has no node in common with it.

    Failed: the range of `target` holds old data, new data, or some of each. Not to be cancelled, as a write.
    Raises: NotSupported, also half way; OSError.
    """
    check_range(source, offset, nbytes)
    if not nbytes:
        return
    requests = source.requests
    ticket = requests.begin(offset, offset + nbytes)
    try:
        if requests.serialising:
            await requests.wait(ticket)
        if offset + nbytes > source.length or (offset | nbytes) & source.align_mask:
            raise NotSupported("Only whole blocks inside an image are copied by its storage")
        if source.is_protocol:
            await target.pwrite_stored(target_offset, StoredData(source.driver, offset, nbytes), flags)
        else:
            await source.driver.copy_range_from(offset, nbytes, target, target_offset, flags)
    finally:
        requests.end(ticket)


async def write_stored(node: BlockNode, offset: int, data: StoredData, flags: int = 0) -> None:
    """Write at `offset` what lies in the storage of another graph. REQ_FUA: it is stable then.

    Failed, cancelled, raises: as `copy_range`; EACCES on a read-only node, EIO past the end.
    """
    nbytes = len(data)
    check_writable(node, offset, nbytes)
    if node.detect_zeroes != "off":
        raise NotSupported("Who looks for zeroes has to read")
    if (offset | nbytes) & node.align_mask:
        raise NotSupported("Only whole blocks are copied by the storage")
    requests = node.requests
    ticket = requests.begin(offset, offset + nbytes)
    try:
        if requests.serialising:
            await requests.wait(ticket)
            check_writable(node, offset, nbytes)  # what it waited for may have cut the node
        if node.bitmaps:
            mark(node.bitmaps.values(), offset, nbytes, grows=node.can_grow)
        step = node.max_transfer or nbytes
        try:
            for at in range(0, nbytes, step):
                await node.driver.copy_range_to(offset + at, data[at : at + step])
        finally:
            node.flush_state.written += 1
        if offset + nbytes > node.length and node.can_grow:
            node.length = offset + nbytes
        if flags & REQ_FUA:
            await flush(node)
    finally:
        requests.end(ticket)
