"""The same commands through the program and through QEMU's, on twin images: the same output, the same images."""

import shutil
import subprocess

import pytest

from tests.kit import oracle

from .conftest import Done, without_times

pytestmark = pytest.mark.oracle

RAW = ["-f", "raw"]
QCOW2 = ["-f", "qcow2"]

SCRIPTS = {
    "write and read back": (QCOW2, ["write 0 64k", "read -P 0xcd 0 64k", "w -P 7 1000 3000", "r -P 7 1000 3000"]),
    "across the end of the short backing file": (
        QCOW2,
        ["write -P 9 2559k 2k", "read -P 9 2559k 2k", "read -P 0 2561k 1k", "map", "alloc 2M 2M"],
    ),
    "zeroes": (
        QCOW2,
        ["write -z 0 1M", "write -zu 1M 1M", "write -z -n 0 512", "write -z -u -f 0 512", "write -zn 1 1", "map"],
    ),
    "zeroes, raw": (RAW, ["write -z 0 1M", "write -zu 64k 64k", "write -z -f 0 512", "write -z 1 1", "map"]),
    "compressed": (QCOW2, ["write -c -P 3 1M 64k", "read -P 3 1M 64k", "write -c 0 512", "write -c 1 64k"]),
    "vectors": (
        QCOW2,
        ["readv 0 1 2 3", "readv -v 0 1 2 3", "writev -P 5 0 1 2", "read -vq 0 4", "writev -f 7 3", "readv -P 1 0 512"],
    ),
    "discard": (QCOW2, ["write 0 256k", "discard 0 64k", "discard -C 64k 64k", "discard -q 192k 64k", "map"]),
    "aio, one at a time": (
        QCOW2,
        [
            "aio_write 0 64k",
            "aio_flush",
            "aio_write -C 0 64k",
            "aio_flush",
            "aio_write -q -P 7 0 64k",
            "aio_flush",
            "aio_read -P 7 0 512",
            "aio_flush",
            "aio_read -v 0 16",
            "aio_flush",
            "aio_read -P 9 0 16",
            "aio_flush",
            "aio_read 20M 16",
            "aio_flush",
            "aio_write -z 20M 16",
            "aio_flush",
            "aio_write -i 0 64k",
            "aio_read -i x",
        ],
    ),
    "aio ends before close": (QCOW2, ["aio_read 0 1M", "close", "length"]),
    "aio ends before the program": (QCOW2, ["aio_write 0 1M", "quit", "length"]),
    "pattern that does not match": (
        QCOW2,
        ["read -P 0 0 512", "read -P 1 -s 1 0 512", "read -P 1 -s 1 -l 5 0 512", "read -qP 5 -v 0 1", "read 0 1"],
    ),
    "pattern of a part": (
        QCOW2,
        [
            "read -P 0 -s 513 0 512",
            "read -P 0 -l 600 0 512",
            "read -P 0 -s 512 0 512",
            "read -s 5 0 512",
            "read -l 5 0 1",
        ],
    ),
    "pattern from a file": (
        QCOW2,
        ["write -s pattern 1 10", "read -v 0 17", "write -s nowhere 0 1", "write -s empty 0 1"],
    ),
    "questions": (
        QCOW2,
        ["length", "l", "info", "map", "alloc 0", "alloc 0 64k", "a 1 512", "alloc 100M 64k", "alloc 3M 2M"],
    ),
    "questions, raw": (RAW, ["length", "map", "info", "alloc 0", "alloc 0 1M", "alloc 0 0", "alloc 0 1e"]),
    "truncate": (QCOW2, ["truncate 6M", "length", "truncate -m metadata 8M", "t 9M 1", "length", "truncate 1000"]),
    "truncate, raw": (RAW, ["truncate -m full 5M", "length", "truncate -m falloc 6M", "truncate -m metadata 7M"]),
    "flush": (QCOW2, ["write 0 1k", "flush", "f", "flush x"]),
    "wrong numbers of arguments": (
        QCOW2,
        ["write", "read 0", "w 0", "alloc 1 2 3", "map 1", "length 1", "info 1", "close 1", "truncate", "sleep 1 2"],
    ),
    "wrong operands": (
        QCOW2,
        ["write 0 1 2", "read 0 1 2", "discard 0 1 2", "write -P 0 1", "aio_write -z 0", "reopen x", "readv -P 1 0"],
    ),
    "wrong options": (
        QCOW2,
        ["read -a 0 1", "r -x 0 1", "write -x 0 1", "write -1 0", "discard -v 0 1", "truncate -x 1", "read -v 0 -s"],
    ),
    "options that exclude each other": (
        QCOW2,
        [
            "write -z -P 1 0 1",
            "write -s pattern -P 1 0 1",
            "write -u 0 1",
            "write -n 0 1",
            "write -f -c 0 64k",
            "write -b -z 0 1",
            "aio_write -u 0 1",
            "aio_write -z 0 1 1",
            "write -c -b 1 512",
        ],
    ),
    "too much": (
        QCOW2,
        [
            "read 0 2G",
            "write 0 2G",
            "discard 0 2G",
            "readv 0 2G",
            "writev 0 1G 1G",
            "aio_read 0 1 2147483136",
            "write -zn 0 4G",
        ],
    ),
    "past the end": (
        QCOW2,
        ["read 4M 1", "write 4194303 2", "writev 5M 0", "readv 4M 1", "write -z 4M 1", "discard 4M 1", "read 4M 0"],
    ),
    "patterns": (QCOW2, ["write -P xx 0 1", "write -P 256 0 1", "write -P 08 0 1", "write -qP010 0 4", "read -v 0 4"]),
    "unknown commands": (QCOW2, ["foo", "help foo", "", " ", "  length  ", "\tlength", "length # x", "length;length"]),
    "quit": (QCOW2, ["length", "quit 1 2", "foo"]),
    "read-only": (
        ["-r", *QCOW2],
        ["write 0 1", "write x y", "write", "writev 0 1", "aio_write 0 1", "discard 0 1", "truncate 1M", "flush"],
    ),
    "reopen": (
        QCOW2,
        [
            "reopen -r",
            "write 0 1",
            "reopen -w",
            "write -q 0 1",
            "reopen -c none",
            "write -q 0 1",
            "reopen",
            "read -q 0 1",
        ],
    ),
    "reopen, refused": (
        QCOW2,
        [
            "reopen -r -w",
            "reopen -c foo",
            "reopen -w -o read-only=on",
            "reopen -c writeback -o cache.direct=on",
            "reopen -o foo=bar",
            "reopen -o driver=raw",
            "reopen -o cache.writeback=off",
            "reopen -x",
        ],
    ),
    "a second image": (
        QCOW2,
        ["open base.qcow2", "close", "close", "read 0 1", "open base.qcow2", "length", "c", "map"],
    ),
    "nothing open": ([], ["read 0 1", "flush", "aio_flush", "length", "reopen", "write", "a b c d", "open"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A chain whose backing file is the shorter one, a raw image, and what patterns are taken from."""
    oracle.require("qemu-img", "qemu-io")
    folder = tmp_path_factory.mktemp("made")
    oracle.qemu_img("create", "-q", "-f", "qcow2", folder / "base.qcow2", "2560k")
    oracle.qemu_io(folder / "base.qcow2", "write -q -P 17 0 2560k", fmt="qcow2")
    oracle.qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", folder / "disk.qcow2", "4M")
    oracle.qemu_io(folder / "disk.qcow2", "write -q -P 34 128k 128k", fmt="qcow2")
    oracle.qemu_img("create", "-q", "-f", "raw", folder / "disk.raw", "4M")
    oracle.qemu_io(folder / "disk.raw", "write -q -P 51 0 1M", fmt="raw")
    (folder / "pattern").write_bytes(b"abc")
    (folder / "empty").write_bytes(b"")
    return folder


@pytest.fixture
def twins(home, made):
    """Two folders with the same images."""
    folders = home / "ours", home / "theirs"
    for folder in folders:
        shutil.copytree(made, folder)
    return folders


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script(script, twins, ours, theirs, monkeypatch):
    options, commands = SCRIPTS[script]
    args = [*options, *(part for command in commands for part in ("-c", command))]
    image = "disk.raw" if options == RAW else "disk.qcow2"
    if options:
        args.append(image)
    seen = []
    for folder, run in zip(twins, (ours, theirs), strict=True):
        monkeypatch.chdir(folder)
        done = run(*args)
        seen.append(Done(done.status, without_times(done.out), done.err))
    assert seen[0] == seen[1]
    oracle.assert_same(*(folder / image for folder in twins), fmts=(image[5:], image[5:]))
    if image == "disk.qcow2":
        oracle.assert_clean(twins[0] / image, "qcow2")


FORMATS = {
    "a raw image whose format was guessed": ["-c", "length", "disk.raw"],
    "the wrong format": ["-f", "qcow2", "-c", "length", "disk.raw"],
    "an unknown format": ["-f", "foo", "disk.raw"],
    "a file that is not there": ["-r", "-c", "length", "nowhere"],
    "a directory": ["-c", "length", "/"],
    "no name": ["-c", "length", ""],
    "an unknown protocol": ["-c", "length", "foo:x"],
    "a json: name": [
        "-c",
        "read -P 34 128k 1",
        'json:{"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2"}}',
    ],
    "options": ["--image-opts", "-c", "length", "driver=qcow2,file.filename=disk.qcow2"],
    "options without a driver": ["--image-opts", "-c", "length", "file.filename=disk.qcow2"],
    "options and -f": ["--image-opts", "-f", "raw", "-c", "length", "driver=qcow2,file.filename=disk.qcow2"],
    "options that are none": ["--image-opts", "-c", "length", "disk.qcow2"],
    "options, read-only": ["--image-opts", "-c", "length", "driver=qcow2,file.filename=disk.qcow2,read-only=on"],
    "open with options": ["--image-opts", "-c", "open -r driver=qcow2,file.filename=disk.qcow2", "-c", "length"],
    "open -o with options": ["--image-opts", "-c", "open -o driver=qcow2 disk.qcow2"],
    "open -o": ["-c", "open -o driver=raw disk.qcow2", "-c", "alloc 0 1"],
    "open -o without a name": ["-c", "open -o driver=raw -o file.filename=disk.raw", "-c", "length"],
    "open -o, refused": ["-c", "open -o foo=bar disk.qcow2", "-c", "open -o driver=foo disk.qcow2", "-c", "open -r"],
    "open, wrong words": [
        "-c",
        "open -t x a",
        "-c",
        "open -d x a",
        "-c",
        "open -i x a",
        "-c",
        "open -x",
        "-c",
        "open a b",
    ],
    "cache mode": ["-t", "foo", "disk.qcow2"],
    "cache mode none": ["-n", "-c", "read -P 34 128k 1000", "disk.qcow2"],
    "discard mode": ["-d", "foo", "disk.qcow2"],
    "aio mode": ["-i", "foo", "disk.qcow2"],
    "aio mode native without cache.direct": ["-k", "-c", "length", "disk.qcow2"],
    "aio mode native": ["-n", "-k", "-c", "length", "disk.qcow2"],
    "-U writable": ["-U", "-c", "length", "disk.qcow2"],
    "-U": ["-U", "-r", "-c", "length", "disk.qcow2"],
    "-U against the options": ["--image-opts", "-r", "-U", "driver=qcow2,file.filename=disk.qcow2,force-share=off"],
    "-C read-only": ["-C", "-r", "-c", "length", "disk.qcow2"],
    "-C": ["-C", "-c", "read -q -P 17 0 64k", "-c", "map", "disk.qcow2"],
    "-s": ["-s", "-c", "write -q -P 1 0 64k", "-c", "read -q -P 1 0 64k", "-c", "map", "disk.qcow2"],
    "-s read-only": ["-s", "-r", "-c", "write 0 1", "disk.qcow2"],
    "trace events": ["--trace", "foo", "-T", "foo*", "-c", "length", "disk.qcow2"],
    "trace, wrong": ["--trace", "a=b", "-c", "length", "disk.qcow2"],
}


@pytest.mark.parametrize("case", FORMATS)
def test_a_way_to_open(case, twins, ours, theirs, monkeypatch):
    seen = []
    for folder, run in zip(twins, (ours, theirs), strict=True):
        monkeypatch.chdir(folder)
        done = run(*FORMATS[case])
        seen.append(Done(done.status, without_times(done.out), done.err))
    assert seen[0] == seen[1]
    oracle.assert_same(*(folder / "disk.qcow2" for folder in twins), fmts=("qcow2", "qcow2"))


def test_the_same_commands_with_the_same_arguments(ours, theirs):
    mine, other = ours("-c", "help"), theirs("-c", "help")
    assert [line.split() for line in mine.out.splitlines()] == [line.split() for line in other.out.splitlines()]


@pytest.mark.parametrize("args", [["--foo"], ["-x"], ["-c"], ["--c"], ["--help=1"], ["a", "b"], ["--", "a", "-r"]])
def test_a_wrong_command_line(args, ours, theirs):
    mine, other = ours(*args), theirs(*args)
    # What the C library says begins with the whole path of the program.
    assert (mine.status, mine.err) == (other.status, other.err.replace(f"{oracle.find('qemu-io')}: ", "qemu-io: "))
    assert mine.out.startswith("Usage: qemu-io ")
    assert other.out.startswith("Usage: qemu-io ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "commands",
    [
        "",
        "length\nread 0 1\n",
        "length\nread -P 3 0 1",
        "\n\nlength\n",
        "foo\nread 0 x\nl\nquit\nlength\n",
        "close\nl\n",
    ],
)
def test_at_the_prompt(commands, twins, program):
    pipe = subprocess.PIPE
    images = [str(folder / "disk.raw") for folder in twins]
    mine = program("-f", "raw", images[0])
    other = subprocess.Popen([oracle.find("qemu-io"), "-f", "raw", images[1]], stdin=pipe, stdout=pipe, stderr=pipe)
    seen = []
    for process in (mine, other):
        out, err = process.communicate(commands.encode(), timeout=30)
        seen.append((process.returncode, without_times(out.decode()), err.decode()))
    assert seen[0] == seen[1]
