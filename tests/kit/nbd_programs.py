"""The NBD servers of others, as processes: qemu-nbd and nbdkit."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.kit import oracle

__all__ = ["nbdkit", "qemu_nbd"]


@contextlib.contextmanager
def qemu_nbd(folder: Path, *args: str | os.PathLike[str], socket: str = "socket") -> Iterator[str]:
    """qemu-nbd on a socket in `folder`, whose path it gives; `args` end with the image."""
    path, pid = folder / socket, folder / f"{socket}.pid"
    oracle.run("qemu-nbd", "--fork", "--persistent", "--shared=8", "-k", path, "--pid-file", pid, *args)
    with _stopped(pid):
        yield str(path)


@contextlib.contextmanager
def nbdkit(folder: Path, *args: str | os.PathLike[str], socket: str = "socket") -> Iterator[str]:
    """nbdkit on a socket in `folder`, whose path it gives; `args`: filters, plugin, parameters."""
    path, pid = folder / socket, folder / f"{socket}.pid"
    oracle.run("nbdkit", "-U", path, "-P", pid, *args)
    with _stopped(pid):
        yield str(path)


@contextlib.contextmanager
def _stopped(pid_file: Path) -> Iterator[None]:
    """Both programs come back when they listen, and go on in the background."""
    pid = int(pid_file.read_text())
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        subprocess.run(["tail", f"--pid={pid}", "-f", "/dev/null"], timeout=20, check=False)
