"""The program as users run it, and QEMU's, on images that are alike."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from aioblock.tools.io import main
from tests.kit import oracle

ROOT = Path(__file__).resolve().parents[3]

# What changes how the interpreter writes: users do not have it.
_NOT_THERE = ("PYTHONUNBUFFERED", "PYTHONASYNCIODEBUG")

_FIGURES = [
    (re.compile(r"; [0-9:.]+( sec)? \(.* ops/sec\)"), "; TIME"),
    (re.compile(r",1,[0-9]+:[0-9]{2}:[0-9.]+,[0-9.]+,[0-9.]+"), ",1,TIME"),
]


class Done(NamedTuple):
    """What a run of the program left."""

    status: int
    out: str
    err: str


def without_times(text: str) -> str:
    """Output without the figures that differ from run to run."""
    for figure, name in _FIGURES:
        text = figure.sub(name, text)
    return text


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that messages show short names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    return tmp_path


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`ours("-c", "length", "x.raw")`: a run of the program in this process, called qemu-io."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/qemu-io"])

    def run(*args: str) -> Done:
        status = main(args)
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return run


@pytest.fixture
def theirs() -> Callable[..., Done]:
    """The same of QEMU's program."""
    oracle.require("qemu-io")

    def run(*args: str) -> Done:
        done = oracle.run("qemu-io", *args, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def program(home: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """`program("-c", "length", name="qemu-io")`: the program as a process of its own, called by any name."""
    started: list[subprocess.Popen[bytes]] = []
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_THERE}

    def start(*args: str, name: str = "qemu-io", stdin: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
        script = home / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            "from aioblock.tools.io import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [script, *args], bufsize=0, stdin=stdin, stdout=pipe, stderr=pipe, cwd=home, env=environment
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
