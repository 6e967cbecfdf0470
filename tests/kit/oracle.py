"""QEMU's and libnbd's own programs: what they say is what our answers are compared with.

They are never needed to use the package, so a machine may lack them: `require` then skips the test and says why. Where
the environment variable CI is set they must be there, and a missing one is a failure.

Each call blocks its thread until the program ends. A test whose event loop must go on meanwhile (it serves the program)
calls these through `asyncio.to_thread`.
"""

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

__all__ = ["assert_clean", "assert_same", "find", "finished", "qemu_img", "qemu_io", "qemu_map", "require", "run"]

PathLike = str | os.PathLike[str]

#: The programs, and the Debian package that each one is in.
PROGRAMS = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "nbdinfo": "libnbd-bin",
    "nbdkit": "nbdkit",
    "fio": "fio",
    "cryptsetup": "cryptsetup-bin",
}

#: Seconds for one program: less than a test has, so that its output is seen.
TIMEOUT = 45

#: qemu-io ends with status 0 although one of these was printed.
_IO_COMPLAINTS = ("Pattern verification failed", "not found", "invalid option", "failed:")


def find(program: str) -> str | None:
    """The path of a program, looked for in PATH and where Debian keeps a server's programs."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def require(*programs: str) -> None:
    """Skip the running test unless all of the programs are there; where CI is set, fail it instead."""
    missing = [program for program in programs if find(program) is None]
    if not missing:
        return
    packages = sorted({PROGRAMS.get(program, program) for program in missing})
    reason = f"{', '.join(missing)} not installed (Debian: {' '.join(packages)})"
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{reason}, and CI is set", pytrace=False)
    pytest.skip(reason)


def run(program: str, *args: PathLike, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. With `check`, an exit status other than 0 fails the test and shows what was printed."""
    require(program)
    done = finished([find(program) or program, *(os.fspath(arg) for arg in args)])
    if check and done.returncode != 0:
        pytest.fail(_describe(done), pytrace=True)
    return done


def finished(
    argv: Sequence[str], cwd: PathLike | None = None, *, program: str | None = None, newline: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. QEMU's cannot always measure their own speed on a busy machine: those are asked again.

    `program`: the one to run where `argv[0]` is another name for it. `newline`: as in `io.TextIOWrapper`.
    """
    for _ in range(20):
        done = subprocess.run(
            argv,
            executable=program,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            env=os.environ | {"LC_ALL": "C"},
            check=False,
        )
        if b"Unable to get accurate CPU usage" not in done.stderr:
            break
    out, err = (_text(data, newline) for data in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(argv, done.returncode, out, err)


def _text(data: bytes, newline: str | None) -> str:
    return io.TextIOWrapper(io.BytesIO(data), "utf-8", "backslashreplace", newline).read()


def qemu_img(*args: PathLike, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`qemu-img ARGS...`"""
    return run("qemu-img", *args, check=check)


def qemu_io(
    image: PathLike, *commands: str, fmt: str | None = None, options: Iterable[str] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run qemu-io commands on an image, e.g. `qemu_io(path, "write -P 7 0 64k", "flush", fmt="qcow2")`.

    `fmt=None` lets qemu-io probe. `options` go before the image: `["-r"]` read-only, `["-U"]` although it is in use.
    With `check`, a command that failed fails the test, also a pattern that did not match.
    """
    argv: list[PathLike] = [*options, *(["-f", fmt] if fmt else [])]
    for command in commands:
        argv += ["-c", command]
    done = run("qemu-io", *argv, image, check=check)
    if check and any(complaint in done.stdout + done.stderr for complaint in _IO_COMPLAINTS):
        pytest.fail(_describe(done), pytrace=True)
    return done


def qemu_map(
    image: PathLike, *, fmt: str | None = None, start: int | None = None, max_length: int | None = None
) -> list[dict[str, Any]]:
    """The runs that `qemu-img map --output=json` reports, in order."""
    argv: list[PathLike] = ["map", "--output=json", *(["-f", fmt] if fmt else [])]
    if start is not None:
        argv.append(f"--start-offset={start}")
    if max_length is not None:
        argv.append(f"--max-length={max_length}")
    runs: list[dict[str, Any]] = json.loads(qemu_img(*argv, image).stdout)
    return runs


def assert_clean(image: PathLike, fmt: str | None = None) -> None:
    """`qemu-img check` finds neither corruption nor leaked clusters."""
    qemu_img("check", *(["-f", fmt] if fmt else []), image)


def assert_same(
    a: PathLike, b: PathLike, fmts: tuple[str | None, str | None] = (None, None), strict: bool = False
) -> None:
    """`qemu-img compare` finds the same guest bytes in both; `strict`: the same size and allocation too."""
    argv: list[PathLike] = ["compare", *(["-s"] if strict else [])]
    for option, fmt in zip(("-f", "-F"), fmts, strict=True):
        if fmt:
            argv += [option, fmt]
    qemu_img(*argv, a, b)


def _describe(done: subprocess.CompletedProcess[str]) -> str:
    return f"{' '.join(done.args)}\nexit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip()
