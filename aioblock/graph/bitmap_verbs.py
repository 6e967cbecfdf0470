"""BitmapVerbs: the dirty bitmaps of a backend's top node.

A bitmap is marked by every write, write-zeroes, discard and change of length that goes through its node while it is
enabled. What is changed here is changed in memory; persistent bitmaps go to the image when that is closed, or becomes
read-only. Until then the image says of each that it is in use, so that one which was not stored is never trusted.

Each verb that changes something drains first, and goes on to its end where its caller is cancelled.
"""

import asyncio
import errno
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from aioblock.base.errors import BitmapError, NotSupported
from aioblock.blockio.request import request_error
from aioblock.core.dirty_bitmap import DirtyBitmap, default_granularity
from aioblock.graph.image_verbs import ImageVerbs

if TYPE_CHECKING:
    from aioblock.core.node import BlockNode

__all__ = ["BitmapVerbs"]


class BitmapVerbs(ImageVerbs):
    """The part of `BlockBackend` that concerns dirty bitmaps."""

    @property
    def stores_bitmaps(self) -> bool:
        """Whether the image can keep persistent bitmaps."""
        return self.node.driver.stores_bitmaps()

    def bitmaps(self) -> Mapping[str, DirtyBitmap]:
        """The dirty bitmaps of the top node, by name, in the order of the image. No I/O.

        Of an image that is open read-only the content is not in memory yet: see `bitmap`.
        """
        return dict(self.node.bitmaps)

    async def bitmap(self, name: str) -> DirtyBitmap:
        """A dirty bitmap with its content. Raises: BitmapError (none of that name, or inconsistent), OSError."""
        self._check_open()
        found = _find(self.node, name)
        found.require()
        if not found.loaded:
            await self._alone(lambda: _load(self.node, found))
            found.require()
        return found

    async def bitmap_add(
        self, name: str, granularity: int | None = None, persistent: bool = True, disabled: bool = False
    ) -> DirtyBitmap:
        """Add a clean bitmap. `granularity` in bytes, a power of two from 512 to 2 GiB; None: the cluster size, within
        4 KiB and 64 KiB. `disabled`: writes do not mark it until it is enabled.

        Raises: BitmapError; OSError, NotSupported where it cannot be `persistent`.
        """
        return await self._alone(lambda: self._add(name, granularity, persistent, disabled))

    async def _add(self, name: str, granularity: int | None, persistent: bool, disabled: bool) -> DirtyBitmap:
        node = self.node
        if not name:
            raise BitmapError("Bitmap name cannot be empty", name=name)
        unit = default_granularity(node.driver.cluster_size) if granularity is None else granularity
        bitmap = DirtyBitmap(name, unit, node.length, enabled=not disabled, persistent=persistent)
        if name in node.bitmaps:
            raise BitmapError(f"Bitmap already exists: {name}", name=name)
        if persistent:
            if node.driver.bitmaps is None:
                raise NotSupported(f"Can't store persistent bitmaps to {node.name}: Operation not supported")
            _check_writable(node)
            try:
                node.driver.check_new_bitmap(bitmap)
            except BitmapError as error:
                error.message = f"Can't make bitmap '{name}' persistent in '{node.name}': {error.message}"
                raise
        node.bitmaps[name] = bitmap
        return bitmap

    async def bitmap_remove(self, name: str) -> None:
        """Remove a bitmap, also an inconsistent one; from the image too, on stable storage when done.

        Failed: it may be gone or not. Raises: BitmapError, OSError.
        """
        await self._alone(lambda: self._remove(name))

    async def _remove(self, name: str) -> None:
        bitmap = self._changeable(name, removing=True)
        if bitmap.persistent:
            await self.node.driver.remove_bitmap(bitmap)
        self.node.bitmaps.pop(name, None)

    async def bitmap_clear(self, name: str) -> None:
        """Take all marks from a bitmap. Raises: BitmapError, OSError."""

        async def clear() -> None:
            self._changeable(name).clear()

        await self._alone(clear)

    async def bitmap_enable(self, name: str) -> None:
        """From now on writes mark it. Raises: BitmapError, OSError."""
        await self._alone(lambda: self._switch(name, True))

    async def bitmap_disable(self, name: str) -> None:
        """From now on it stays as it is. Raises: BitmapError, OSError."""
        await self._alone(lambda: self._switch(name, False))

    async def _switch(self, name: str, enabled: bool) -> None:
        self._changeable(name).enabled = enabled

    async def bitmap_merge(self, target: str, source: str, source_disk: "BitmapVerbs | None" = None) -> None:
        """Mark in `target` what is marked in `source`, which may be a bitmap of another open image of the same length.

        Granularities may differ. Raises: BitmapError, OSError.
        """
        theirs = None
        if source_disk is not None and source_disk.node is not self.node:
            theirs = await source_disk.bitmap(source)
        await self._alone(lambda: self._merge(target, source, theirs))

    async def _merge(self, target: str, source: str, theirs: DirtyBitmap | None) -> None:
        mine = self._changeable(target)
        if theirs is None:
            theirs = _find(self.node, source)
            await _load(self.node, theirs)
            theirs.require()
        await _in_turns(mine.merge_in_steps(theirs))

    # -- which bitmap ------------------------------------------------------------------------------------------------

    def _changeable(self, name: str, *, removing: bool = False) -> DirtyBitmap:
        bitmap = _find(self.node, name)
        bitmap.require(removing=removing)
        if bitmap.persistent:
            _check_writable(self.node)
        return bitmap


def _find(node: "BlockNode", name: str) -> DirtyBitmap:
    try:
        return node.bitmaps[name]
    except KeyError:
        raise BitmapError(f"Dirty bitmap '{name}' not found", name=name) from None


def _check_writable(node: "BlockNode") -> None:
    if node.read_only:
        raise request_error(errno.EACCES, node, "The image is read-only")


async def _load(node: "BlockNode", bitmap: DirtyBitmap) -> None:
    """Fetch the content of a bitmap, unless it is there: another one may have been quicker. Raises: OSError."""
    if not bitmap.loaded:
        await node.driver.load_bitmap(bitmap)


async def _in_turns(steps: Iterator[None]) -> None:
    for _ in steps:
        await asyncio.sleep(0)
