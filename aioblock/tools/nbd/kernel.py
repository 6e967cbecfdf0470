"""`-c` and `-d`: the kernel as the client, which shows an export as /dev/nbdX."""

import fcntl
import os

from ..program import ProgramError, error_text

__all__ = ["check_device", "disconnect"]

# linux/nbd.h: _IO(0xab, n)
_NBD_CLEAR_SOCK = 0xAB04
_NBD_CLEAR_QUE = 0xAB05
_NBD_DISCONNECT = 0xAB08


def check_device(device: str) -> None:
    """Raises: ProgramError: the device cannot be opened, or, as long as this is not built, in any case."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError as error:
        raise ProgramError(f"Failed to open {device}: {error_text(error)}") from error
    raise ProgramError(f"{device}: to be the server of a kernel's device is not built yet; use nbd-client")


def disconnect(device: str) -> int:
    """Make the kernel give up the connection of a device. Raises: ProgramError."""
    try:
        fd = os.open(device, os.O_RDWR)
    except OSError as error:
        raise ProgramError(f"Cannot open {device}: {error_text(error)}") from error
    try:
        for request in (_NBD_CLEAR_QUE, _NBD_DISCONNECT, _NBD_CLEAR_SOCK):
            fcntl.ioctl(fd, request)
    except OSError as error:
        raise ProgramError(f"Failed to disconnect {device}: {error_text(error)}") from error
    finally:
        os.close(fd)
    print(f"{device} disconnected")
    return 0
