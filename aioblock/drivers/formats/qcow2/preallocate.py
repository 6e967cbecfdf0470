"""Preallocation: host clusters for a range in which nothing was written yet."""

from typing import TYPE_CHECKING

from aioblock.core.images import Prealloc
from aioblock.drivers.formats.qcow2.entries import OFLAG_COMPRESSED, OFLAG_COPIED, SUBCLUSTERS
from aioblock.drivers.formats.qcow2.features import CRYPT_NONE
from aioblock.drivers.formats.qcow2.mapping import cluster_entry, set_cluster_entry

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["preallocate"]

STEP = 1 << 20
"""How many zeroes are written at a time."""


async def preallocate(image: "Image", offset: int, end: int, prealloc: Prealloc) -> None:
    """Give every cluster from `offset` up to `end`, that has none, a host cluster; `falloc` and `full` take room too.

    All of the range reads as zeroes before and afterwards; nobody else writes there. Failed: a part of it is done.
    Raises: OSError.
    """
    bits = image.cluster_bits
    # What the backing file shows in the first cluster, if the range begins in the middle of it, must stay visible.
    cluster, stop = offset >> bits if image.backing is None else -(-offset >> bits), -(-end >> bits)
    highest = 0
    while cluster < stop:
        await image.make_room()
        count = await _without_host(image, cluster, stop)
        if not count:
            cluster += 1
            continue
        if image.external:
            await _link(image, cluster, count, cluster, prealloc)
        else:
            host, count = await image.refcounts.allocate(count, "data cluster")
            try:
                await _take_room(image, host << bits, cluster << bits, count << bits, prealloc)
                await _link(image, cluster, count, host, prealloc)
            except BaseException:
                await image.refcounts.give_back(host, count)
                raise
            highest = max(highest, host + count)
        cluster += count
    image.preallocated = None
    if highest << bits > image.file.length:
        await image.file.truncate(highest << bits, exact=False)


async def _without_host(image: "Image", cluster: int, stop: int) -> int:
    """How many clusters of one table, from `cluster` on, have no host cluster."""
    table = await image.l2.own(cluster << image.cluster_bits >> image.table_shift)
    last = min(stop, (cluster | image.l2_mask) + 1)
    for number in range(cluster, last):
        entry, _ = cluster_entry(image, table, number)
        if entry & (image.host_mask | OFLAG_COMPRESSED):
            return number - cluster
    return last - cluster


async def _link(image: "Image", cluster: int, count: int, host: int, prealloc: Prealloc) -> None:
    """Let guest clusters have the host clusters from `host` on. Nothing fails after the first entry is set."""
    table = await image.l2.own(cluster << image.cluster_bits >> image.table_shift)
    bitmaps = [cluster_entry(image, table, number)[1] for number in range(cluster, cluster + count)]
    for number, bitmap in enumerate(bitmaps):
        entry = (host + number << image.cluster_bits) | OFLAG_COPIED
        set_cluster_entry(image, table, cluster + number, entry, _bitmap(image, bitmap, prealloc))


def _bitmap(image: "Image", before: int, prealloc: Prealloc) -> int:
    """Which subclusters are data: all, unless they are zero already, or what the host cluster holds is no zero."""
    full = (1 << image.subclusters) - 1
    if image.version >= 3 and image.header.crypt_method != CRYPT_NONE:
        return full << SUBCLUSTERS  # zeroes in the file are not zeroes when they are decrypted
    if before and prealloc is Prealloc.METADATA:
        return before
    return 0 if image.extended and not before else full


async def _take_room(image: "Image", host: int, guest: int, nbytes: int, prealloc: Prealloc) -> None:
    """Make a part of the file read as zeroes, in the way the preallocation asks for."""
    file = image.file
    if image.version < 3 and image.header.crypt_method != CRYPT_NONE:
        await image.data.pwrite_zeroes(host, guest, nbytes)
    elif prealloc is Prealloc.FULL:
        zeroes = memoryview(bytes(min(STEP, nbytes)))
        for at in range(0, nbytes, STEP):
            await file.pwrite(host + at, zeroes[: min(STEP, nbytes - at)])
    elif host >= file.length:
        await file.truncate(host + nbytes, prealloc=Prealloc.OFF if prealloc is Prealloc.METADATA else prealloc)
    else:
        await file.pwrite_zeroes(host, nbytes)
