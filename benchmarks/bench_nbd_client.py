"""Reading and writing over NBD, from nbdkit's memory: `aioblock-img bench` beside `qemu-img bench`; a copy."""

import os
import signal
import subprocess
import tempfile
from pathlib import Path

from benchmarks.peers import ROUNDS, measured, need, ours, printed_seconds, report

CASES = {
    "4 KiB reads, depth 1": ("-c", "20000", "-d", "1", "-S", "1052672"),
    "4 KiB reads, depth 64": ("-c", "100000", "-d", "64", "-S", "1052672"),
    "4 KiB writes, depth 64": ("-w", "-c", "100000", "-d", "64", "-S", "1052672"),
    "1 MiB reads, depth 8": ("-c", "4000", "-d", "8", "-s", "1048576"),
}


def main() -> None:
    """In turns with the peer, on the same server."""
    if not (need("nbdkit") and need("qemu-img")):
        return
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        socket, pid = Path(where) / "socket", Path(where) / "pid"
        subprocess.run(["nbdkit", "--pidfile", pid, "--unix", socket, "memory", "1G"], check=True)
        uri = f"nbd+unix:///?socket={socket}"
        try:
            for case, words in CASES.items():
                mine, peer = [], []
                for _ in range(ROUNDS):
                    mine.append(printed_seconds(ours("aioblock-img"), "bench", "-f", "raw", *words, uri))
                    peer.append(printed_seconds("qemu-img", "bench", "-f", "raw", *words, uri))
                report(case, mine, peer)
            subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 1G", uri], check=True, stdout=subprocess.DEVNULL)
            mine, peer = [], []
            for _ in range(ROUNDS):
                for program, times in ((ours("aioblock-img"), mine), ("qemu-img", peer)):
                    target = Path(where) / "target"
                    words = ("convert", "-f", "raw", "-O", "raw", uri, str(target))
                    times.append(measured(program, *words).wall)
                    target.unlink()
            report("convert to a file", mine, peer)
        finally:
            os.kill(int(pid.read_text()), signal.SIGTERM)


if __name__ == "__main__":
    main()
