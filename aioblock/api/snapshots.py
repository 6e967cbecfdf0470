"""Internal snapshots of an image. Of one that stays open, its own verbs of the same names do the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Unpack

from aioblock.api.opening import Image, Opening, opened
from aioblock.base.errors import with_context
from aioblock.core.images import SnapshotInfo

__all__ = ["snapshot_apply", "snapshot_create", "snapshot_delete", "snapshots"]


async def snapshots(image: Image, *, format: str | None = None, **how: Unpack[Opening]) -> tuple[SnapshotInfo, ...]:
    """The internal snapshots of an image, in the order of its table. `format`, `how`, raises: as `open`.

    Cancelled or failed: nothing is left behind.
    """
    async with opened(image, format=format, how=how, backing=False, metadata_only=True) as disk:
        return tuple(disk.snapshots())


async def snapshot_create(
    image: Image, name: str, *, format: str | None = None, **how: Unpack[Opening]
) -> SnapshotInfo:
    """Keep the disk as it is now under a name; its id is the next number. On stable storage when done.

    `format`, `how`: as in `open`. Cancelled: there is no such snapshot, or all of it. Failed: there is none.
    Raises: as `open`; NotSupported; OSError.
    """
    async with opened(image, format=format, how=how, writable=True) as disk:
        return await disk.snapshot_create(name)


async def snapshot_apply(image: Image, id_or_name: str, *, format: str | None = None, **how: Unpack[Opening]) -> None:
    """Make the disk what a snapshot holds, its size too. On stable storage when done.

    `format`, `how`: as in `open`. Cancelled or failed: the disk is as it was, or as the snapshot.
    Raises: as `open`; NotSupported; OSError (ENOENT: there is no such snapshot).
    """
    async with opened(image, format=format, how=how, writable=True, resize=True) as disk:
        with _named(id_or_name, disk.name):
            await disk.snapshot_apply(id_or_name)


async def snapshot_delete(image: Image, id_or_name: str, *, format: str | None = None, **how: Unpack[Opening]) -> None:
    """Forget a snapshot, and free what it alone used. On stable storage when done.

    `format`, `how`: as in `open`. Cancelled or failed: it may be gone all the same.
    Raises: as `open`; NotSupported; OSError (ENOENT: there is no such snapshot).
    """
    async with opened(image, format=format, how=how, writable=True) as disk:
        with _named(id_or_name, disk.name):
            await disk.snapshot_delete(id_or_name)


@contextmanager
def _named(snapshot: str, image: str) -> Iterator[None]:
    """Let a failure say what it is about."""
    try:
        yield
    except OSError as error:
        with_context(error, f"Snapshot '{snapshot}' of '{image}': ")
        raise
