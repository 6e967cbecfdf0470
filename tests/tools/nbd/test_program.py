"""aioblock-nbd as users run it, beside qemu-nbd."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aioblock.exports.nbd.kernel import DeviceCalls, disconnect_device
from aioblock.tools.nbd import main
from tests.kit import oracle
from tests.kit.fake_kernel import DEVICE, FakeKernel

PROGRAM = [
    sys.executable,
    "-c",
    "import sys; from aioblock.tools.nbd import main; sys.argv[0] = 'qemu-nbd'; sys.exit(main())",
]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with a short name, and an image in it."""
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        monkeypatch.chdir(name)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
        Path("x.raw").write_bytes(bytes(1 << 20))
        yield Path(name)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A run in this process, called qemu-nbd: status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/qemu-nbd"])

    def run(*args: str) -> tuple[int, str, str]:
        status = main(args)
        return status, *capsys.readouterr()

    return run


WRONG = [
    "",
    "x.raw y.raw",
    "-e foo x.raw",
    "-e -1 x.raw",
    "-e 99999999999 -f raw x.raw",
    "-p -1 -f raw x.raw",
    "--cache= -f raw x.raw",
    "-s -l 1 -f raw x.raw",
    "-o foo x.raw",
    "-o 10M x.raw",
    "-k relative x.raw",
    "-f foo x.raw",
    "-f raw -o 2097152 -k {folder}/s x.raw",
    "--cache=foo x.raw",
    "--cache=none --cache=unsafe x.raw",
    "-n --cache=none x.raw",
    "--aio=foo x.raw",
    "--aio=native -f raw x.raw",
    "--discard=foo x.raw",
    "--detect-zeroes=foo x.raw",
    "--detect-zeroes=unmap x.raw",
    "-l snapshot.foo=x x.raw",
    "-f raw -l sn x.raw",
    "--image-opts -f raw x.raw",
    "-f raw -B nope -k {folder}/s x.raw",
    "-L x.raw",
    "-L -x name",
    "-L --fork",
    "-L -n",
    "-L --cache=none",
    "-L --aio=native",
    "-L --discard=unmap",
    "-L -c /dev/nonexistent",
    "-L -d",
    "-L -s -k {folder}/none",
    "-L --image-opts -k {folder}/none",
    "-L -k {folder}/none",
    "-L -b 127.0.0.1 -p 1",
    "-v -c /dev/nonexistent -f raw x.raw",
    "-d /dev/nonexistent",
    "-d",
    "--tls-creds x -f raw x.raw",
    "--tls-authz x x.raw",
    "--tls-hostname x x.raw",
    "--tls-hostname x --tls-creds y x.raw",
    "--tls-creds x -c /dev/nonexistent x.raw",
    "--object foo x.raw",
    "-f raw -k {folder}/none/s x.raw",
    "-f raw -k {folder}/" + "y" * 120 + " x.raw",
    "-f raw --pid-file={folder}/none/p -k {folder}/s x.raw",
    "-f raw -b 192.0.2.1 x.raw",
    "-f raw nonexistent",
    "--image-opts driver=raw,file.driver=file,file.filename=nonexistent",
    "-x " + "y" * 4097 + " x.raw",
    "-D " + "y" * 4097 + " x.raw",
    "-z",
    "--foo",
    "-x",
]


@pytest.mark.oracle
@pytest.mark.parametrize("line", WRONG)
def test_complaints_are_those_of_qemu(folder: Path, ours: Callable[..., tuple[int, str, str]], line: str) -> None:
    words = line.format(folder=folder).split()
    done = oracle.run("qemu-nbd", *words, check=False)
    status, _, complaint = ours(*words)
    assert (status, complaint) == (done.returncode, done.stderr.replace(done.args[0], "qemu-nbd"))


def test_help_and_version(ours: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = ours("--help")
    assert (status, out.splitlines()[0]) == (0, "Usage: qemu-nbd [OPTIONS] FILE")
    status, out, _ = ours("-V")
    assert (status, out.split()[:2]) == (0, ["qemu-nbd", "version"])


def test_a_device_that_is_none_cannot_be_disconnected(ours: Callable[..., tuple[int, str, str]]) -> None:
    status, _, complaint = ours("-d", "/dev/null")
    assert status == 1
    assert complaint == "qemu-nbd: Failed to disconnect /dev/null: Inappropriate ioctl for device\n"


# Servers


def started(*words: str, **how: object) -> "subprocess.Popen[str]":
    process = subprocess.Popen([*PROGRAM, *words], stderr=subprocess.PIPE, text=True, **how)  # type: ignore[call-overload]
    give_up = time.monotonic() + 30
    path = Path(words[words.index("-k") + 1])
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return process  # type: ignore[no-any-return]


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, complaint = process.communicate(timeout=30)
    return process.returncode, complaint


@pytest.mark.slow
@pytest.mark.oracle
def test_it_ends_with_its_last_client(folder: Path) -> None:
    process = started("-f", "raw", "-k", f"{folder}/s", "x.raw")
    assert oracle.run("nbdinfo", "--size", f"nbd+unix:///?socket={folder}/s").stdout == "1048576\n"
    assert ended(process) == (0, "")
    assert not (folder / "s").exists()


@pytest.mark.slow
@pytest.mark.oracle
def test_a_persistent_one_ends_when_it_is_told_to(folder: Path) -> None:
    process = started("-t", "-f", "raw", "-k", f"{folder}/s", "--pid-file", "p", "x.raw")
    for _ in range(2):
        oracle.run("nbdinfo", "--size", f"nbd+unix:///?socket={folder}/s")
    assert int(Path("p").read_text()) == process.pid
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "")


