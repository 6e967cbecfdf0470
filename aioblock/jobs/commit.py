"""Commit: write what the upper layers of a chain hold into a layer below, and empty the top.

    the base grows, where it is shorter than the disk; the data, as by `jobs.convert` => the base is flushed
                                                                                       => the top layer is emptied

So at every moment the disk above reads as before: what a cut or an error leaves in the base is what the layers above
hide, or hold as well.
"""

from collections.abc import Callable

from aioblock.base.errors import JobError
from aioblock.core.node import BlockNode
from aioblock.graph.backend import BlockBackend
from aioblock.graph.layers import writable_layer
from aioblock.jobs.convert import BUFFER, convert

__all__ = ["commit"]


async def commit(
    disk: BlockBackend,
    base: BlockNode | None = None,
    *,
    keep: bool = False,
    workers: int = 8,
    bytes_per_second: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write what the layers above `base` hold into it. None: the backing file of the top layer.

    `base` is a layer of the chain that `disk` was opened with; it is made writable for that time, and longer where the
    disk is. Where it is the backing file of the top, the top is emptied then, unless `keep`. Where it lies further
    down, the layers between are not valid by themselves any more, and the top is kept.

    What the layers say is zero, or leave open, is not read. `workers`: how many pieces are under way at a time, each
    with a buffer of 2 MiB. `bytes_per_second`: no faster than this; 0: as fast as it goes. `progress(done, total)` is
    told bytes. The disk must not be written meanwhile.

    Cancelled or failed: the disk reads as before; the base holds a part.
    Raises: JobError where there is no such layer; PositionedError; NotSupported where the top cannot be emptied;
    OSError and GraphError where the base cannot be written; OSError (EBUSY) where the disk was written meanwhile, and
    then the top is not emptied.
    """
    below = disk.node.below
    if below is None:
        raise JobError("Image does not have a backing file")
    target = below if base is None else base
    if target not in _chain(below):
        raise JobError(f"'{target.filename}' is not in the backing chain of '{disk.name}'")
    written = disk.node.flush_state.written
    if disk.writable:
        await disk.flush()
    async with writable_layer(target) as layer:
        if layer.length < disk.length:
            await layer.truncate(disk.length)
        await convert(
            [disk],
            layer,
            keep_backing=True,
            base=target,
            sparse=BUFFER,  # a piece that is all zeroes is no data; smaller ones stay where they are
            workers=workers,
            bytes_per_second=bytes_per_second,
            progress=progress,
        )
    if not keep and target is below:
        await disk.make_empty(unchanged_since=written)


def _chain(top: BlockNode) -> list[BlockNode]:
    """A layer, and those below it."""
    found = []
    node: BlockNode | None = top
    while node is not None:
        found.append(node)
        node = node.below
    return found
