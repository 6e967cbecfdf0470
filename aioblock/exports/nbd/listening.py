"""Where the server listens: Unix sockets, TCP ports, sockets that a supervisor has opened."""

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from aioblock.base.errors import OptionError
from aioblock.exports.nbd.door import Door

__all__ = ["Address", "Listener", "activated_sockets", "open_sockets"]

Address = str | tuple[str, int | str] | socket.socket
"""The path of a Unix socket; host and port of TCP; a socket that listens already."""

_BACKLOG = 1024
"""Clients that the kernel lets wait, if its net.core.somaxconn does: it refuses more of them."""
_FIRST_FD = 3
_BREATHE = 0.5
"""Seconds until the next try where the process has no descriptor left."""
_OUT_OF_FDS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


async def open_sockets(address: Address) -> list[socket.socket]:
    """Sockets that listen at an address; a name may stand for several. Failed: none is open. Raises: OSError."""
    if isinstance(address, socket.socket):
        address.setblocking(False)
        return [address]
    if isinstance(address, str):
        return [_open_unix(address)]
    host, port = address
    loop = asyncio.get_running_loop()
    try:
        if str(port).startswith("-"):  # which the resolver takes for a large one
            raise socket.gaierror(socket.EAI_SERVICE, "Servname not supported for ai_socktype")
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        error.strerror = f"address resolution failed for {host}:{port}: {error.strerror}"
        raise
    opened: list[socket.socket] = []
    try:
        for family, kind, protocol, _, where in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            opened.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _listen(sock, where, "Failed to bind socket")
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return opened


def _open_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if path and not path.startswith("\0"):
            _remove_stale(path)
        _listen(sock, path, f"Failed to bind socket to {path}")
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket of a server that is gone; neither that of one that is there, nor a file of another kind."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # somebody may be there: binding the path says what is wrong


def _listen(sock: socket.socket, where: Any, words: str) -> None:
    try:
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"{words}: {os.strerror(error.errno or 0) if error.errno else error}") from None


def activated_sockets() -> list[socket.socket]:
    """The listening sockets that a supervisor such as systemd gave to this process; none where it gave none.

    Its variables are taken out of the environment, so that no child takes them for its own. Raises: OptionError.
    """
    for_us = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not for_us or not count:
        return []
    if not count.isascii() or not count.isdigit():
        raise OptionError(f"Invalid number of sockets in LISTEN_FDS: '{count}'")
    found = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        try:
            os.set_inheritable(fd, False)
            found.append(socket.socket(fileno=fd))
        except OSError as error:
            for sock in found:
                sock.close()
            raise OptionError(f"LISTEN_FDS names descriptor {fd}, which is no socket: {error.strerror}") from None
    return found


class Listener:
    """Accepts clients on one socket, while it may, one by one."""

    def __init__(self, sock: socket.socket, door: Door, accepted: Callable[[socket.socket], None]) -> None:
        """`accepted` is given each client's socket, and calls `off` when there may be no more."""
        self.sock = sock
        self._door = door
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._on = False
        self._watching = False
        self._timer: asyncio.TimerHandle | None = None
        self._inode = self._inode_of_path()

    def __repr__(self) -> str:
        return f"<Listener {self.sock.getsockname()!r} {'on' if self._on else 'off'}>"

    def on(self) -> None:
        """Accept clients."""
        if not self._on:
            self._on = True
            self._watch()

    def off(self) -> None:
        """Let clients wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._on = False
        self._unwatch()

    def close(self) -> None:
        """Listen no more; the path of a Unix socket is removed, if it is still this one's."""
        self.off()
        inode = self._inode_of_path()
        if inode is not None and inode == self._inode:
            os.unlink(self.sock.getsockname())
        self.sock.close()

    def _inode_of_path(self) -> tuple[int, int] | None:
        if self.sock.family != socket.AF_UNIX:
            return None
        path = self.sock.getsockname()
        try:
            found = os.stat(path) if isinstance(path, str) and path else None
        except OSError:
            return None
        return (found.st_dev, found.st_ino) if found is not None else None

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self.sock, self._somebody_there)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self.sock)

    def _somebody_there(self) -> None:
        self._unwatch()
        self._door.enter(self._accept)

    def _accept(self) -> None:
        """Accept one client. Others get their turn before the next one, however many there are."""
        if not self._on or self._watching:  # it was turned off since, or off and on
            return
        try:
            client, _ = self.sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            self._watch()
            return
        except OSError as error:
            if error.errno not in _OUT_OF_FDS:
                raise
            self.off()
            self._timer = self._loop.call_later(_BREATHE, self.on)
            return
        client.setblocking(False)
        self._accepted(client)
        if self._on:
            self._unwatch()
            self._door.enter(self._accept)
