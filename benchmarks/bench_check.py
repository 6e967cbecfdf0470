"""Checking a qcow2 image of 256 GiB, half of it allocated in runs of random length."""

import random
import subprocess
import tempfile
from pathlib import Path

from benchmarks.bench_map import fill
from benchmarks.peers import ROUNDS, measured, need, ours, report, report_memory

GIB = 256
CLUSTERS = GIB << 14


def half(folder: Path) -> Path:
    """The image: tables only, its data is a hole."""
    path = folder / "half.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{GIB}G"], check=True)
    rng = random.Random(11)
    clusters: list[int] = []
    at = 0
    while at < CLUSTERS:
        run = rng.randrange(1, 128)
        clusters += range(at, min(at + run, CLUSTERS))
        at += run + rng.randrange(1, 128)
    fill(path, clusters)
    subprocess.run(
        ["qemu-img", "check", "-q", "-r", "all", path], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return path


def main() -> None:
    """In turns with the peer."""
    if not need("qemu-img"):
        return
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        image = str(half(Path(where)))
        mine, peer = [], []
        for _ in range(ROUNDS):
            mine.append(measured(ours("aioblock-img"), "check", image))
            peer.append(measured("qemu-img", "check", image))
        report(f"check, {GIB} GiB", [used.wall for used in mine], [used.wall for used in peer])
        report_memory(mine, peer)


if __name__ == "__main__":
    main()
