"""Chains: write an overlay into what lies below it, or give it another backing file."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Unpack

from aioblock.api.opening import Image, Opening, opened
from aioblock.base.errors import JobError, OptionError
from aioblock.core.node import BlockNode
from aioblock.graph.backend import BlockBackend
from aioblock.graph.layers import find_layer
from aioblock.graph.names import beside
from aioblock.jobs import commit as job_of_commit
from aioblock.jobs import rebase as job_of_rebase

__all__ = ["commit", "layer_of", "rebase"]


async def commit(
    image: Image,
    base: str | BlockNode | None = None,
    *,
    keep: bool = False,
    workers: int = 8,
    bytes_per_second: int = 0,
    progress: Callable[[int, int], None] | None = None,
    format: str | None = None,
    **how: Unpack[Opening],
) -> None:
    """Write what the layers above `base` hold into it. None: the backing file of the top layer.

    `base`: a layer of the chain, by the name that the image above it has for it, or by its path; it is made writable
    for that time, and longer where the disk is. Where it is the backing file of the top, the top is emptied then,
    unless `keep`. Where it lies further down, the layers between are not valid by themselves any more, and the top is
    kept.

    What the layers say is zero, or leave open, is not read. `workers`: how many pieces are under way at a time, each
    with a buffer of 2 MiB. `bytes_per_second`: no faster than this; 0: as fast as it goes. `progress(done, total)` is
    told bytes. `format`, `how`: as in `open`. The disk must not be written meanwhile.

    Cancelled or failed: the disk reads as before; the base holds a part.
    Raises: as `open`; JobError where there is no such layer; PositionedError; NotSupported where the top cannot be
    emptied; OSError and GraphError where the base cannot be written; OSError (EBUSY) where the disk was written
    meanwhile, and then the top is not emptied.
    """
    async with opened(image, format=format, how=how, writable=True) as disk:
        await job_of_commit.commit(
            disk,
            layer_of(disk, base) if base is not None else None,
            keep=keep,
            workers=workers,
            bytes_per_second=bytes_per_second,
            progress=progress,
        )


def layer_of(disk: BlockBackend, base: str | BlockNode) -> BlockNode:
    """The layer that is meant. Raises: JobError where there is none."""
    if isinstance(base, BlockNode):
        return base
    layer = find_layer(disk, base)
    if layer is None:
        raise JobError(f"Did not find '{base}' in the backing chain of '{disk.name}'")
    return layer


async def rebase(
    image: Image,
    backing: str | None,
    *,
    backing_format: str | None = None,
    backing_disk: BlockBackend | None = None,
    unsafe: bool = False,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
    format: str | None = None,
    **how: Unpack[Opening],
) -> None:
    """Give an image another backing file, so that its disk reads as before: what differs is stored in the image.

    `backing`: its name, which is stored as it is, so a relative one counts from the directory of the image; None: none.
    `backing_format` goes with it. `backing_disk`: the same, open, where the name alone is not the way to open it.
    `unsafe`: only the name is written, and no backing file is opened: for one that was moved.

    `workers`: how many pieces are compared at a time, each with two buffers of 1 MiB. `progress(done, total)` is told
    bytes. `format`, `how`: as in `open`; all of `how` but `snapshot` is for the new backing file too.
    The chain of an image that is given open stays open as it is.

    Cancelled or failed: the disk reads as before, with the old backing file, and holds more by itself.
    Raises: as `open`; OptionError where the format is missing, or the name cannot be stored; PositionedError, whose
    `source` is 0 for the old chain and 1 for the new one; NotSupported; OSError.
    """
    if backing_disk is not None and (backing is None or unsafe):
        raise ValueError("backing_disk is what the name of a backing file means, for a rebase that looks at it")
    async with AsyncExitStack() as stack:
        disk = await stack.enter_async_context(opened(image, format=format, how=how, writable=True, backing=not unsafe))
        if backing is not None and backing_format is None and disk.node.driver.supports_backing:
            raise OptionError(f"The format of the new backing file '{backing}' must be given", option="backing_format")
        if unsafe:
            await disk.change_backing_file(backing, backing_format)
            return
        new = backing_disk
        if new is None and backing is not None:
            below: Opening = {**how}
            below.pop("snapshot", None)
            name = beside(disk.node.exact_filename, backing)
            new = await stack.enter_async_context(opened(name, format=backing_format, how=below))
        await job_of_rebase.rebase(disk, new, backing, backing_format, workers=workers, progress=progress)
