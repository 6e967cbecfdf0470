"""The error numbers of the protocol, which are Linux's whatever the host, and the errnos that they stand for."""

import errno
from typing import Final

__all__ = [
    "EINVAL",
    "EIO",
    "ENOMEM",
    "ENOSPC",
    "ENOTSUP",
    "EOVERFLOW",
    "EPERM",
    "ESHUTDOWN",
    "from_wire",
    "to_wire",
]

EPERM: Final = 1
EIO: Final = 5
ENOMEM: Final = 12
EINVAL: Final = 22
ENOSPC: Final = 28
EOVERFLOW: Final = 75
ENOTSUP: Final = 95
ESHUTDOWN: Final = 108

_FROM_WIRE: Final = {
    EPERM: errno.EPERM,
    EIO: errno.EIO,
    ENOMEM: errno.ENOMEM,
    EINVAL: errno.EINVAL,
    ENOSPC: errno.ENOSPC,
    EOVERFLOW: errno.EOVERFLOW,
    ENOTSUP: errno.ENOTSUP,
    ESHUTDOWN: errno.ESHUTDOWN,
}
_TO_WIRE: Final = {local: wire for wire, local in _FROM_WIRE.items()} | {
    errno.EACCES: EPERM,
    errno.EROFS: EPERM,
    errno.EFBIG: ENOSPC,
    errno.EDQUOT: ENOSPC,
    errno.EOPNOTSUPP: ENOTSUP,
}


def from_wire(error: int) -> int:
    """The errno of an error that a server sent; one that the protocol does not know counts as EINVAL."""
    return _FROM_WIRE.get(error, errno.EINVAL)


def to_wire(code: int | None) -> int:
    """The error to send for an errno; EIO for one that the protocol has no number for."""
    return _TO_WIRE.get(code, EIO) if code is not None else EIO
