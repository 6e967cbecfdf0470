"""Copying inside the storage: guest data that lies in the file as it is."""

from typing import TYPE_CHECKING

from aioblock.base.errors import NotSupported
from aioblock.drivers.formats.qcow2.entries import COMPRESSED, NORMAL
from aioblock.drivers.formats.qcow2.mapping import HOLES, Run, find_run

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["copy_range_from"]


async def copy_range_from(
    image: "Image", offset: int, nbytes: int, target: "BlockIO", target_offset: int, flags: int
) -> None:
    """Copy what the guest sees from `offset` on to `target`. Raises: NotSupported, also half way; OSError."""
    if not image.data.plain:
        raise NotSupported
    end = offset + nbytes
    while offset < end:
        run = find_run(image, await image.l2.fetch(offset >> image.table_shift), offset, end - offset)
        await _copy_run(image, offset, run, target, target_offset, flags)
        offset += run.nbytes
        target_offset += run.nbytes


async def _copy_run(image: "Image", offset: int, run: Run, target: "BlockIO", target_offset: int, flags: int) -> None:
    nbytes = run.nbytes
    if run.kind == NORMAL:
        # A write may put these guest clusters elsewhere meanwhile; their host clusters must stay as they are.
        first = run.host >> image.cluster_bits
        count = (run.host + nbytes - 1 >> image.cluster_bits) - first + 1
        image.begin_reading(first, count)
        try:
            await image.data_file.copy_range(run.host, nbytes, target, target_offset, flags)
        finally:
            image.end_reading(first, count)
        return
    if run.kind == COMPRESSED:
        raise NotSupported
    below = 0
    if run.kind in HOLES and image.backing is not None:
        below = min(max(image.backing.length - offset, 0), nbytes)
    if below:
        assert image.backing is not None
        await image.backing.copy_range(offset, below, target, target_offset, flags)
    if nbytes > below:
        await target.pwrite_zeroes(target_offset + below, nbytes - below, flags)
