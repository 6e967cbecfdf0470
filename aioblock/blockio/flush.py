"""Flush, with generations: concurrent flushes merge, one with nothing new to do is free, a failure stays."""

import asyncio
import errno

from aioblock.blockio.request import request_error
from aioblock.core.images import Role
from aioblock.core.node import BlockNode

__all__ = ["flush"]


async def flush(node: BlockNode) -> None:
    """Put every write that was completed before this call on stable storage, here and in the children.

    Cancelled: a flush in progress may have happened or not; others that wait for it do not suffer.
    Raises: OSError; after one failure every later flush of the node fails too, until it is reopened.
    """
    state = node.flush_state
    ticket = node.requests.begin()
    try:
        wanted = state.written
        while state.active is not None:  # it may have begun before our writes were done: then another must follow
            await asyncio.shield(state.active)
        if state.error is not None:
            raise request_error(state.error.errno or errno.EIO, node, state.error.strerror)
        if state.flushed >= wanted:
            return
        await _flush_now(node)
    finally:
        node.requests.end(ticket)


async def _flush_now(node: BlockNode) -> None:
    state = node.flush_state
    covered = state.written
    done = state.active = asyncio.get_running_loop().create_future()
    below = node.file.node.debugger if node.file is not None else None
    try:
        if below is not None:
            await below.event("flush_to_os")
        await node.driver.flush()
        if below is not None:
            await below.event("flush_to_disk")
        for child in node.children.values():
            if child.role not in (Role.BACKING, Role.CHILDREN) and not child.node.read_only:
                await flush(child.node)
    except OSError as error:
        state.error = state.error or error
        raise
    else:
        state.flushed = max(state.flushed, covered)
    finally:
        state.active = None
        done.set_result(None)
