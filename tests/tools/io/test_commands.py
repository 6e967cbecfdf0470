"""What needs no other program to be right."""

import asyncio
import os
import subprocess
import sys

import pytest

import aioblock
from aioblock.tools.io import asking
from aioblock.tools.io.interpreter import execute
from aioblock.tools.io.opening import Mode, open_for
from aioblock.tools.io.session import Session

from .conftest import ROOT


@pytest.fixture
def raw(home):
    path = home / "x.raw"
    path.write_bytes(bytes(1 << 20))
    return "x.raw"


@pytest.mark.slow
def test_the_overlay_of_s_takes_the_writes_and_leaves_no_file(ours, home, monkeypatch):
    place = home / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    (home / "x.raw").write_bytes(b"\x11" * (1 << 20))
    done = ours(
        *("-f", "raw", "-s", "-c", "write -q -P 0x22 64k 100", "-c", "read -q -P 0x22 64k 100"),
        *("-c", "read -q -P 0x11 0 64k", "-c", "map", "x.raw"),
    )
    assert done == (
        0,
        "64 KiB (0x10000) bytes not allocated at offset 0 bytes (0x0)\n"
        "64 KiB (0x10000) bytes     allocated at offset 64 KiB (0x10000)\n"
        "896 KiB (0xe0000) bytes not allocated at offset 128 KiB (0x20000)\n",
        "",
    )
    assert (home / "x.raw").read_bytes() == b"\x11" * (1 << 20)
    assert os.listdir(place) == []


def test_the_overlay_has_no_name_while_it_is_open(ours, home, monkeypatch):
    place = home / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    (home / "x.raw").write_bytes(bytes(1 << 20))
    seen = []
    monkeypatch.setattr(asking, "show_bytes", lambda nbytes: seen.append(os.listdir(place)) or "")
    assert ours("-f", "raw", "-s", "-c", "length", "x.raw").status == 0
    assert seen == [[]]


def test_overlapping_requests_leave_one_of_their_contents(ours, home):
    (home / "x.raw").write_bytes(bytes(1 << 20))
    commands = [part for pattern in range(1, 20) for part in ("-c", f"aio_write -q -P {pattern} 100 9000")]
    assert ours("-f", "raw", *commands, "x.raw") == (0, "", "")
    content = (home / "x.raw").read_bytes()
    assert content[100] in range(1, 20)
    assert content[100:9100] == content[100:101] * 9000


def test_what_was_not_read_shows(ours):
    done = ours("--image-opts", "-c", "read -v 0 1", "driver=null-co,size=1M")
    assert done.out.splitlines()[0] == "00000000:  ab  ."


def test_the_statistics_of_i(home, monkeypatch):
    (home / "x.raw").write_bytes(bytes(4096))

    async def run():
        async with Session() as session:
            await open_for(session, "x.raw", Mode(format="raw"))
            await execute(session, "aio_read -i 0 1")
            await execute(session, "aio_write -i 0 1")
            return session.disk.statistics.failed

    assert asyncio.run(run()) == 2


def test_every_write_is_stable_unless_asked_otherwise(home):
    (home / "x.raw").write_bytes(bytes(4096))

    async def writeback(mode):
        async with Session() as session:
            await open_for(session, "x.raw", mode)
            return session.disk.node.cache.writeback

    assert asyncio.run(writeback(Mode(format="raw"))) is False
    assert asyncio.run(writeback(Mode(format="raw", cache="writeback"))) is True


def test_a_discarded_range_is_given_back_unless_asked_otherwise(ours, home):
    for option, kept in (("-c", False), ("-dignore", True)):
        (home / "x.raw").write_bytes(b"\x11" * (1 << 20))
        before = os.stat("x.raw").st_blocks
        args = [option] if kept else []
        assert ours("-f", "raw", *args, "-c", "discard -q 0 1M", "x.raw").status == 0
        assert (os.stat("x.raw").st_blocks == before) is kept


def test_help_of_a_command_tells_its_options(ours):
    for name in ("read", "write", "aio_read", "aio_write", "discard", "reopen", "truncate", "open"):
        done = ours("-c", f"help {name}")
        usage, _, text = done.out.partition("\n")
        letters = usage[usage.index("[") :].split()[0].strip("[]()-").replace("-", "").replace("|", "")
        for letter in letters.replace("a", "") if name == "read" else letters:
            assert f" -{letter}  " in text, (name, letter)


def test_version(ours):
    assert ours("--version") == (0, f"qemu-io version {aioblock.__version__} (aioblock)\n", "")


@pytest.mark.slow
def test_a_plain_read_needs_no_numpy(raw):
    code = (
        "import sys; sys.argv[0] = 'qemu-io'\n"
        "from aioblock.tools.io import main\n"
        "status = main(['-f', 'raw', '-c', 'read -q 0 512', '-c', 'info', 'x.raw'])\n"
        "sys.exit(status or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0
