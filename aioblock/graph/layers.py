"""Layers: work on a layer of a chain that is open, below its top."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aioblock.base.errors import BlockError
from aioblock.base.flags import PERM_ALL, PERM_CONSISTENT_READ
from aioblock.blockio.child import Child
from aioblock.core.node import BlockNode
from aioblock.graph.backend import BlockBackend
from aioblock.graph.permissions import attach

__all__ = ["writable_layer"]


@asynccontextmanager
async def writable_layer(node: BlockNode) -> AsyncIterator[BlockBackend]:
    """A backend of its own on a layer of an open chain; the layer is writable inside, and as it was afterwards.

    It is the same node that the layers above read, reopened, so they see at once what is written; nothing is opened a
    second time. The caller writes only what leaves the disks above as they are. Left with an error, or cancelled: the
    layer is given back all the same.
    Raises: OSError and GraphError where it cannot be made writable (another program uses it), and then nothing has
    changed; OSError at the end where what was written cannot be flushed.
    """
    root = Child(None, None, node, PERM_CONSISTENT_READ, PERM_ALL)
    await attach(root)
    layer = BlockBackend(root)
    try:
        was_read_only = node.read_only
        if was_read_only:
            await layer.reopen(writable=True)
        try:
            yield layer
        except BaseException:
            if was_read_only:
                try:
                    await layer.reopen(writable=False)
                except (OSError, BlockError):
                    pass  # the error that ends the work is the one to tell
            raise
        if was_read_only:
            await layer.reopen(writable=False)
    finally:
        await layer.close()
