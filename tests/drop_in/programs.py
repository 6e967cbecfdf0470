"""The two programs, run to their end."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.kit.oracle import find, finished

__all__ = ["Ours", "Result", "theirs"]

SECONDS = 40


class Result(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str


def theirs(argv: Sequence[str], folder: Path, program: str = "qemu-img") -> Result:
    """Run QEMU's program in a folder."""
    done = finished([program, *argv], folder, program=find(program), newline="")
    return Result(done.returncode, done.stdout, done.stderr)


class Ours:
    """aioblock-img under the name qemu-img; a context manager, which keeps one process to fork from."""

    def __enter__(self) -> "Ours":
        self._scratch = tempfile.TemporaryDirectory(prefix="drop-in-")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.drop_in.served"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "LC_ALL": "C"},
            cwd=Path(__file__).parents[2],
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
        self._scratch.cleanup()

    def run(self, argv: Sequence[str], folder: Path) -> Result:
        """Run the program in a folder."""
        assert self._server.stdin is not None and self._server.stdout is not None
        out, err = Path(self._scratch.name, "out"), Path(self._scratch.name, "err")
        job = {"argv": list(argv), "folder": str(folder), "out": str(out), "err": str(err), "seconds": SECONDS}
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        return Result(status, _text(out.read_bytes()), _text(err.read_bytes()))


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")
