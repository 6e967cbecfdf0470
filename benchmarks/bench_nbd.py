"""Serving a cached qcow2 image of 1 GiB over a Unix socket: fio's random reads and writes, nbdcopy of all of it."""

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers import ROUNDS, images, measured, need, ours, report

SECONDS = 3
MIB = 1024


class Served(NamedTuple):
    """A server that runs: where it listens, and its process."""

    socket: Path
    pid: int

    @property
    def uri(self) -> str:
        """Its only export."""
        return f"nbd+unix:///?socket={self.socket}"

    @property
    def processor(self) -> float:
        """The processor time that it has taken, in seconds (proc(5): utime and stime)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(program: str, *words: str, folder: Path) -> Iterator[Served]:
    """Serve an image until the block ends."""
    socket, pid = folder / "server.sock", folder / "server.pid"
    subprocess.run(
        [program, "--fork", f"--pid-file={pid}", "--persistent", "--shared=8", f"--socket={socket}", *words], check=True
    )
    number = int(pid.read_text())
    process = os.pidfd_open(number)
    try:
        yield Served(socket, number)
    finally:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        select.select([process], [], [])  # it closes the image, and is no child of ours
        os.close(process)
        socket.unlink(missing_ok=True)


def fio(uri: str, kind: str, depth: int, *, block: int = 4096) -> tuple[float, float]:
    """Random or sequential requests for some seconds: requests a second, and the 99th percentile in ms."""
    job = f"--name=job --ioengine=nbd --rw={kind} --bs={block} --iodepth={depth} --size=1g --norandommap --randseed=7"
    how = f"--time_based --runtime={SECONDS} --output-format=json"
    said = subprocess.run(
        ["fio", *job.split(), f"--uri={uri}", *how.split()], check=True, capture_output=True, text=True
    ).stdout
    job = json.loads(said[said.index("{") :])["jobs"][0]
    side = job["write" if "write" in kind else "read"]
    return side["iops"], side["clat_ns"]["percentile"]["99.000000"] / 1e6


def _compare_fio(case: str, kind: str, depth: int, image: Path, folder: Path) -> None:
    """Seconds of wall and of the server's processor for 100,000 requests."""
    wall: tuple[list[float], list[float]] = ([], [])
    processor: tuple[list[float], list[float]] = ([], [])
    late: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for which, program in enumerate((ours("aioblock-nbd"), "qemu-nbd")):
            with served(program, "-f", "qcow2", str(image), folder=folder) as server:
                before = server.processor
                iops, p99 = fio(server.uri, kind, depth)
                wall[which].append(100_000 / iops)
                processor[which].append((server.processor - before) / (iops * SECONDS) * 100_000)
                late[which].append(p99 / 1000)
    report(case, *wall)
    report("  server's processor", *processor)
    report("  99th percentile", *late)


def _compare_copy(case: str, image: Path, folder: Path) -> None:
    wall: tuple[list[float], list[float]] = ([], [])
    processor: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for which, program in enumerate((ours("aioblock-nbd"), "qemu-nbd")):
            with served(program, "-r", "-f", "qcow2", str(image), folder=folder) as server:
                before = server.processor
                wall[which].append(measured("nbdcopy", "--no-extents", server.uri, "null:").wall)
                processor[which].append(server.processor - before)
    report(case, *wall)
    report("  server's processor", *processor)


def main() -> None:
    """In turns with the peer; each gets a server of its own."""
    if not (need("qemu-nbd") and need("fio") and need("nbdcopy")):
        return
    with images(MIB) as (raw, qcow2):
        folder = raw.parent
        print("seconds for 100,000 requests of 4 KiB")
        for depth in (1, 32):
            _compare_fio(f"random reads, depth {depth}", "randread", depth, qcow2, folder)
            _compare_fio(f"random writes, depth {depth}", "randwrite", depth, qcow2, folder)
        _compare_copy("nbdcopy to null:", qcow2, folder)


if __name__ == "__main__":
    main()
