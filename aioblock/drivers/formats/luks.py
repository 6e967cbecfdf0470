"""`luks`: a disk encrypted as a LUKS1 volume, behind its header and key material in one file."""

import errno
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.core.driver import BlockDriver
from aioblock.core.images import SIZE_OPTION, CreateOption, DriverInfo, Measurement, Prealloc, Role, detail_lines
from aioblock.core.limits import BlockLimits
from aioblock.core.objects import NamedObject
from aioblock.luks import options as luks_options

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.dirty_bitmap import DirtyBitmap
    from aioblock.core.io import BlockIO
    from aioblock.luks.sectors import EncryptedSectors
    from aioblock.luks.volume import Volume

__all__ = ["LuksDriver"]

_SECTOR: Final = 512
_MAGIC: Final = b"LUKS\xba\xbe\0\x01"
_LONGEST: Final = (1 << 63) - 1


class LuksDriver(BlockDriver):
    """Encrypts what it passes on. What was never written reads as noise: the zeroes of the file, decrypted."""

    name: ClassVar[str] = "luks"
    kind: ClassVar[str] = "format"
    naming_options: ClassVar[frozenset[str]] = frozenset({"key-secret"})
    create_options: ClassVar[tuple[CreateOption, ...]] = (
        SIZE_OPTION,
        *luks_options.CREATE_OPTIONS,
        CreateOption("preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    )
    amend_options: ClassVar[tuple[CreateOption, ...]] = luks_options.AMEND_OPTIONS

    def __init__(
        self,
        file: "BlockIO",
        volume: "Volume",
        sectors: "EncryptedSectors | None",
        objects: Mapping[str, NamedObject],
    ) -> None:
        self.file = file
        self.volume = volume
        self._sectors = sectors
        self._objects = objects
        self._payload = volume.header.payload_offset
        self.limits = BlockLimits(request_alignment=_SECTOR)

    def __repr__(self) -> str:
        return f"<LuksDriver {self.volume!r}>"

    # -- open and create ---------------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """By the magic and the version."""
        return 100 if head[: len(_MAGIC)] == _MAGIC else 0

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `key-secret`, the id of the secret with a passphrase; `max-iterations`, see `luks.unlocking`.

        Cancelled: a thread may go on computing for a while, for nobody.
        """
        from aioblock.luks.sectors import EncryptedSectors
        from aioblock.luks.unlocking import Unlocking
        from aioblock.luks.volume import Volume

        file = await context.open_child(Role.FILE)
        if context.metadata_only:
            Unlocking.leave(context.options)
            return cls(file, await Volume.read(file, 0, file.length), None, context.objects)
        unlocking = Unlocking.take(context.options, context.objects)
        volume = await Volume.read(file, 0, file.length)
        await volume.unlock(unlocking)
        return cls(file, volume, EncryptedSectors(file, volume.cipher()), context.objects)

    @classmethod
    async def create(cls, file: "BlockIO", options: Mapping[str, Any]) -> None:
        """Write an empty volume; the header comes last. It takes the iteration time and more."""
        from aioblock.luks.creating import NewVolume, take_parameters

        parameters = take_parameters(options)
        mode = options.get("preallocation", "off")
        if mode not in list(Prealloc):
            raise OptionError(f"Parameter 'preallocation' does not accept value '{mode}'", option="preallocation")
        size = options.get("size") or 0
        payload = parameters.payload_offset
        if size > _LONGEST - payload:
            raise OptionError("The requested file size is too large", option="size")
        new = await NewVolume.make(parameters)
        if file.length:  # a device: what it held must stop being an image first
            await file.pwrite_zeroes(0, payload, REQ_MAY_UNMAP)
            await file.flush()
        await file.truncate(payload + size, exact=False, prealloc=Prealloc(mode))
        await new.write_material(file, 0)
        await file.flush()
        await new.write_header(file, 0)
        await file.flush()

    @classmethod
    async def measure(
        cls,
        options: Mapping[str, Any],
        size: int,
        data: AsyncIterable[tuple[int, int]] | None,
        bitmaps: "Iterable[DirtyBitmap] | None",
    ) -> Measurement:
        """The header, and the disk in whole sectors."""
        from aioblock.luks.creating import take_parameters

        nbytes = take_parameters(options).payload_offset + -(-size // _SECTOR) * _SECTOR
        return Measurement(nbytes, nbytes, None)

    async def close(self) -> None:
        """Forget the key."""
        self.volume.key = None
        self._sectors = None

    async def getlength(self) -> int:
        """What the file holds behind the header."""
        return self.file.length - self._payload

    # -- data --------------------------------------------------------------------------------------------------------

    def preadv_now(self, offset: int, buffer: memoryview) -> bool:
        """Read a little, if the file can do it now."""
        return self._open_sectors().readinto_now(offset + self._payload, offset // _SECTOR, buffer)

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        """Read and decrypt."""
        await self._open_sectors().readinto(offset + self._payload, offset // _SECTOR, buffer)

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Encrypt and write."""
        await self._open_sectors().pwrite(offset + self._payload, offset // _SECTOR, data)

    def _open_sectors(self) -> "EncryptedSectors":
        if self._sectors is None:
            raise OSError(errno.EPERM, "The image was opened without its key")
        return self._sectors

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """Set the length of the file. What is grown reads as noise."""
        if length > _LONGEST - self._payload:
            raise OSError(errno.EFBIG, "The requested file size is too large")
        await self.file.truncate(length + self._payload, exact=exact, prealloc=prealloc, flags=flags)

    # -- the image as a whole ----------------------------------------------------------------------------------------

    def info(self) -> DriverInfo:
        """What `qemu-img info` shows."""
        specific = self.volume.describe()
        dirty = self.file.node.driver.info().dirty
        return DriverInfo(dirty=dirty, encrypted=True, specific=specific, lines=tuple(detail_lines(specific)))

    async def amend(
        self,
        options: Mapping[str, Any],
        *,
        force: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Activate or erase key slots: see `luks.amending`. `force`: also where the data would be lost.

        Nothing else is in flight meanwhile. Failed: each slot is as it was, or as it shall be.
        Raises: OptionError before anything is written; NotSupported; OSError.
        """
        from aioblock.luks.amending import amend

        if self._sectors is None:
            raise NotSupported("The image was opened without its key")
        await amend(self.volume, options, self._objects, force=force)