@pytest.mark.slow
@pytest.mark.oracle
def test_fork(folder: Path) -> None:
    words = ["--fork", "-t", "-k", f"{folder}/s", "--pid-file", "p", "x.raw"]
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    assert done.stderr.startswith("WARNING: Image format was not specified for 'x.raw'")
    pid = int(Path("p").read_text())
    try:
        assert oracle.run("nbdinfo", "--size", f"nbd+unix:///?socket={folder}/s").stdout == "1048576\n"
    finally:
        os.kill(pid, signal.SIGTERM)
    give_up = time.monotonic() + 30
    while (folder / "s").exists():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.slow
def test_fork_that_fails_says_why(folder: Path) -> None:
    words = ["--fork", "-f", "raw", "-k", f"{folder}/none/s", "x.raw"]
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == f"qemu-nbd: Failed to bind socket to {folder}/none/s: No such file or directory\n"


@pytest.mark.slow
@pytest.mark.oracle
def test_list_says_the_same(folder: Path) -> None:
    process = started("-t", "-e", "0", "-A", "-x", "name", "-D", "words", "-f", "raw", "-k", f"{folder}/s", "x.raw")
    theirs = oracle.run("qemu-nbd", "-L", "-k", f"{folder}/s").stdout
    done = subprocess.run([*PROGRAM, "-L", "-k", f"{folder}/s"], capture_output=True, text=True, timeout=30, check=True)
    process.terminate()
    assert ended(process)[0] == 0
    assert done.stdout == theirs


@pytest.mark.slow
@pytest.mark.oracle
def test_a_socket_from_outside(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{folder}/s")
        sock.listen()
        like_systemd = (
            f"import os, sys; os.dup2({sock.fileno()}, 3); os.set_inheritable(3, True);"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execv(sys.argv[1], sys.argv[1:])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", like_systemd, *PROGRAM, "-f", "raw", "x.raw"], pass_fds=[sock.fileno()]
        )
    assert oracle.run("nbdinfo", "--size", f"nbd+unix:///?socket={folder}/s").stdout == "1048576\n"
    assert process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.oracle
def test_a_snapshot(folder: Path) -> None:
    oracle.qemu_img("create", "-q", "-f", "qcow2", "x.qcow2", "1M")
    oracle.qemu_io("x.qcow2", "write -P 1 0 4k", fmt="qcow2")
    oracle.qemu_img("snapshot", "-c", "old", "x.qcow2")
    oracle.qemu_io("x.qcow2", "write -P 2 0 4k", fmt="qcow2")
    for words, pattern in ((["-l", "old"], 1), (["-l", "snapshot.name=old"], 1), (["-s"], 2), ([], 2)):
        process = started(*words, "-f", "qcow2", "-k", f"{folder}/s", "x.qcow2")
        options = ["-r"] if "-l" in words else []
        commands = [f"read -P {pattern} 0 4k", *(["write -P 3 0 4k"] if words == ["-s"] else [])]
        oracle.qemu_io(f"nbd+unix:///?socket={folder}/s", *commands, fmt="raw", options=options)
        assert ended(process) == (0, "")


# The kernel as the client: a fake one, there being no device here


@pytest.mark.parametrize("disconnected_by", ["-d", "SIGTERM"])
def test_a_device_of_the_kernel(
    folder: Path,
    ours: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    disconnected_by: str,
) -> None:
    fake = FakeKernel()
    for name in ("open", "close", "ioctl"):
        monkeypatch.setattr(DeviceCalls, name, getattr(fake, name))
    seen: list[bytes] = []

    def use() -> None:
        assert fake.running.wait(30)
        fake.write(512, b"hello")
        seen.append(fake.read(0, 1024))
        if disconnected_by == "-d":
            disconnect_device(DEVICE)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use)
    user.start()
    status, out, err = ours("-v", "-t", "-c", DEVICE, "-f", "raw", "x.raw")
    user.join(30)
    assert (status, out, err) == (0, "", f"NBD device {DEVICE} is now connected to x.raw\n")
    assert seen == [bytes(512) + b"hello" + bytes(507)]
    assert Path("x.raw").read_bytes()[512:517] == b"hello"
    assert fake.all_closed
    assert not fake.running.is_set()


@pytest.mark.slow
def test_a_device_goes_to_the_background_and_says_what_is_wrong(folder: Path) -> None:
    words = ["-c", "/dev/null", "-f", "raw", "x.raw"]
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == "qemu-nbd: Failed to set NBD socket: Inappropriate ioctl for device\n"
