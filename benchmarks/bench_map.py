"""Mapping a chain of 16 qcow2 layers with 50,000 extents each, scattered over one another."""

import random
import struct
import subprocess
import tempfile
from pathlib import Path

from benchmarks.peers import ROUNDS, measured, need, ours, report

LAYERS = 16
EXTENTS = 50_000
CLUSTER = 65536
ENTRIES = CLUSTER // 8


def fill(path: Path, clusters: list[int]) -> None:
    """Give an empty image these guest clusters: tables written by hand, data that is a hole."""
    with path.open("r+b") as file:
        file.seek(36)
        l1_size, l1_offset = struct.unpack(">IQ", file.read(12))
        begin = -(-path.stat().st_size // CLUSTER) * CLUSTER
        tables = [bytearray(CLUSTER) for _ in range(l1_size)]
        data = begin + l1_size * CLUSTER
        for number, cluster in enumerate(clusters):
            entry = data + number * CLUSTER | 1 << 63
            struct.pack_into(">Q", tables[cluster // ENTRIES], cluster % ENTRIES * 8, entry)
        file.seek(l1_offset)
        file.write(struct.pack(f">{l1_size}Q", *(begin + n * CLUSTER | 1 << 63 for n in range(l1_size))))
        file.seek(begin)
        file.write(b"".join(tables))
        file.truncate(data + len(clusters) * CLUSTER)


def chain(folder: Path) -> Path:
    """The top of such a chain."""
    order = list(range(LAYERS * EXTENTS))
    random.Random(3).shuffle(order)
    path = None
    for number in range(LAYERS):
        backing = () if path is None else ("-b", path.name, "-F", "qcow2")
        path = folder / f"layer{number}"
        size = str(LAYERS * EXTENTS * CLUSTER)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, path, size], check=True, cwd=folder)
        fill(path, sorted(order[number * EXTENTS : (number + 1) * EXTENTS]))
    assert path is not None
    return path


def main() -> None:
    """Both kinds of output, in turns with the peer."""
    if not need("qemu-img"):
        return
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        top = chain(Path(where))
        for output in ("json", "human"):
            mine, peer = [], []
            for _ in range(ROUNDS):
                mine.append(measured(ours("aioblock-img"), "map", f"--output={output}", str(top)))
                peer.append(measured("qemu-img", "map", f"--output={output}", str(top)))
            report(f"map, {output}", [used.wall for used in mine], [used.wall for used in peer])
            report("  processor time", [used.processor for used in mine], [used.processor for used in peer])


if __name__ == "__main__":
    main()
