"""4 KiB reads of a cached 1 GiB image, depth 64: `aioblock-img bench` beside `qemu-img bench -i threads`."""

from benchmarks.peers import ROUNDS, images, need, ours, printed_seconds, report

OPTIONS = ("-c", "100000", "-d", "64", "-s", "4096", "-S", "8192", "-t", "writeback")


def main() -> None:
    """The images of both formats, in turns with the peer."""
    if not need("qemu-img"):
        return
    with images(1024) as (raw, qcow2):
        for path, name in ((raw, "raw"), (qcow2, "qcow2")):
            mine, peer = [], []
            for _ in range(ROUNDS):
                mine.append(printed_seconds(ours("aioblock-img"), "bench", *OPTIONS, "-f", name, str(path)))
                peer.append(printed_seconds("qemu-img", "bench", *OPTIONS, "-i", "threads", "-f", name, str(path)))
            report(f"{name}, 100,000 reads", mine, peer)


if __name__ == "__main__":
    main()
