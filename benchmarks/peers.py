"""Running our programs and their peers in turns, and what comes out of it: a ratio, with its spread."""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROUNDS = int(os.environ.get("ROUNDS", "5"))
_SECONDS = re.compile(r"completed in ([0-9.]+) seconds")


def ours(program: str) -> str:
    """One of the project's programs, from the environment that runs this."""
    return str(Path(sys.executable).parent / program)


def printed_seconds(*command: str) -> float:
    """Run a `bench` command; the seconds that it prints, so that its start-up does not count."""
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = _SECONDS.search(said)
    if found is None:
        raise RuntimeError(f"{command[0]} did not say how long it took: {said!r}")
    return float(found[1])


def wall_seconds(*command: str) -> float:
    """Run a command; how long it took, start-up included."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


class Used(NamedTuple):
    """What a process took: wall time and processor time in seconds, the most memory that it held in MiB.

    The last is no less than what this process held when it started the other one.
    """

    wall: float
    processor: float
    memory: float


def measured(*command: str) -> Used:
    """Run a command, start-up included."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Used(took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def report(case: str, mine: list[float], peer: list[float]) -> None:
    """A line: medians, the median of the rounds' ratios (above 1: we are faster), and their spread."""
    ratios = [theirs / our for our, theirs in zip(mine, peer, strict=True)]
    print(
        f"{case:<28} {statistics.median(mine):>8.3f} s {statistics.median(peer):>8.3f} s"
        f"   ratio {statistics.median(ratios):5.2f}   ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)"
    )


def report_memory(mine: list[Used], peer: list[Used]) -> None:
    """A line: the most memory of any round."""
    most = max(used.memory for used in mine), max(used.memory for used in peer)
    print(f"{'  peak memory':<28} {most[0]:>6.0f} MiB {most[1]:>6.0f} MiB")


def report_size(mine: int, peer: int) -> None:
    """A line: how long the results are."""
    print(f"{'  size of the result':<28} {mine >> 20:>6} MiB {peer >> 20:>6} MiB")


@contextmanager
def images(mib: int) -> Iterator[tuple[Path, Path]]:
    """A raw image of random data and a qcow2 one with the same content, in the page cache."""
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        raw, qcow2 = Path(where) / "disk.raw", Path(where) / "disk.qcow2"
        with raw.open("wb") as file, open("/dev/urandom", "rb") as noise:
            for _ in range(mib):
                file.write(noise.read(1 << 20))
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
        for path in (raw, qcow2):
            path.read_bytes()
        yield raw, qcow2


def uncache(path: Path) -> None:
    """Have the page cache forget a file: with O_DIRECT both sides would otherwise be slowed down by what it holds."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def need(program: str) -> bool:
    """Whether the peer is installed; says so if not."""
    if shutil.which(program):
        return True
    print(f"{program} is not installed: nothing to compare with")
    return False
