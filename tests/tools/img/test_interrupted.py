"""SIGINT, SIGTERM and SIGHUP: nothing half made is taken for whole, no lock stays, and every image is sound.

Some cases slow the command down and wait until it has changed a file: there the signal comes in the middle for certain.
The others take as long as they take, and the signal comes at a random moment; the seed is in the name of the test.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.oracle import qemu_img, qemu_io

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SECONDS = 30
MIB = 1 << 20

_SLOW_WRITES = ["--object", "throttle-group,id=slow,x-bps-write=1048576"]


def _throttled(name: str, format: str) -> str:
    return f"driver={format},file.driver=throttle,file.throttle-group=slow,file.file.filename={name}"


def _begin(folder: Path, *argv: str) -> "subprocess.Popen[str]":
    """Begin a command; returns once the program is there, so that signals are its own affair."""
    code = "import sys; from aioblock.tools.img import main; sys.argv[0] = 'aioblock-img'; open('.begun', 'x'); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "sys.exit(main())", *argv],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _until(process, (folder / ".begun").exists)
    (folder / ".begun").unlink()
    return process


def _end(process: "subprocess.Popen[str]", signum: int | None) -> tuple[int, str]:
    if signum is not None:
        process.send_signal(signum)
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, err


def _state(path: Path) -> tuple[int, ...]:
    """What changes when it is written. Its blocks do not count: the filesystem changes those afterwards, by itself."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_size, found.st_mtime_ns


def _blocks(path: Path) -> int:
    """How much storage it takes, in units of 512 bytes."""
    return path.stat().st_blocks if path.exists() else 0


def _until(process: "subprocess.Popen[str]", changed: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not changed():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)  # another process is waited for, which tells nothing


def _sound(folder: Path, *names: str) -> None:
    """The images are clean, and nobody holds a lock on them."""
    for name in names:
        format = "raw" if name.endswith(".raw") else "qcow2"
        if format == "qcow2":
            qemu_img("check", "-f", format, folder / name)
        qemu_io(folder / name, "read 0 512", fmt=format)


def _content(folder: Path, name: str) -> bytes:
    out = folder / "content"
    qemu_img("convert", "-O", "raw", folder / name, out)
    data = out.read_bytes()
    out.unlink()
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """base.raw, under.qcow2 <- over.qcow2 (with snapshots), old.qcow2 and old.raw."""
    (tmp_path / "base.raw").write_bytes(random.Random(1).randbytes(8 * MIB))
    for name, words in (
        ("under.qcow2", ["-o", "cluster_size=4k"]),
        ("over.qcow2", ["-o", "cluster_size=4k", "-b", "under.qcow2", "-F", "qcow2"]),
        ("old.qcow2", []),
    ):
        qemu_img("create", "-q", "-f", "qcow2", *words, tmp_path / name, "8M")
        qemu_io(tmp_path / name, f"write -P {len(name)} 0 6M", "write -z 1M 1M", fmt="qcow2")
    qemu_img("snapshot", "-c", "then", tmp_path / "over.qcow2")
    qemu_io(tmp_path / "over.qcow2", "write -P 77 3M 3M", fmt="qcow2")
    (tmp_path / "old.raw").write_bytes(b"old" * MIB)
    return tmp_path


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize(
    "line",
    [
        "convert -r 2M -m 1 -O qcow2 base.raw new",
        "convert -r 2M -m 1 -c -O qcow2 base.raw new",
        "convert -r 2M -O raw over.qcow2 new",
        "convert -r 2M -O qcow2 -o data_file=new.data,data_file_raw=on base.raw new",
        "convert -p -r 2M -m 1 -O raw base.raw base.raw new",
    ],
)
def test_a_new_target_is_removed(folder, line, signum):
    process = _begin(folder, *line.split())
    watched = folder / ("new.data" if "data_file" in line else "new")
    _until(process, lambda: _blocks(watched) > 64)
    assert _end(process, signum) == (128 + signum, "")
    assert not watched.exists() and not (folder / "new").exists()
    _sound(folder, "base.raw", "over.qcow2")


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("convert -r 2M -m 1 -O qcow2 base.raw old.qcow2", "old.qcow2"),
        ("convert -r 2M -m 1 -O raw base.raw old.raw", "old.raw"),
        ("convert -r 2M -m 1 -n -O qcow2 base.raw old.qcow2", "old.qcow2"),
        ("convert -r 2M -m 1 -n -O raw under.qcow2 base.raw", "base.raw"),
    ],
)
def test_a_target_that_was_there_is_named(folder, line, target, signum):
    before = _state(folder / target)
    process = _begin(folder, *line.split())
    _until(process, lambda: _state(folder / target) != before)
    status, err = _end(process, signum)
    assert status == 128 + signum
    assert f"'{target}'" in err and "incomplete" in err
    if "-n" in line or qemu_img("info", "-f", target[4:], folder / target, check=False).returncode == 0:
        _sound(folder, target)


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("line", ["commit -r 2M over.qcow2", "commit -d -r 2M over.qcow2"])
def test_commit_leaves_the_disk_as_it_was(folder, line, signum):
    content, before = _content(folder, "over.qcow2"), _state(folder / "under.qcow2")
    process = _begin(folder, *line.split())
    _until(process, lambda: _state(folder / "under.qcow2") != before)
    assert _end(process, signum) == (128 + signum, "")
    _sound(folder, "over.qcow2", "under.qcow2")
    assert _content(folder, "over.qcow2") == content


