"""KernelDevice: the kernel's own NBD client, which shows an export as /dev/nbdX.

This process opens one end of a pair of sockets for the export, with the handshake that the kernel does not know, then
gives that end to the kernel by the ioctls of linux/nbd.h. From there on the kernel is a client as any other.

    SET_SOCK, SET_BLKSIZE, SET_SIZE_BLOCKS, SET_FLAGS      how the device is; EBUSY where it is in use
    DO_IT                                                  does not return until the device is disconnected
    DISCONNECT, CLEAR_QUE, CLEAR_SOCK                      disconnect it

What may wait for requests that this loop answers runs in threads: to open the device, DO_IT, to disconnect.
"""

import asyncio
import ctypes
import os
import socket
import threading
from typing import TYPE_CHECKING, Final, Self

from aioblock.base.errors import NbdError
from aioblock.exports.nbd.sectors import SECTOR
from aioblock.nbd.client_handshake import ClientHandshake
from aioblock.nbd.constants import Mode
from aioblock.nbd.export import ExportInfo

if TYPE_CHECKING:
    from aioblock.exports.nbd.server import NbdServer

__all__ = ["DeviceCalls", "KernelDevice", "disconnect_device"]

# linux/nbd.h: _IO(0xab, n)
SET_SOCK: Final = 0xAB00
SET_BLKSIZE: Final = 0xAB01
DO_IT: Final = 0xAB03
CLEAR_SOCK: Final = 0xAB04
CLEAR_QUE: Final = 0xAB05
SET_SIZE_BLOCKS: Final = 0xAB07
DISCONNECT: Final = 0xAB08
SET_FLAGS: Final = 0xAB0A

_PIECE: Final = 1 << 16


class DeviceCalls:
    """What is asked of the system, in one place: tests put a kernel of their own there."""

    def open(self, path: str, flags: int) -> int:
        """A descriptor. Raises: OSError."""
        return os.open(path, flags | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Close it. Raises: OSError."""
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> None:
        """`argument` has 64 bits, which `fcntl.ioctl` does not take. Raises: OSError."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(request), ctypes.c_ulong(argument)) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


_SYSTEM: Final = DeviceCalls()


class KernelDevice:
    """A device while it is connected. Made by `connect`; `async with` disconnects it at the end."""

    def __init__(self, device: str, fd: int, calls: DeviceCalls) -> None:
        self.device = device
        self._fd = fd
        self._calls = calls
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the device is not connected any more; an OSError where the kernel gave up."""

    def __repr__(self) -> str:
        return f"<KernelDevice {self.device} {'gone' if self.gone.done() else 'connected'}>"

    @classmethod
    async def connect(cls, server: "NbdServer", device: str, export: str = "", *, calls: DeviceCalls = _SYSTEM) -> Self:
        """Let the kernel show an export of a server as `device`, such as /dev/nbd0.

        It shows whole sectors of 512 bytes, as soon as the kernel has begun. Failed or cancelled: it is not connected.
        Raises: OSError; NbdError.
        """
        fd = await _open(device, calls)
        made = cls(device, fd, calls)
        theirs, ours = socket.socketpair()
        try:
            with theirs:
                theirs.setblocking(False)
                server.attach(ours)
                info = await _shake_hands(theirs, export)
                theirs.setblocking(True)
                made._set_up(theirs, info)
        except BaseException:
            calls.close(fd)
            raise
        threading.Thread(target=made._do_it, args=(asyncio.get_running_loop(),), daemon=True, name=device).start()
        return made

    def _set_up(self, sock: socket.socket, info: ExportInfo) -> None:
        try:
            self._calls.ioctl(self._fd, SET_SOCK, sock.fileno())
        except OSError as error:
            raise OSError(error.errno, f"Failed to set NBD socket: {error.strerror}") from error
        steps = ((SET_BLKSIZE, SECTOR), (SET_SIZE_BLOCKS, info.size // SECTOR), (SET_FLAGS, info.flags))
        try:
            for request, argument in steps:
                self._calls.ioctl(self._fd, request, argument)
        except OSError as error:
            self._calls.ioctl(self._fd, CLEAR_SOCK)
            raise OSError(error.errno, f"Failed to set up {self.device}: {error.strerror}") from error

    def _do_it(self, loop: asyncio.AbstractEventLoop) -> None:
        """The kernel works in this thread; it is the one that cleans up."""
        error: OSError | None = None
        try:
            self._calls.ioctl(self._fd, DO_IT)
        except OSError as failed:
            error = OSError(failed.errno, f"{self.device}: {failed.strerror}")
        try:
            self._calls.ioctl(self._fd, CLEAR_QUE)
            self._calls.ioctl(self._fd, CLEAR_SOCK)
        except OSError:
            pass  # it is free already
        self._calls.close(self._fd)
        try:
            loop.call_soon_threadsafe(self._ended, error)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _ended(self, error: OSError | None) -> None:
        if error is None:
            self.gone.set_result(None)
        else:
            self.gone.set_exception(error)
            self.gone.exception()  # told to those who ask

    async def disconnect(self) -> None:
        """Disconnect it, if it is not, and wait until it is free. Cancelled: it goes on. Raises: OSError."""
        if not self.gone.done():
            await asyncio.to_thread(disconnect_device, self.device, calls=self._calls)
        await asyncio.wait([self.gone])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.disconnect()


async def _open(device: str, calls: DeviceCalls) -> int:
    """Cancelled: it is closed again. Raises: OSError."""
    opening = asyncio.ensure_future(asyncio.to_thread(calls.open, device, os.O_RDWR))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda done: None if done.exception() else calls.close(done.result()))
        raise
    except OSError as error:
        raise OSError(error.errno, f"Failed to open {device}: {error.strerror}") from error


async def _shake_hands(sock: socket.socket, export: str) -> ExportInfo:
    """The handshake for simple replies: the kernel knows no others. Raises: OSError, NbdError."""
    loop = asyncio.get_running_loop()
    handshake = ClientHandshake(export, mode=Mode.SIMPLE)
    while True:
        await loop.sock_sendall(sock, handshake.take_output())
        if handshake.done:
            return handshake.info
        data = await loop.sock_recv(sock, _PIECE)
        if not data:
            raise NbdError("The server has closed the connection")
        handshake.feed(data)


def disconnect_device(device: str, *, calls: DeviceCalls = _SYSTEM) -> None:
    """Make the kernel give up the connection of a device, whoever made it. Blocks. Raises: OSError."""
    try:
        fd = calls.open(device, os.O_RDWR)
    except OSError as error:
        raise OSError(error.errno, f"Cannot open {device}: {error.strerror}") from error
    try:
        for request in (CLEAR_QUE, DISCONNECT, CLEAR_SOCK):
            calls.ioctl(fd, request)
    except OSError as error:
        raise OSError(error.errno, f"Failed to disconnect {device}: {error.strerror}") from error
    finally:
        calls.close(fd)
