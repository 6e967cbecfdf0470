"""The NBD servers of others, as processes: qemu-nbd and nbdkit."""

import contextlib
import os
import signal
import socket as listening
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kit import oracle

__all__ = ["nbdkit", "on_tcp", "qemu_nbd"]

_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def qemu_nbd(folder: Path, *args: str | os.PathLike[str], socket: str = "socket") -> Iterator[str]:
    """qemu-nbd on a socket in `folder`, whose path it gives; `args` end with the image."""
    path, pid = folder / socket, folder / f"{socket}.pid"
    oracle.run("qemu-nbd", "--fork", "--persistent", "--shared=8", "-k", path, "--pid-file", pid, *args)
    with _stopped(pid):
        yield str(path)


@contextlib.contextmanager
def nbdkit(folder: Path, *args: str | os.PathLike[str], socket: str = "socket", dies: bool = False) -> Iterator[str]:
    """nbdkit on a socket in `folder`, whose path it gives; `args`: filters, plugin, parameters.

    `dies`: it is killed at the end; else it waits until its clients have gone.

    It is given the socket as systemd does it, listening already: so nobody waits for it to be ready.
    """
    path = folder / socket
    sock = listening.socket(listening.AF_UNIX)
    sock.bind(str(path))
    with _activated(sock, "nbdkit", "-f", *args, end=signal.SIGKILL if dies else signal.SIGTERM):
        yield str(path)
    path.unlink()


@contextlib.contextmanager
def on_tcp(program: str, *args: str | os.PathLike[str]) -> Iterator[int]:
    """nbdkit or qemu-nbd at a port of 127.0.0.1, which it gives, without which `args` are."""
    sock = listening.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    with _activated(sock, program, *(["-f"] if program == "nbdkit" else ["--persistent", "--shared=8"]), *args):
        yield port


@contextlib.contextmanager
def _activated(
    sock: listening.socket, program: str, *args: str | os.PathLike[str], end: int = signal.SIGTERM
) -> Iterator[None]:
    """Run a program that is given a bound socket, which is closed here."""
    oracle.require(program)
    with sock:
        sock.listen(64)
        command = [sys.executable, "-c", _ACTIVATE, str(sock.fileno()), oracle.find(program) or "", *args]
        process = subprocess.Popen(command, pass_fds=[sock.fileno()], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(end)
        process.wait(20)


@contextlib.contextmanager
def _stopped(pid_file: Path) -> Iterator[None]:
    """The program has come back when it listened, and goes on in the background."""
    pid = int(pid_file.read_text())
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        subprocess.run(["tail", f"--pid={pid}", "-f", "/dev/null"], timeout=20, check=False)
