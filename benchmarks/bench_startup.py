"""Wall time of `aioblock-img info` on a qcow2 image, start-up included, beside `qemu-img info`."""

import subprocess
import tempfile
from pathlib import Path

from benchmarks.peers import need, ours, report, wall_seconds

ROUNDS = 15


def main() -> None:
    """In turns with the peer."""
    if not need("qemu-img"):
        return
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        image = str(Path(where) / "disk.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1G"], check=True)
        mine, peer = [], []
        for _ in range(ROUNDS):
            mine.append(wall_seconds(ours("aioblock-img"), "info", image))
            peer.append(wall_seconds("qemu-img", "info", image))
        report("info", mine, peer)


if __name__ == "__main__":
    main()
