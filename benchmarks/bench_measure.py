"""Measuring what disks of 1 GiB, half of it data, and an image of 256 GiB would take as qcow2: whole processes."""

from pathlib import Path

from benchmarks.bench_check import GIB, half
from benchmarks.disks import disks
from benchmarks.peers import ROUNDS, measured, need, ours, report


def main() -> None:
    """In turns with the peer."""
    if not need("qemu-img"):
        return
    with disks() as made:
        cases = {
            "raw": ("-f", "raw", str(made.raw)),
            "compressed qcow2": ("-f", "qcow2", str(made.packed)),
            f"qcow2 of {GIB} GiB": ("-f", "qcow2", str(half(Path(made.folder), GIB))),
        }
        for case, words in cases.items():
            mine, peer = [], []
            for _ in range(ROUNDS):
                mine.append(measured(ours("aioblock-img"), "measure", "-O", "qcow2", *words).wall)
                peer.append(measured("qemu-img", "measure", "-O", "qcow2", *words).wall)
            report(case, mine, peer)


if __name__ == "__main__":
    main()
