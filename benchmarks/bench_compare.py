"""Comparing images of 1 GiB, half of it data, in the page cache: whole processes."""

from benchmarks.disks import disks
from benchmarks.peers import ROUNDS, measured, need, ours, report, report_memory


def main() -> None:
    """In turns with the peer; all the same, so that everything is read."""
    if not need("qemu-img"):
        return
    with disks() as made:
        for case, first, second in (
            ("raw with qcow2", made.raw, made.qcow2),
            ("qcow2 with itself", made.qcow2, made.qcow2),
            ("qcow2 with compressed", made.qcow2, made.packed),
        ):
            mine, peer = [], []
            for _ in range(ROUNDS):
                mine.append(measured(ours("aioblock-img"), "compare", str(first), str(second)))
                peer.append(measured("qemu-img", "compare", str(first), str(second)))
            report(case, [used.wall for used in mine], [used.wall for used in peer])
            report("  processor time", [used.processor for used in mine], [used.processor for used in peer])
            report_memory(mine, peer)


if __name__ == "__main__":
    main()
