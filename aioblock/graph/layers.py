"""Layers: work on a layer of a chain that is open, below its top."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aioblock.base.errors import BlockError
from aioblock.base.flags import PERM_ALL, PERM_CONSISTENT_READ
from aioblock.blockio.child import Child
from aioblock.core.node import BlockNode
from aioblock.graph.backend import BlockBackend
from aioblock.graph.names import beside, strip_protocol
from aioblock.graph.permissions import attach

__all__ = ["find_layer", "writable_layer"]


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


def find_layer(disk: BlockBackend, name: str) -> BlockNode | None:
    """The backing file of that name in the chain that `disk` was opened with; None: there is none.

    A name is that which stands in the layer above, or the path of the file; a relative path counts from the directory
    of the layer above, as those inside images do.
    """
    node = disk.node
    while (below := node.below) is not None:
        inner = node.unfiltered.backing_name
        if inner is not None and _means(node, inner.filename, name, below):
            return below
        node = below
    return None


def _means(overlay: BlockNode, inner: str, wanted: str, below: BlockNode) -> bool:
    if wanted == inner or (wanted == below.filename and wanted.startswith("json:")):
        return True
    image, own = overlay.unfiltered.exact_filename, below.exact_filename
    if not own or not (image or os.path.isabs(wanted)):
        return False
    return os.path.realpath(strip_protocol(beside(image, wanted))) == os.path.realpath(strip_protocol(own))
