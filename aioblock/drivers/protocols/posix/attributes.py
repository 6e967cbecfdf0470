"""Attributes of a file that help some filesystems. All are advice: one that cannot be set is left alone."""

import fcntl
import struct
from contextlib import suppress
from typing import Final

__all__ = ["set_extent_size_hint", "set_nocow"]

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_NOCOW_FL: Final = 0x00800000

# struct fsxattr: u32 xflags, u32 extsize, u32 nextents, u32 projid, u32 cowextsize, 8 bytes of padding.
_FSXATTR: Final = "=IIIII8x"
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FS_IOC_FSSETXATTR: Final = 0x401C5820
_FS_XFLAG_EXTSIZE: Final = 0x00000800


def set_nocow(fd: int) -> None:
    """Let an empty file be overwritten in place on btrfs."""
    with suppress(OSError):
        (flags,) = struct.unpack("=i4x", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=i4x", flags | _FS_NOCOW_FL))


def set_extent_size_hint(fd: int, nbytes: int) -> None:
    """Let the file be allocated in pieces of `nbytes` on XFS: fewer fragments."""
    with suppress(OSError, struct.error):
        xflags, _, extents, project, cow = struct.unpack(_FSXATTR, fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(28)))
        hint = struct.pack(_FSXATTR, xflags | _FS_XFLAG_EXTSIZE, nbytes, extents, project, cow)
        fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, hint)
