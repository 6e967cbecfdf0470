"""Sequences of commands by chance, and many that are wrong, through the program and QEMU's on twin images.

What is compared: every line but for times and rates, the exit status, and the guest's bytes afterwards.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit import oracle

from .conftest import Done, without_times
from .sessions import SIZE, commands

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

SEEDS = range(6)
_NODE = re.compile(r"#block\d+")


class Image(NamedTuple):
    """An image of the twins, and how it is opened."""

    name: str
    fmt: str
    args: list[str]


FORMS = {
    "qcow2": Image("disk.qcow2", "qcow2", ["-f", "qcow2", "disk.qcow2"]),
    "raw": Image("disk.raw", "raw", ["-f", "raw", "disk.raw"]),
    "raw, in blocks of 4 KiB": Image(
        "disk.raw",
        "raw",
        [
            "--image-opts",
            "driver=raw,file.driver=blkdebug,file.align=4096,file.image.driver=file,file.image.filename=disk.raw",
        ],
    ),
    "qcow2, in a temporary overlay": Image("disk.qcow2", "qcow2", ["-s", "-f", "qcow2", "disk.qcow2"]),
    "qcow2, copied on read": Image("disk.qcow2", "qcow2", ["-C", "-f", "qcow2", "disk.qcow2"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A raw image, a qcow2 image over a shorter one, and a file of patterns."""
    oracle.require("qemu-img", "qemu-io")
    folder = tmp_path_factory.mktemp("made")
    oracle.qemu_img("create", "-q", "-f", "qcow2", folder / "base.qcow2", "2560k")
    oracle.qemu_io(folder / "base.qcow2", "write -q -P 17 0 1M", fmt="qcow2")
    oracle.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", folder / "disk.qcow2", str(SIZE))
    oracle.qemu_img("create", "-q", "-f", "raw", folder / "disk.raw", str(SIZE))
    oracle.qemu_io(folder / "disk.raw", "write -q -P 51 0 1M", fmt="raw")
    (folder / "pattern").write_bytes(bytes(range(1, 100)))
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture
def twins(home, made):
    """Two folders with the same images."""
    folders = home / "ours", home / "theirs"
    for folder in folders:
        shutil.copytree(made, folder)
    return folders


def both(twins, ours, theirs, monkeypatch, image: Image, lines: list[str]) -> list[Done]:
    args = [*(part for line in lines for part in ("-c", line)), *image.args]
    seen = []
    for folder, run in zip(twins, (ours, theirs), strict=True):
        monkeypatch.chdir(folder)
        done = run(*args)
        seen.append(Done(done.status, without_times(done.out), _NODE.sub("#block", done.err)))
    return seen


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_sequence_by_chance(form, seed, twins, ours, theirs, monkeypatch):
    image = FORMS[form]
    lines = commands(seed, 40, compressed=image.fmt == "qcow2")
    mine, other = both(twins, ours, theirs, monkeypatch, image, lines)
    assert mine.out.splitlines() == other.out.splitlines(), "\n".join(lines)
    assert mine == other, "\n".join(lines)
    oracle.assert_same(*(folder / image.name for folder in twins), fmts=(image.fmt, image.fmt))
    if image.fmt == "qcow2":
        oracle.assert_clean(twins[0] / image.name, "qcow2")


