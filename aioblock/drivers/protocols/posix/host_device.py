"""`host_device`, `host_cdrom`: a block device; a character device is taken for one of the length it tells, often 0."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from aioblock.base.errors import NotSupported, with_context
from aioblock.base.flags import REQ_MAY_UNMAP
from aioblock.core.images import SIZE_OPTION, CreateOption, Prealloc
from aioblock.drivers.protocols.posix.driver import PosixDriver
from aioblock.drivers.protocols.posix.fallocate import PUNCH_HOLE, fallocate
from aioblock.drivers.protocols.posix.locks import ImageLocks
from aioblock.drivers.protocols.posix.opening import OpenFile, Target, open_file

__all__ = ["HostCdromDriver", "HostDeviceDriver"]

_BLKSSZGET: Final = 0x1268  # int: size of a logical sector
_BLKDISCARD: Final = 0x1277  # u64 offset, u64 length
_BLKZEROOUT: Final = 0x127F  # u64 offset, u64 length
_BLKGETSIZE64: Final = 0x80081272  # u64: bytes

_CDROM_DRIVE_STATUS: Final = 0x5326  # int: which slot
_CDSL_CURRENT: Final = (1 << 31) - 1
_CDS_DISC_OK: Final = 4

_drive_status: Callable[[int, int, int], int] = fcntl.ioctl
_ioctl: Callable[[int, int, bytes], Any] = fcntl.ioctl
# What a device or driver says that has no such command.
_UNABLE: Final = (errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class HostDeviceDriver(PosixDriver):
    """A block device: its length is its own business."""

    name = "host_device"
    variable_length = True
    refusal = "either a character or block device"
    supported_zero_flags = REQ_MAY_UNMAP
    create_options: ClassVar[tuple[CreateOption, ...]] = (SIZE_OPTION,)

    def __init__(self, target: Target, opened: OpenFile, locks: ImageLocks | None, *, no_flush: bool) -> None:
        self._can_punch = self._can_zero = self._can_discard = True
        super().__init__(target, opened, locks, no_flush=no_flush)

    @staticmethod
    def accepts(mode: int) -> bool:
        """Block and character devices."""
        return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)

    def _adopt(self, target: Target, opened: OpenFile) -> None:
        super()._adopt(target, opened)
        sector = _sector_size(self._fd)
        if target.direct:
            self.limits.request_alignment = max(self.limits.request_alignment, sector)
        self.limits.pwrite_zeroes_alignment = self.limits.pdiscard_alignment = sector

    async def getlength(self) -> int:
        """The length of the device as it is now."""
        return _length_of(self._fd)

    async def allocated_size(self) -> int | None:
        """As the file system counts the blocks of the device's node."""
        return os.fstat(self._fd).st_blocks * 512

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """A device has the length it has: nothing is done where a longer one will do."""
        if prealloc is not Prealloc.OFF:
            raise NotSupported(f"Preallocation mode '{prealloc}' unsupported for this non-regular file")
        now = _length_of(self._fd)
        if exact and length != now:
            raise NotSupported("Cannot resize device files")
        if length > now:
            raise OSError(errno.EINVAL, "Cannot grow device files")

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Let the device write zeroes, or forget the range with REQ_MAY_UNMAP where that reads as zeroes."""
        if flags & REQ_MAY_UNMAP and self._can_punch:
            try:
                return await self._descriptor.run(fallocate, self._fd, PUNCH_HOLE, offset, nbytes)
            except OSError as error:
                self._can_punch = _may_try_again(error)
        if self._can_zero:
            try:
                return await self._descriptor.run(_on_range, self._fd, _BLKZEROOUT, offset, nbytes)
            except OSError as error:
                self._can_zero = _may_try_again(error)
        raise NotSupported

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """Tell the device that the range is not needed any more."""
        if self._can_discard:
            try:
                return await self._descriptor.run(_on_range, self._fd, _BLKDISCARD, offset, nbytes)
            except OSError as error:
                self._can_discard = _may_try_again(error)
        raise NotSupported

    @classmethod
    async def create_file(cls, filename: str, options: Mapping[str, Any]) -> None:
        """See that the device is there, writable and long enough. Raises: OSError."""
        target = cls._target_of(filename, read_only=False, direct=False)
        opened = await open_file(target)
        try:
            if (options.get("size") or 0) > _length_of(opened.descriptor.fd):
                raise OSError(errno.ENOSPC, "Cannot grow device files")
        finally:
            await opened.close()


class HostCdromDriver(HostDeviceDriver):
    """A drive whose disc may be changed while it is open. While it has none, and where it is no drive: ENOMEDIUM."""

    name = "host_cdrom"
    create_options = ()

    async def getlength(self) -> int:
        """The length of the disc that is there now. Raises: OSError ENOMEDIUM."""
        try:
            status = _drive_status(self._fd, _CDROM_DRIVE_STATUS, _CDSL_CURRENT)
        except OSError:
            status = None
        if status != _CDS_DISC_OK:
            raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
        return await super().getlength()


def _length_of(fd: int) -> int:
    try:
        (length,) = struct.unpack("=Q", _ioctl(fd, _BLKGETSIZE64, bytes(8)))
    except OSError as error:
        if error.errno not in _UNABLE:
            raise with_context(error, "Could not find out the size of the device: ") from None
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        except OSError:
            return 0
    return int(length)


def _sector_size(fd: int) -> int:
    try:
        (size,) = struct.unpack("=i", _ioctl(fd, _BLKSSZGET, bytes(4)))
    except OSError:
        return 512
    return int(size)


def _on_range(fd: int, command: int, offset: int, nbytes: int) -> None:
    _ioctl(fd, command, struct.pack("=QQ", offset, nbytes))


def _may_try_again(error: OSError) -> bool:
    """After a refusal: False where the device cannot do it at all. Raises what is a failure of the device."""
    if error.errno not in _UNABLE:
        raise error
    return error.errno == errno.EINVAL  # perhaps only this range did not suit it
