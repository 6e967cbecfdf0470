"""What every request goes through first: bounds, errors, and the range it really touches."""

import errno
import os

from aioblock.core.node import BlockNode

__all__ = ["MAX_LENGTH", "aligned", "check_range", "check_writable", "refresh_length", "request_error"]

MAX_LENGTH = (1 << 63) - 1
"""Offsets and lengths are signed 64-bit numbers in every format and protocol."""


def request_error(code: int, node: BlockNode, message: str | None = None) -> OSError:
    """An OSError of a request on a node; it names the image."""
    return OSError(code, message or os.strerror(code), node.filename or node.name)


def check_range(node: BlockNode, offset: int, nbytes: int) -> None:
    """Raises: OSError EIO where a range is negative or past what a file can hold."""
    if offset < 0 or nbytes < 0 or offset + nbytes > MAX_LENGTH:
        raise request_error(errno.EIO, node)


def check_writable(node: BlockNode, offset: int, nbytes: int) -> None:
    """Raises: OSError EACCES on a read-only node, EIO past the end of one that does not grow."""
    check_range(node, offset, nbytes)
    if node.read_only:
        raise request_error(errno.EACCES, node, "The image is read-only")
    if offset + nbytes > node.length and not node.can_grow:
        raise request_error(errno.EIO, node)


def aligned(node: BlockNode, offset: int, nbytes: int, unit: int = 1) -> tuple[int, int]:
    """`offset` and end of the range, rounded outwards to the request alignment and to `unit`: one divides the other."""
    mask = node.align_mask
    if unit > mask + 1:
        end = offset + nbytes
        return offset - offset % unit, end + -end % unit
    return offset & ~mask, (offset + nbytes + mask) & ~mask


async def refresh_length(node: BlockNode) -> int:
    """The length of a node, asked again where it may change by itself."""
    if node.variable_length:
        node.length = await node.driver.getlength()
    return node.length
