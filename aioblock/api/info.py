"""Info: what an image says about itself, and the files of its chain about themselves."""

import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Unpack

from aioblock.api.opening import Image, Opening, opened
from aioblock.base.errors import InvalidImage
from aioblock.core.images import Role, SnapshotInfo
from aioblock.graph.backend import BlockBackend
from aioblock.graph.names import beside, has_protocol
from aioblock.graph.settings import MAX_DEPTH
from aioblock.graph.trust import TRUST_DIRECTORY, TrustPolicy, trusted

__all__ = ["BitmapInfo", "ImageInfo", "bitmaps_of", "info", "info_chain"]

_SECTOR: Final = 512


class BitmapInfo(NamedTuple):
    """One dirty bitmap of an image."""

    name: str
    granularity: int
    """How many bytes of the disk one of its marks stands for."""
    enabled: bool
    """Writes mark it."""
    persistent: bool
    """The image keeps it when it is closed."""
    inconsistent: bool
    """It was not stored when the image was used last: what it holds cannot be trusted, and it can only be removed."""


class ImageInfo(NamedTuple):
    """What an image says about itself. Sizes in bytes."""

    filename: str
    """The name that it was opened by, or `json:{...}` where that was more than a name."""
    format: str
    virtual_size: int
    """The length of its disk."""
    actual_size: int | None
    """How much storage its file takes; None: nobody knows."""
    cluster_size: int | None
    """The unit of allocation; None where there is none."""
    dirty: bool | None
    """It was not closed properly; None where nothing could tell (a protocol)."""
    encrypted: bool
    compressed: bool
    backing_filename: str | None
    """The backing file as the image names it; None: it has none."""
    full_backing_filename: str | None
    """The same from the working directory; None also where the image is no file that it could lie beside."""
    backing_format: str | None
    """The format that the image claims for it; None: it does not say."""
    snapshots: tuple[SnapshotInfo, ...]
    """The internal snapshots, oldest entry first."""
    bitmaps: tuple[BitmapInfo, ...]
    specific: Mapping[str, Any] | None
    """What the format has beyond that, as JSON values; None: nothing. Keys as in QEMU's `format-specific` `data`."""
    details: tuple[str, ...]
    """The same for people, a line each."""

    def as_dict(self) -> dict[str, Any]:
        """The same in the keys, and in their order, of `qemu-img info --output=json`; lengths in whole sectors."""
        facts: dict[str, Any] = {
            "backing-filename-format": self.backing_format,
            "snapshots": [_snapshot(snapshot) for snapshot in self.snapshots] or None,
            "virtual-size": -(-self.virtual_size // _SECTOR) * _SECTOR,
            "filename": self.filename,
            "cluster-size": self.cluster_size,
            "format": self.format,
            "actual-size": self.actual_size,
            "format-specific": {"type": self.format, "data": self.specific} if self.specific is not None else None,
            "full-backing-filename": self.full_backing_filename,
            "backing-filename": self.backing_filename,
            "encrypted": self.encrypted or None,
            "compressed": self.compressed or None,
            "dirty-flag": self.dirty,
        }
        return {key: value for key, value in facts.items() if value is not None}


def _snapshot(snapshot: SnapshotInfo) -> dict[str, Any]:
    return ({} if snapshot.icount is None else {"icount": snapshot.icount}) | {
        "vm-clock-nsec": snapshot.vm_clock_nsec % 10**9,
        "name": snapshot.name,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec // 10**9,
        "id": snapshot.id,
        "vm-state-size": snapshot.vm_state_size,
    }


async def info(image: Image, *, format: str | None = None, **how: Unpack[Opening]) -> ImageInfo:
    """What an image says about itself. Its backing files are not opened, and an encrypted one needs no secret.

    `format` and `how`: as in `open`. Of an open image: as it is now. Cancelled or failed: nothing is left behind.
    Raises: as `open`.
    """
    async with opened(image, format=format, how=how, backing=False, metadata_only=True) as disk:
        return await _info(disk)


async def info_chain(image: Image, *, format: str | None = None, **how: Unpack[Opening]) -> list[ImageInfo]:
    """The same of an image and of all backing files below it, the top first.

    Each file is opened for itself, one after the other, if the trust policy lets it; `max_depth` of them at the most.
    `format`, `how`: as in `open`. Cancelled or failed: nothing is left behind.
    Raises: as `open`; InvalidImage where the chain is a loop, or longer; UntrustedReference.
    """
    found: list[ImageInfo] = []
    policy, deepest = how.get("trust", TRUST_DIRECTORY), how.get("max_depth", MAX_DEPTH)
    below: dict[str, Any] | None = None
    first: Opening = {} if isinstance(image, BlockBackend) else how
    async with opened(image, format=format, how=first, backing=False, metadata_only=True) as disk:
        found.append(await _info(disk))
        below = _below(disk, policy)
    # What a file lower down says about itself is guessed as little as it would be in a chain: see `open`.
    how = {"probe": False, **how}
    how.pop("snapshot", None)
    while below is not None:
        if len(found) >= deepest:
            raise InvalidImage(
                f"The chain of backing files is longer than {deepest} layers", filename=found[0].filename
            )
        async with opened(below, how=how, backing=False, metadata_only=True) as disk:
            if any(disk.name == above.filename for above in found):
                raise InvalidImage(f"Backing file '{disk.name}' creates an infinite loop.", filename=found[-1].filename)
            found.append(await _info(disk))
            below = _below(disk, policy)
    return found


def bitmaps_of(disk: BlockBackend) -> tuple[BitmapInfo, ...]:
    """The dirty bitmaps of an open image."""
    return tuple(
        BitmapInfo(bitmap.name, bitmap.granularity, bitmap.enabled, bitmap.persistent, bitmap.inconsistent)
        for bitmap in disk.bitmaps().values()
    )


def _below(disk: BlockBackend, policy: TrustPolicy) -> dict[str, Any] | None:
    """The options that open the backing file of an image; None: it has none, or none that could be found."""
    inner = disk.info().backing
    if inner is None or _full_name(disk, inner.filename) is None:
        return None
    return trusted(_file_name(disk), Role.BACKING, inner, policy)


def _full_name(disk: BlockBackend, inner: str) -> str | None:
    """The name of a backing file, from the directory of the file that the image lies in."""
    file = _file_name(disk)
    return beside(file, inner) if file or has_protocol(inner) or os.path.isabs(inner) else None


def _file_name(disk: BlockBackend) -> str:
    """The name of the file that the image lies in; "" where it is no single file."""
    node = disk.node
    while not node.exact_filename and node.file is not None:
        node = node.file.node
    return node.exact_filename


async def _info(disk: BlockBackend) -> ImageInfo:
    known, driver = disk.info(), disk.node.driver
    inner = known.backing
    return ImageInfo(
        filename=disk.name,
        format=driver.name,
        virtual_size=disk.length,
        actual_size=await disk.allocated_size(),
        cluster_size=known.cluster_size,
        dirty=known.dirty,
        encrypted=known.encrypted,
        compressed=known.compressed,
        backing_filename=inner.filename if inner else None,
        full_backing_filename=_full_name(disk, inner.filename) if inner else None,
        backing_format=inner.format if inner else None,
        snapshots=tuple(disk.snapshots()),
        bitmaps=bitmaps_of(disk),
        specific=known.specific,
        details=known.lines,
    )
