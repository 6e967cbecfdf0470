"""Truncate: set the length of a node."""

import errno

from aioblock.blockio.request import check_range, request_error
from aioblock.core.images import Prealloc
from aioblock.core.node import BlockNode

__all__ = ["truncate"]


async def truncate(
    node: BlockNode, length: int, *, exact: bool = True, prealloc: Prealloc = Prealloc.OFF, flags: int = 0
) -> None:
    """Set the length of a node in bytes. Requests on the part that comes or goes wait; see `shrinks_alone` too.

    Not to be cancelled. Failed: the length is the old one, or what the driver could reach.
    Raises: OSError (EACCES read-only, EINVAL, ENOTSUP); BitmapError where a dirty bitmap could not follow.
    """
    check_range(node, 0, length)
    if node.read_only:
        raise request_error(errno.EACCES, node, "Image is read-only")
    old = node.length
    requests = node.requests
    alone = length < old and node.driver.shrinks_alone
    ticket = requests.begin_serialising(0 if alone else min(old, length), 1 << 63)
    try:
        await requests.wait(ticket)
        for bitmap in node.bitmaps.values():
            bitmap.require()
        await node.driver.truncate(length, exact=exact, prealloc=prealloc, flags=flags)
    finally:
        node.flush_state.written += 1
        try:
            node.length = await node.driver.getlength()
            for bitmap in node.bitmaps.values():
                bitmap.truncate(node.length)
        finally:
            requests.end(ticket)
