"""Checking a qcow2 image of 256 GiB, half of it allocated in runs of random length."""

import subprocess
import tempfile
from pathlib import Path

from benchmarks.chains import half
from benchmarks.peers import ROUNDS, measured, need, ours, report

GIB = 256


def main() -> None:
    """In turns with the peer."""
    if not need("qemu-img"):
        return
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        image = str(half(Path(where), GIB))
        subprocess.run(["qemu-img", "check", "-q", "-r", "all", image], check=True, capture_output=True)
        mine, peer = [], []
        for _ in range(ROUNDS):
            mine.append(measured(ours("aioblock-img"), "check", image))
            peer.append(measured("qemu-img", "check", image))
        report(f"check, {GIB} GiB", [used.wall for used in mine], [used.wall for used in peer])


if __name__ == "__main__":
    main()
