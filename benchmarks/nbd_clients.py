"""Clients of an NBD server that take little themselves: they sit idle, or read and write and note how long it took.

Each kind runs in a process of its own (`elsewhere`), with all of its connections in one epoll.
"""

import heapq
import multiprocessing
import os
import random
import resource
import select
import signal
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Latency", "Server", "busy", "elsewhere", "idle", "paced", "raise_file_limit", "serving"]

BLOCK = 4096
_REQUEST = struct.Struct(">IHHQQI")
_MAGIC = 0x25609513
_READ, _WRITE = 0, 1
_GREETING, _CHOSEN, _REPLY = 18, 10, 16
_EXPORT_NAME = struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0)
_TOGETHER = 64
"""Connections that are opened at the same time."""


class Latency(NamedTuple):
    """Of many requests: the median and the 99th percentile in ms, and how many were answered in a second."""

    p50: float
    p99: float
    rate: float

    @classmethod
    def of(cls, seconds: list[float], took: float) -> "Latency":
        cuts = statistics.quantiles(seconds, n=100)
        return cls(cuts[49] * 1000, cuts[98] * 1000, len(seconds) / took)

    def __str__(self) -> str:
        return f"p50 {self.p50:7.2f} ms   p99 {self.p99:7.2f} ms   {self.rate:7.0f} requests/s"


def raise_file_limit(wanted: int) -> bool:
    """Let this process, and those that it starts, have so many descriptors; whether that is allowed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most == resource.RLIM_INFINITY or most >= wanted


# -- the server ----------------------------------------------------------------------------------------------------


class Server(NamedTuple):
    """One that runs."""

    process: "subprocess.Popen[bytes]"
    path: str

    @property
    def memory(self) -> int:
        """What it holds, in bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> float:
        """Ask it to end; how many seconds that took."""
        began = time.perf_counter()
        self.process.terminate()
        self.process.wait(60)
        return time.perf_counter() - began


@contextmanager
def serving(program: str, connections: int, mib: int = 64) -> Iterator[Server]:
    """A server of a raw image of random bytes in the page cache, on a Unix socket, for so many connections."""
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        image, path = Path(where) / "disk", str(Path(where) / "socket")
        image.write_bytes(os.urandom(mib << 20))
        process = subprocess.Popen([program, "-t", "-e", str(connections), "-f", "raw", "-k", path, str(image)])
        try:
            while True:
                try:
                    _connect([path])[0].close()
                    break
                except OSError:
                    time.sleep(0.02)
            yield Server(process, path)
        finally:
            process.kill()
            process.wait()


# -- connections ---------------------------------------------------------------------------------------------------


def _receive(sock: socket.socket, nbytes: int) -> None:
    if len(sock.recv(nbytes, socket.MSG_WAITALL)) < nbytes:
        raise ConnectionError("The server has closed the connection")


def _connect(paths: list[str]) -> list[socket.socket]:
    """One connection to each, all in the transmission phase."""
    socks = [socket.socket(socket.AF_UNIX) for _ in paths]
    for sock, path in zip(socks, paths, strict=True):
        sock.connect(path)
        sock.sendall(_EXPORT_NAME)
    for sock in socks:
        _receive(sock, _GREETING + _CHOSEN)
    return socks


def _open(path: str, count: int) -> list[socket.socket]:
    found: list[socket.socket] = []
    while len(found) < count:
        found += _connect([path] * min(_TOGETHER, count - len(found)))
    return found


class _Asker:
    """Connections with one request at a time on each."""

    def __init__(self, path: str, count: int, seed: int, writes: float = 0, mib: int = 64) -> None:
        self.socks = _open(path, count)
        self.poll = select.epoll()
        self.by_fd = {sock.fileno(): sock for sock in self.socks}
        for sock in self.socks:
            sock.setblocking(False)
            self.poll.register(sock, select.EPOLLIN)
        self.began: dict[int, float] = {}
        self.missing: dict[int, int] = {}
        self.rng = random.Random(seed)
        self.writes = writes
        self.blocks = (mib << 20) // BLOCK
        self.data = os.urandom(BLOCK)

    def ask(self, sock: socket.socket) -> None:
        """One request at a random place."""
        write = self.rng.random() < self.writes
        head = _REQUEST.pack(_MAGIC, 0, _WRITE if write else _READ, 1, self.rng.randrange(self.blocks) * BLOCK, BLOCK)
        fd = sock.fileno()
        self.began[fd], self.missing[fd] = time.perf_counter(), _REPLY + (0 if write else BLOCK)
        sock.send(head + self.data if write else head)

    def answered(self, timeout: float) -> list[tuple[socket.socket, float]]:
        """Those whose replies are complete now, and how long these took."""
        found = []
        for fd, _ in self.poll.poll(timeout):
            nbytes = len(self.by_fd[fd].recv(self.missing[fd]))
            if not nbytes:
                raise ConnectionError("The server has closed the connection")
            self.missing[fd] -= nbytes
            if not self.missing[fd]:
                found.append((self.by_fd[fd], time.perf_counter() - self.began.pop(fd)))
        return found


def paced(pipe: Connection, path: str, count: int, rate: float, seconds: float) -> None:
    """`count` connections that read `rate` times a second, all together, as far as the server can."""
    asker = _Asker(path, count, 1)
    pipe.send(None)
    while (told := pipe.recv()) is not None:
        took: list[float] = []
        now = begin = time.perf_counter()
        queue = [(begin + number / rate, number) for number in range(count)]
        late = 0
        while now < begin + seconds:
            while queue[0][0] <= now:
                due, number = heapq.heappop(queue)
                if asker.socks[number].fileno() in asker.began:
                    late += 1
                else:
                    asker.ask(asker.socks[number])
                heapq.heappush(queue, (due + count / rate, number))
            took += [one for _, one in asker.answered(max(queue[0][0] - time.perf_counter(), 0))]
            now = time.perf_counter()
        while asker.began:
            took += [one for _, one in asker.answered(1)]
        pipe.send((told, Latency.of(took, seconds), late))


def busy(pipe: Connection, path: str, count: int, writes: float, seconds: float) -> None:
    """`count` connections that ask again as soon as they are answered; this part of the requests writes."""
    asker = _Asker(path, count, 2, writes)
    pipe.send(None)
    while (told := pipe.recv()) is not None:
        took: list[float] = []
        begin = time.perf_counter()
        for sock in asker.socks:
            asker.ask(sock)
        while time.perf_counter() < begin + seconds:
            for sock, one in asker.answered(1):
                took.append(one)
                asker.ask(sock)
        while asker.began:
            took += [one for _, one in asker.answered(1)]
        pipe.send((told, Latency.of(took, seconds)))


def idle(pipe: Connection, path: str, count: int) -> None:
    """`count` connections that ask nothing; says how many seconds it took to open them."""
    began = time.perf_counter()
    socks = _open(path, count)
    pipe.send(time.perf_counter() - began)
    pipe.recv()
    for sock in socks:
        sock.close()


# -- processes -----------------------------------------------------------------------------------------------------


def _begin(pipe: Connection, nice: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(nice)
    work(pipe, *args)


@contextmanager
def elsewhere(work: Callable[..., None], *args: Any, nice: int = 0) -> Iterator[Connection]:
    """Run `work(pipe, *args)` in a process of its own, with the other end of this pipe; it is killed at the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_begin, args=(theirs, nice, work, args))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