@pytest.mark.parametrize("signum", SIGNALS)
def test_rebase_leaves_the_disk_as_it_was(folder, signum):
    qemu_img("create", "-q", "-f", "qcow2", "-b", "under.qcow2", "-F", "qcow2", folder / "thin.qcow2")
    content, before = _content(folder, "thin.qcow2"), _state(folder / "thin.qcow2")
    argv = ["rebase", *_SLOW_WRITES, "--image-opts", "-b", "", _throttled("thin.qcow2", "qcow2")]
    process = _begin(folder, *argv)
    _until(process, lambda: _state(folder / "thin.qcow2") != before)
    assert _end(process, signum) == (128 + signum, "")
    _sound(folder, "thin.qcow2", "under.qcow2")
    assert _content(folder, "thin.qcow2") == content


@pytest.mark.parametrize("signum", SIGNALS)
def test_bench_leaves_a_sound_image(folder, signum):
    before = _state(folder / "old.qcow2")
    argv = ["bench", *_SLOW_WRITES, "-w", "-c", "100000", "--image-opts", _throttled("old.qcow2", "qcow2")]
    process = _begin(folder, *argv)
    _until(process, lambda: _state(folder / "old.qcow2") != before)
    assert _end(process, signum)[0] == 128 + signum
    _sound(folder, "old.qcow2")


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_create_with_preallocation_leaves_no_file(folder, format, signum):
    process = _begin(folder, "create", "-q", "-f", format, "-o", "preallocation=full", "new", "2G")
    _until(process, lambda: _blocks(folder / "new") > 4096)
    status, _ = _end(process, signum)
    assert status == 128 + signum
    assert not (folder / "new").exists()


RANDOM = {
    "resize": "resize --preallocation=full old.qcow2 +100M",
    "resize-raw": "resize -f raw --preallocation=full old.raw +100M",
    "shrink": "resize --shrink under.qcow2 1M",
    "amend-narrow": "amend -o refcount_bits=64 under.qcow2",
    "amend-down": "amend -o compat=0.10 under.qcow2",
    "snapshot-create": "snapshot -c now over.qcow2",
    "snapshot-apply": "snapshot -a then over.qcow2",
    "snapshot-delete": "snapshot -d then over.qcow2",
    "check": "check -r all over.qcow2",
    "compare": "compare under.qcow2 over.qcow2",
    "convert": "convert -O qcow2 over.qcow2 new",
    "convert-compressed": "convert -c -O qcow2 over.qcow2 new",
    "commit": "commit over.qcow2",
    "rebase": "rebase -b  over.qcow2",
    "dd": "dd -O qcow2 if=over.qcow2 of=new",
    "create": "create -q -f qcow2 -o preallocation=full new 64M",
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RANDOM)
def test_at_any_moment(folder, name, seed):
    chance = random.Random(f"{name} {seed}")
    argv = RANDOM[name].split(" ")
    names = ["under.qcow2", "over.qcow2", "old.qcow2"]
    before = {one: _content(folder, one) for one in names}
    process = _begin(folder, *argv)
    time.sleep(chance.uniform(0, 0.5))  # the moment is the point
    signum = chance.choice(SIGNALS)
    status, err = _end(process, signum)
    assert status in (0, 1 if argv[0] == "compare" else 0, 128 + signum, -signum), err
    _sound(folder, *names)
    if (folder / "new").exists():  # then it is whole
        assert status == 0
        _sound(folder, "new")
    elif status == 0:
        assert argv[-1] != "new"
    for one in names:
        after = _content(folder, one)
        if name in ("resize", "shrink", "snapshot-apply") and one in argv:
            continue
        if name == "commit" and one == "under.qcow2":
            continue  # what is committed shows here, sooner or later
        assert after[: len(before[one])] == before[one], one
    if name == "snapshot-apply" and status != 0:
        assert _content(folder, "over.qcow2")[:MIB] == before["over.qcow2"][:MIB]
    if name == "shrink":
        after = _content(folder, "under.qcow2")
        assert after == before["under.qcow2"][: len(after)] and len(after) in (MIB, 8 * MIB)