WRONG = """
read|read 0|read -z 0 1|read -b 0 1|read -b 1 512|read -P 0 -s -1 0 1|read -P 0 -s x 0 1|read -P 0 -l x 0 1|read 0 -1
read -1 0|read x 1|read 1 x|read 0 1.5|read 0 0.0000001k|read 0 9223372036854775807|read 9223372036854775808 1
read 18446744073709551616 1|read 0xffffffffffffffff 1|read 0 2147483137|read 8E 1|read 0 1kb|read 0 0x1e|read 0 0x1k
read -P -1 0 1|read -P 17x 0 1|read -P 0b1 0 1|read -P 99999999999999999999 0 1|read 0 1 -P|read -l 1 0 1|read 0 1 2
readv|readv 0|readv 0 -1|readv x 1|readv -z 0 1|readv 0 2147483136 1|readv 0 1G 1G|readv -P x 0 1|readv -l 1 0 1
write|write 0|write 5M 1|write 0 1 2|write -zP 1 0 1|write -s nowhere 0 1|write -s empty 0 10|write -s / 0 1
write -b 0 1|write -b 1 512|write -bf 0 512|write -bz 0 512|write -c 0 65537|write -c 1 64k|write -c -f 0 64k
write -n 0 1|write -u 0 1|write -zn 0 1|write -z 0 4G|write -P 256 0 1|write -v 0 1|write -P|write 0 -q|write -zc 1 1
writev|writev 0|writev -z 0 1|writev -c 0 1|writev 0 x|writev 5M 1|writev -P 300 0 1|writev 0 1G 1G
aio_read|aio_read 0|aio_read -P x 0 1|aio_read 0 x|aio_read x 0|aio_read -z 0 1|aio_read 0 3G|aio_read -i
aio_write|aio_write 0|aio_write -P x 0 1|aio_write 0 x|aio_write -z 0 1 1|aio_write -u 0 1|aio_write -zP 1 0 1
aio_write -z 0 4G|aio_write -c 0 64k|aio_write -z x 1|aio_write -z 0 x|aio_flush 1
discard|discard 0|discard 4M 1|discard 0 5M|discard 0 2G|discard 0 x|discard x 0|discard -v 0 1|discard 0 -1
truncate|truncate -1|truncate x|truncate -m foo 5M|truncate -m 5M|truncate -x 5M|truncate 9223372036854775807
truncate 5M 6M 7M|alloc|alloc 5M|alloc 5M 1|alloc x|alloc 0 x|alloc 0 1 1|alloc -1|alloc 8E|alloc 100 8192P
map 1|info 1|length 1|length -x|flush 1|help x|help -x|help read write|close 1|sleep|sleep x|sleep -1|sleep 1x
sleep 1.5|sleep 08|sigraise|sigraise x|sigraise 65|sigraise 66|sigraise 999|sigraise -1|abort 1
break foo bar|break l2_load A|break l2_load|remove_break A|remove_break|resume A|resume|wait_break|wait_break A B
open disk.raw|open -x|reopen -r -w|reopen -c|reopen -c foo|reopen x|reopen -o|reopen -o foo|reopen -o foo=1
reopen -o driver=raw|reopen -o file=x|reopen -o backing=x|reopen -o read-only=on|reopen -o read-only=x
reopen -o lazy-refcounts=x|reopen -o cache.direct=on -c none|reopen -o cache.writeback=on|reopen -o discard=foo
reopen -o detect-zeroes=foo|reopen -o node-name=x|reopen -o overlap-check=x|reopen -o locking=off|reopen -z
nonsense|read\t0\t1|length;length|#length
"""
WRONG_COMMANDS = [line for line in WRONG.replace("\n", "|").split("|") if line]
AT_ONCE = 40


@pytest.mark.parametrize("first", range(0, len(WRONG_COMMANDS), AT_ONCE))
def test_wrong_commands(first, twins, ours, theirs, monkeypatch):
    lines = [part for line in WRONG_COMMANDS[first : first + AT_ONCE] for part in (line, "aio_flush", "length")]
    mine, other = both(twins, ours, theirs, monkeypatch, FORMS["qcow2"], lines)
    assert mine.err.splitlines() == other.err.splitlines()
    assert mine == other


CRASHES = {"abort": -6, "sigraise 9": -9, "sigraise 15": -15}


@pytest.mark.parametrize("command", CRASHES)
def test_a_crash(command, twins, program, theirs, monkeypatch):
    lines = ["-c", "length", "-c", command, "-c", "length", "-f", "raw"]
    monkeypatch.chdir(twins[1])
    other = theirs(*lines, "disk.raw")
    mine = program(*lines, os.fspath(twins[0] / "disk.raw"), stdin=subprocess.DEVNULL)
    out, err = mine.communicate(timeout=30)
    assert (mine.returncode, out.decode(), err.decode()) == other
    assert mine.returncode == CRASHES[command]
