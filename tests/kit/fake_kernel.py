"""FakeKernel: the kernel's NBD client for tests, behind the calls that `KernelDevice` makes.

It holds the rules of the real one that a caller can see (EBUSY, the order of the ioctls, DO_IT that does not return),
and then speaks NBD over the socket that it was given, for `read` and `write` from other threads.
"""

import errno
import os
import socket
import struct
import threading
from concurrent.futures import Future
from contextlib import suppress

from aioblock.exports.nbd.kernel import (
    CLEAR_QUE,
    CLEAR_SOCK,
    DISCONNECT,
    DO_IT,
    SET_BLKSIZE,
    SET_FLAGS,
    SET_SIZE_BLOCKS,
    SET_SOCK,
    DeviceCalls,
)
from aioblock.nbd.constants import CMD_DISC, CMD_FLUSH, CMD_READ, CMD_WRITE, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC

__all__ = ["DEVICE", "NOT_NBD", "FakeKernel"]

DEVICE = "/dev/nbd0"
NOT_NBD = "/dev/null"


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class FakeKernel(DeviceCalls):
    """It has one device, DEVICE."""

    def __init__(self) -> None:
        self.fds: dict[int, str] = {}
        self.log: list[tuple[int, int]] = []
        self.block = 1024
        self.size = 0
        self.flags = 0
        self.running = threading.Event()
        self.opening = threading.Event()
        self.closed = threading.Event()
        self.may_open = threading.Event()
        self.may_open.set()
        self.refuse: dict[int, int] = {}
        """The errno of ioctls that fail."""
        self._sock: socket.socket | None = None
        self._waiting: dict[int, tuple[int, Future[bytes]]] = {}
        self._cookie = 0

    # -- the calls ---------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        if path not in (DEVICE, NOT_NBD):
            raise failure(errno.ENOENT)
        self.opening.set()
        assert self.may_open.wait(20)
        fd = 1000 + len(self.fds)
        self.fds[fd] = path
        return fd

    def close(self, fd: int) -> None:
        assert self.fds[fd]
        self.fds[fd] = ""
        self.closed.set()

    @property
    def all_closed(self) -> bool:
        return not any(self.fds.values())

    def ioctl(self, fd: int, request: int, argument: int = 0) -> None:
        if self.fds[fd] != DEVICE:
            raise failure(errno.ENOTTY)
        self.log.append((request, 0 if request == SET_SOCK else argument))
        if request in self.refuse:
            raise failure(self.refuse[request])
        if request == SET_SOCK:
            if self._sock is not None:
                raise failure(errno.EBUSY)
            self._sock = socket.socket(fileno=os.dup(argument))
        elif request == SET_BLKSIZE:
            self.block = argument
        elif request == SET_SIZE_BLOCKS:
            self.size = argument * self.block
        elif request == SET_FLAGS:
            self.flags = argument
        elif request == DO_IT:
            self._do_it()
        elif request == DISCONNECT:
            sock = self._sock
            if sock is None:
                raise failure(errno.EINVAL)
            self._send(CMD_DISC, 0, 0)
            with suppress(OSError):  # the server may be quicker: then DO_IT has returned and closed it
                sock.shutdown(socket.SHUT_RDWR)
        else:
            assert request in (CLEAR_QUE, CLEAR_SOCK)
            if request == CLEAR_SOCK and self._sock is not None and not self.running.is_set():
                self._sock.close()
                self._sock = None

    # -- the device --------------------------------------------------------------------------------------------------

    def read(self, offset: int, nbytes: int) -> bytes:
        return self._send(CMD_READ, offset, nbytes).result(20)

    def write(self, offset: int, data: bytes) -> None:
        self._send(CMD_WRITE, offset, len(data), data).result(20)

    def flush(self) -> None:
        self._send(CMD_FLUSH, 0, 0).result(20)

    def _send(self, command: int, offset: int, nbytes: int, data: bytes = b"") -> "Future[bytes]":
        assert self._sock is not None
        self._cookie += 1
        answer: Future[bytes] = Future()
        self._waiting[self._cookie] = (nbytes if command == CMD_READ else 0, answer)
        self._sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, command, self._cookie, offset, nbytes) + data)
        return answer

    def _do_it(self) -> None:
        if self._sock is None:
            raise failure(errno.EINVAL)
        self.running.set()
        try:
            with self._sock.makefile("rb") as stream:
                while len(head := stream.read(16)) == 16:
                    magic, error, cookie = struct.unpack(">IIQ", head)
                    assert magic == SIMPLE_REPLY_MAGIC
                    nbytes, answer = self._waiting.pop(cookie)
                    if error:
                        answer.set_exception(failure(error))
                    else:
                        answer.set_result(stream.read(nbytes))
        except ConnectionError:
            pass
        finally:
            for _, answer in self._waiting.values():
                answer.set_exception(failure(errno.EIO))
            self._waiting.clear()
            self.running.clear()
