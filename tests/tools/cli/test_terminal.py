"""On a terminal: colour, a bar of progress, the width; elsewhere none of it. And what an interrupt leaves."""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from tests.tools.cli.conftest import MiB

pytestmark = pytest.mark.slow

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """A process on a terminal of its own; what it writes there is in `text`."""

    def __init__(self, folder, *args, columns=100, env=None, stdout=None, stderr=None):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORTERM")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aioblock", *args],
            cwd=folder,
            env=inherited | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | (env or {}),
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave if stderr is None else stderr,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read_until(self, wanted=None, seconds=40.0):
        """Read until `wanted`, a pattern, has been seen; None: to the end."""
        give_up = time.monotonic() + seconds
        while wanted is None or not re.search(wanted, self.text):
            ready, _, _ = select.select([self.master], [], [], max(give_up - time.monotonic(), 0))
            assert ready, f"nothing more came: {self.text!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the other side is closed
                data = b""
            if not data:
                assert wanted is None, f"{wanted} never came: {self.text!r}"
                break
            self.text += self._decoder.decode(data)
        return self.text

    def end(self):
        text = self.read_until()
        status = self.process.wait(40)
        os.close(self.master)
        self.master = -1
        return status, text


@pytest.fixture
def screen(chain):
    made = []

    def make(*args, **how):
        made.append(Screen(chain.folder, *args, **how))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        if one.master >= 0:
            os.close(one.master)


@pytest.fixture
def slow_copy(chain):
    """The arguments of a copy of 16 MiB in pieces of 2 MiB, eight of them a second."""
    (chain.folder / "big.raw").write_bytes(b"x" * 16 * MiB)
    return ["convert", "big.raw", "a.raw", "--workers", "1", "--rate-limit", "16M"]


def plain(text):
    return ESCAPE.sub("", text).replace("\r", "")


def test_colour_and_blocks_on_a_terminal(screen):
    status, text = screen("map", "top.qcow2").end()
    assert status == 0
    assert "\x1b[" in text and "█" in plain(text) and "▏" in plain(text)
    after_the_bar = plain(text.rpartition("\x1b[2K")[2])
    assert max(map(len, after_the_bar.splitlines())) <= 100


@pytest.mark.parametrize(
    ("args", "env"),
    [([], {"NO_COLOR": "1"}), (["--no-color"], {}), ([], {"TERM": "dumb"})],
    ids=["NO_COLOR", "--no-color", "dumb"],
)
def test_no_colour_where_it_is_not_wanted(screen, args, env):
    status, text = screen("map", "top.qcow2", *args, env=env).end()
    assert status == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text)
    assert "#" in text and "█" not in text  # what was said by colour is said by characters


def test_the_width_is_that_of_the_terminal(screen):
    for columns in (60, 140):
        status, text = screen("map", "top.qcow2", columns=columns).end()
        assert status == 0
        picture = next(line for line in plain(text).splitlines() if "top.qcow2" in line)
        assert columns - 10 < len(picture) <= columns


def test_a_bar_while_it_works_and_nothing_of_it_afterwards(screen, slow_copy):
    run = screen(*slow_copy)
    run.read_until(r"convert.* of 16 MiB")
    run.read_until(r"MiB/s")
    status, text = run.end()
    assert status == 0
    assert "━" in text and " %" in text
    assert "16 MiB (16777216 bytes)" in plain(text.rpartition("\x1b[2K")[2])  # the bar is wiped out before


def test_the_bar_goes_to_stderr_and_the_document_to_stdout(screen, chain, slow_copy):
    with open(chain.folder / "out", "wb") as out:
        status, text = screen(*slow_copy, "--json", stdout=out).end()
    assert status == 0
    assert "━" in text
    assert json.loads((chain.folder / "out").read_text())["bytes_written"] == 16 * MiB


@pytest.mark.parametrize("args", [["--quiet"], ["--progress", "none"]])
def test_no_bar_where_it_is_not_wanted(screen, args):
    status, text = screen("convert", "top.qcow2", "a.raw", *args).end()
    assert status == 0
    assert "━" not in text


def test_progress_as_json_is_a_line_a_step_on_stderr(chain, slow_copy):
    result = chain.process(*slow_copy, "--progress", "json", "--json")
    assert result.status == 0
    lines = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
    assert [line["state"] for line in lines] == ["running"] * (len(lines) - 1) + ["done"]
    assert len(lines) > 4
    done = [line["done"] for line in lines]
    assert done == sorted(done) and done[-1] == lines[-1]["total"] == 16 * MiB
    assert {line["step"] for line in lines} == {"convert"} and {line["unit"] for line in lines} == {"bytes"}
    assert lines[-1]["seconds_left"] == 0 and all(line["per_second"] > 0 for line in lines)
    assert result.json["target"] == "a.raw"


@pytest.mark.parametrize("before", [None, b"precious"], ids=["new", "replaced"])
def test_an_interrupt_cleans_up_says_what_is_left_and_ends_with_130(screen, chain, slow_copy, before):
    target = chain.folder / "a.raw"
    if before is not None:
        target.write_bytes(before)
    run = screen(*slow_copy[:-1], "2M", "--force")
    run.read_until(r"convert.* of 16 MiB")
    assert any(name.endswith(".part") for name in os.listdir(chain.folder))
    os.kill(run.process.pid, signal.SIGINT)
    status, text = run.end()
    assert status == 130
    assert "interrupted" in plain(text)
    if before is None:
        assert "Nothing is left: a.raw was not made." in plain(text)
        assert not target.exists()
    else:
        assert "a.raw is as it was before." in plain(text)
        assert target.read_bytes() == before
    assert [name for name in os.listdir(chain.folder) if name.endswith(".part")] == []


def test_an_interrupted_commit_says_that_the_disk_is_as_before(screen, chain, slow_copy):
    chain.ok("create", "new.qcow2", "16M", "--backing", "big.raw", "--backing-format", "raw")
    chain.ok("io", "write", "new.qcow2", "0", "16M", "-p", "1")
    run = screen("commit", "new.qcow2", "--rate-limit", "2M")
    run.read_until(r"commit.* of 16 MiB")
    os.kill(run.process.pid, signal.SIGTERM)
    status, text = run.end()
    assert status == 128 + signal.SIGTERM
    assert "new.qcow2 reads as before" in " ".join(plain(text).split())
