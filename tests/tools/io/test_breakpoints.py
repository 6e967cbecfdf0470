"""Breakpoints, and the end of the program as by a crash: the same commands through qemu-io, on twin images."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit import oracle

from .conftest import Done, without_times

WRITE = "aio_write 0 512"
RAW = ("-f", "raw", "blkdebug::a.raw")
QCOW2 = ("blkdebug::q.qcow2",)
DIRECT = ("--image-opts", "driver=blkdebug,image.driver=file,image.filename=a.raw,align=512")

SCRIPTS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "suspend, wait, resume": (RAW, ["break pwritev A", WRITE, "wait_break A", "resume A", "aio_flush"]),
    "resume without waiting": (RAW, ["break pwritev A", WRITE, "resume A", "aio_flush"]),
    "no such event, tag, request": (RAW, ["break foo A", "resume A", "remove_break A", "break pwritev A", "resume A"]),
    "removed": (RAW, ["break pwritev A", "remove_break A", "remove_break A", "write 0 512"]),
    "two tags": (
        RAW,
        [
            "break pwritev A",
            "break pwritev B",
            WRITE,
            "wait_break A",
            "resume A",
            "wait_break B",
            "resume B",
            "aio_flush",
        ],
    ),
    "one tag twice": (
        RAW,
        [
            "break pwritev A",
            "break pwritev A",
            WRITE,
            "wait_break A",
            "resume A",
            "wait_break A",
            "resume A",
            "aio_flush",
        ],
    ),
    "removed while it holds": (RAW, ["break pwritev A", WRITE, "wait_break A", "remove_break A", "aio_flush"]),
    "wrong number of words": (RAW, ["break pwritev", "resume", "wait_break", "remove_break", "break a b c"]),
    "no filter": (("-f", "raw", "a.raw"), ["break pwritev A", "remove_break A", "resume A"]),
    "read, modify, write": (
        DIRECT,
        [
            "break pwritev_rmw_head A",
            "aio_write 100 10",
            "wait_break A",
            "resume A",
            "aio_flush",
            "break pwritev_rmw_after_tail A",
            "aio_write 512 10",
            "wait_break A",
            "resume A",
            "aio_flush",
        ],
    ),
    "signals that are none": (("-f", "raw", "a.raw"), ["sigraise 99", "sigraise x", "sigraise -1", "sigraise 0"]),
} | {
    event: (
        QCOW2,
        [
            "write 0 64k",
            "close",
            "open blkdebug::q.qcow2",
            f"break {event} A",
            command,
            "wait_break A",
            "resume A",
            "aio_flush",
        ],
    )
    for event, command in {
        "write_aio": "aio_write 0 512",
        "read_aio": "aio_read 0 512",
        "l2_load": "aio_write 64k 512",
        "cluster_alloc": "aio_write 64k 64k",
        "l2_update": "aio_write 64k 64k",
        "refblock_load": "aio_write 64k 64k",
        "refblock_update_part": "aio_write 64k 64k",
        "flush_to_os": "aio_write 0 512",
        "pwritev_done": "aio_write 0 512",
    }.items()
}


@pytest.fixture
def images(home: Path) -> Path:
    with (home / "a.raw").open("wb") as file:
        file.truncate(1 << 20)
    oracle.qemu_img("create", "-f", "qcow2", home / "empty.qcow2", "1M")
    return home


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("name", SCRIPTS)
def test_like_qemu_io(images: Path, ours: Callable[..., Done], theirs: Callable[..., Done], name: str) -> None:
    image, commands = SCRIPTS[name]
    arguments = [word for command in commands for word in ("-c", command)]
    found = []
    for program in (theirs, ours):
        (images / "q.qcow2").write_bytes((images / "empty.qcow2").read_bytes())
        status, out, err = program(*arguments, *image)
        found.append((status, without_times(out), err, (images / "a.raw").read_bytes()))
    assert found[1] == found[0]


def test_waiting_where_nothing_can_be_suspended_fails(images: Path, ours: Callable[..., Done]) -> None:
    done = ours("-f", "raw", "-c", "wait_break A", "a.raw")  # QEMU's program waits for ever
    assert (done.status, done.out) == (1, "Could not wait for a breakpoint: Operation not supported\n")


def test_a_difference_ends_the_program(home: Path, program: Callable[..., "subprocess.Popen[bytes]"]) -> None:
    (home / "a.raw").write_bytes(bytes(4096))
    (home / "b.raw").write_bytes(bytes(1000) + b"x" + bytes(3095))
    options = "driver=blkverify,raw.driver=file,raw.filename=a.raw,test.driver=file,test.filename=b.raw"
    process = program("--image-opts", "-c", "read 0 512", "-c", "read 512 512", "-c", "read 0 512", options)
    out, err = process.communicate()
    assert process.returncode == 1
    assert out.startswith(b"read 512/512 bytes at offset 0\n")
    assert out.count(b"\n") == 2
    assert err == b"blkverify: read offset=512 bytes=512 contents mismatch at offset 1000\n"


@pytest.mark.parametrize(("command", "status"), [("abort", -6), ("sigraise 15", -15)])
def test_a_crash_flushes_nothing(
    home: Path, program: Callable[..., "subprocess.Popen[bytes]"], command: str, status: int
) -> None:
    oracle.qemu_img("create", "-f", "qcow2", home / "q.qcow2", "1M")
    before = (home / "q.qcow2").read_bytes()
    process = program("-t", "writeback", "-c", "write 0 64k", "-c", command, "-c", "length", "q.qcow2")
    out, _ = process.communicate()
    assert process.returncode == status
    # What abort leaves in the buffers is lost, as with QEMU's program.
    assert b"wrote 65536/65536" in out if command == "sigraise 15" else not out
    assert not out.endswith(b"\n1 MiB\n")
    assert (home / "q.qcow2").read_bytes()[: len(before)] == before
