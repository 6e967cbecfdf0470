"""`aioblock` run in process and as a process, and a chain of images to run it on."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import aioblock
from aioblock.tools.cli import main

MiB = 1 << 20


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """The program, in a folder of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def __call__(self, *args: object) -> Result:
        """Run it in this process."""
        self._capsys.readouterr()
        status = main([str(arg) for arg in args])
        out, err = self._capsys.readouterr()
        return Result(status, out, err)

    def ok(self, *args: object) -> Result:
        result = self(*args)
        assert result.status == 0, result
        return result

    def json(self, *args: object) -> Any:
        return self.ok(*args, "--json").json

    def process(self, *args: object, env: Mapping[str, str] | None = None) -> Result:
        """Run it as a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "aioblock", *map(str, args)],
            cwd=self.folder,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=45,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def program(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Program(tmp_path, capsys)


async def _make_chain() -> None:
    """Three layers: base (8 MiB, compressed data), mid (6 MiB, data and zeroes), top (10 MiB, data)."""
    await aioblock.create("base.qcow2", "qcow2", size=8 * MiB)
    async with await aioblock.open("base.qcow2", format="qcow2", writable=True) as disk:
        for at in range(0, MiB, 65536):
            await disk.pwrite(at, b"\x11" * 65536, aioblock.REQ_COMPRESSED)
    below = {"backing_file": "base.qcow2", "backing_fmt": "qcow2"}
    await aioblock.create("mid.qcow2", "qcow2", below, size=6 * MiB)
    async with await aioblock.open("mid.qcow2", format="qcow2", writable=True) as disk:
        await disk.pwrite(MiB, b"\x22" * MiB)
        await disk.pwrite_zeroes(2 * MiB, MiB)
    below = {"backing_file": "mid.qcow2", "backing_fmt": "qcow2"}
    await aioblock.create("top.qcow2", "qcow2", below, size=10 * MiB)
    async with await aioblock.open("top.qcow2", format="qcow2", writable=True) as disk:
        await disk.pwrite(512 * 1024, b"\x33" * MiB)


@pytest.fixture
def chain(program: Program) -> Program:
    """The program in a folder with top.qcow2 over mid.qcow2 over base.qcow2: see `_make_chain`."""
    asyncio.run(_make_chain())
    return program


def content(name: str, format: str | None = None) -> bytes:
    """What is read from an image."""

    async def read() -> bytes:
        async with await aioblock.open(name, format=format, trust=aioblock.TRUST_ALL) as disk:
            return bytes(await disk.pread(0, disk.length))

    return asyncio.run(read())
