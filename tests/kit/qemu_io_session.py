"""qemu-io holding an image open: a child process at its prompt, until it is told to quit."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kit.oracle import PathLike, find, require

__all__ = ["QemuIo", "holding"]

PROMPT = b"qemu-io> "


class QemuIo:
    """A running qemu-io at its prompt."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.greeting = self._up_to_prompt()

    def ask(self, command: str) -> str:
        """Give a command; returns what it printed, once the prompt is there again."""
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), command.encode() + b"\n")
        return self._up_to_prompt()

    def _up_to_prompt(self) -> str:
        assert self._process.stdout is not None
        seen = b""
        while not seen.endswith(PROMPT):
            piece = os.read(self._process.stdout.fileno(), 4096)
            if not piece:
                raise AssertionError(f"qemu-io ended: {seen.decode(errors='replace')}")
            seen += piece
        return seen[: -len(PROMPT)].decode()


@contextmanager
def holding(image: PathLike, *options: str) -> Iterator[QemuIo]:
    """qemu-io with the image open, e.g. `holding(path, "-f", "qcow2", "-r")`."""
    require("qemu-io")
    process = subprocess.Popen(
        [find("qemu-io") or "qemu-io", *options, os.fspath(image)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"LC_ALL": "C"},
    )
    try:
        yield QemuIo(process)
    finally:
        process.communicate(timeout=20)
