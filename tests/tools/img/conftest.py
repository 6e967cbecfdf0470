"""Every command is given to qemu-img and to aioblock-img, each in a folder of its own that holds the same images."""

import difflib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from aioblock.tools.img import main
from tests.kit.oracle import find, finished, require


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Sides:
    """Two folders with the same images: one for qemu-img, one for aioblock-img."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.theirs, self.ours = root / "theirs", root / "ours"
        self._capsys, self._monkeypatch = capsys, monkeypatch
        for folder in (self.theirs, self.ours):
            folder.mkdir()
        monkeypatch.setattr(sys, "argv", ["/somewhere/qemu-img"])

    def prepare(self, program: str, *args: str) -> None:
        """Let QEMU's program do the same thing in both folders."""
        for folder in (self.theirs, self.ours):
            done = _run(program, args, folder)
            if done.status:
                pytest.fail(f"{program} {' '.join(args)}: {done.out}{done.err}")

    def write(self, name: str, data: bytes, offset: int = 0) -> None:
        """Write bytes into a file of both folders."""
        for folder in (self.theirs, self.ours):
            fd = os.open(folder / name, os.O_RDWR | os.O_CREAT)
            os.pwrite(fd, data, offset)
            os.close(fd)

    def run_theirs(self, *args: str) -> Result:
        return _run("qemu-img", args, self.theirs)

    def run_ours(self, *args: str) -> Result:
        self._monkeypatch.chdir(self.ours)
        self._capsys.readouterr()
        status = main(args)
        out, err = self._capsys.readouterr()
        return Result(status, out, err)

    def same(self, *args: str) -> Result:
        """Run the command on both sides; status, output and errors must be the same."""
        theirs, ours = self.run_theirs(*args), self.run_ours(*args)
        if ours != theirs:
            pytest.fail("\n".join([f"qemu-img {' '.join(args)}", *_difference(theirs, ours)]), pytrace=False)
        return ours

    def facts(self, name: str) -> list[list[str]]:
        """What qemu-img's `info` says of an image on both sides, apart from what storage it takes."""
        found = []
        for folder in (self.theirs, self.ours):
            lines = _run("qemu-img", ["info", name], folder).out.splitlines()
            found.append([line for line in lines if not line.startswith("disk size:")])
        return found

    def same_content(self, name: str, fmt: str | None = None) -> None:
        """An image that both sides made holds the same bytes, and qemu-img finds ours clean."""
        options = ["-f", fmt, "-F", fmt] if fmt else []
        done = _run("qemu-img", ["compare", *options, str(self.theirs / name), str(self.ours / name)], self.ours)
        assert done.status == 0, done
        if fmt == "qcow2":
            checked = _run("qemu-img", ["check", "-f", fmt, name], self.ours)
            assert checked.status == 0, checked


def _difference(theirs: Result, ours: Result) -> list[str]:
    texts = [
        [*result.out.splitlines(), *(f"stderr: {line}" for line in result.err.splitlines()), f"status {result.status}"]
        for result in (theirs, ours)
    ]
    return list(difflib.unified_diff(*texts, "theirs", "ours", lineterm="", n=1))


def _run(program: str, args: "list[str] | tuple[str, ...]", folder: Path) -> Result:
    require(program)
    done = finished([find(program) or program, *args], folder)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def sides(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sides:
    return Sides(tmp_path, capsys, monkeypatch)
