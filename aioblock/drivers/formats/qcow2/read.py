"""Read: run by run, from the file, a compressed cluster, the backing file, or as zeroes."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aioblock.core.eager import Finished, settle, start
from aioblock.drivers.formats.qcow2.compressed import read_compressed
from aioblock.drivers.formats.qcow2.entries import COMPRESSED, NORMAL
from aioblock.drivers.formats.qcow2.mapping import HOLES, Run, find_run

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.tables import CachedTable

__all__ = ["read"]

WINDOW: Final = 8
"""How many runs of one request are read at a time."""
DECOMPRESSED_BYTES: Final = 1 << 20
"""How much is decompressed by one thread: few enough to keep all processors busy with a long request."""


async def read(image: "Image", offset: int, buffer: memoryview) -> None:
    """Fill `buffer` with what the guest sees from `offset` on.

    Cancelled: nothing writes into `buffer` any more. Raises: OSError.
    """
    nbytes = len(buffer)
    table = image.l2.tables.get(offset >> image.table_shift) or await image.l2.fetch(offset >> image.table_shift)
    run, packed = _find(image, table, offset, nbytes)
    if run.nbytes == nbytes:
        await _read_run(image, offset, run, packed, buffer)
        return
    tasks: list[asyncio.Task[Any]] = []
    try:
        done = 0
        while True:
            begun = start(_read_run(image, offset + done, run, packed, buffer[done : done + run.nbytes]))
            if isinstance(begun, Finished):
                begun.result()
            else:
                tasks.append(begun)
                if len(tasks) == WINDOW:
                    await tasks.pop(0)
            done += run.nbytes
            if done == nbytes:
                break
            table = await image.l2.fetch(offset + done >> image.table_shift)
            run, packed = _find(image, table, offset + done, nbytes - done)
        while tasks:
            await tasks[0]
            del tasks[0]
    finally:
        if tasks:
            await settle(tasks)
            for task in tasks:
                _ = task.cancelled() or task.exception()  # another error is raised already


def _find(image: "Image", table: "CachedTable | None", offset: int, nbytes: int) -> tuple[Run, list[int]]:
    """As `find_run`; of compressed clusters several are one run here, and their entries come with it."""
    run = find_run(image, table, offset, nbytes)
    if run.kind != COMPRESSED:
        return run, []
    entries, found = [run.entry], run.nbytes
    limit = min(DECOMPRESSED_BYTES, nbytes, -offset % (1 << image.table_shift) or 1 << image.table_shift)
    while found < limit:
        more = find_run(image, table, offset + found, limit - found)
        if more.kind != COMPRESSED:
            break
        entries.append(more.entry)
        found += more.nbytes
    return run._replace(nbytes=found), entries


async def _read_run(image: "Image", offset: int, run: Run, packed: list[int], buffer: memoryview) -> None:
    kind = run.kind
    if kind == NORMAL:
        if run.copied or image.read_only:
            await image.data.readinto(run.host, offset, buffer)
            return
        # A write may put these guest clusters elsewhere while we read; their host clusters must stay as they are.
        first = run.host >> image.cluster_bits
        count = (run.host + run.nbytes - 1 >> image.cluster_bits) - first + 1
        image.begin_reading(first, count)
        try:
            await image.data.readinto(run.host, offset, buffer)
        finally:
            image.end_reading(first, count)
    elif kind == COMPRESSED:
        await read_compressed(image, packed, offset & image.cluster_mask, buffer)
    elif kind in HOLES and image.backing is not None and offset < image.backing.length:
        if image.event is not None:
            await image.event("read_backing_aio")
        await image.backing.readinto(offset, buffer)
    else:
        buffer[:] = bytes(len(buffer))
