"""Mapping 16 qcow2 layers with 50,000 extents each, scattered over one another, and 256 GiB half allocated."""

import tempfile
from pathlib import Path

from benchmarks.chains import half, scattered
from benchmarks.peers import ROUNDS, measured, need, ours, report

LAYERS = 16
EXTENTS = 50_000
GIB = 256


def main() -> None:
    """Both kinds of output, in turns with the peer."""
    if not need("qemu-img"):
        return
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        folder = Path(where)
        images = {f"{LAYERS} layers": scattered(folder, LAYERS, EXTENTS)[-1], f"{GIB} GiB": half(folder, GIB)}
        for name, image in images.items():
            for output in ("json", "human"):
                mine, peer = [], []
                for _ in range(ROUNDS):
                    mine.append(measured(ours("aioblock-img"), "map", f"--output={output}", str(image)))
                    peer.append(measured("qemu-img", "map", f"--output={output}", str(image)))
                report(f"{name}, {output}", [used.wall for used in mine], [used.wall for used in peer])
                report("  processor time", [used.processor for used in mine], [used.processor for used in peer])


if __name__ == "__main__":
    main()
