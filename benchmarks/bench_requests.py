"""4 KiB requests all over a 1 GiB image: `aioblock-img bench` beside `qemu-img bench`, cached and O_DIRECT."""

import os

from benchmarks.peers import ROUNDS, images, need, ours, printed_seconds, report, uncache

BLOCK = 4096
STEP = 257 * BLOCK
"""No two requests that follow each other adjoin, nor lie in one cluster; and all blocks get their turn."""
CACHES = os.environ.get("CACHES", "writeback,none").split(",")
DEPTHS = tuple(int(depth) for depth in os.environ.get("DEPTHS", "1,4,16,64,256").split(","))


def _case(kind: str, engine: str, cache: str, depth: int, count: int) -> tuple[str, ...]:
    written = ("-w",) if kind == "writes" else ()
    step = BLOCK if kind == "sequential reads" else STEP
    return ("bench", *written, "-c", str(count), "-d", str(depth), "-s", str(BLOCK), "-S", str(step), "-t", cache) + (
        ("-i", engine) if engine else ()
    )


def main() -> None:
    """The images of both formats, in turns with each of the peer's engines."""
    if not need("qemu-img"):
        return
    with images(1024) as (raw, qcow2):
        for kind, cache, engines in (
            ("reads", "writeback", ("threads", "io_uring")),
            ("sequential reads", "writeback", ("threads",)),
            ("writes", "writeback", ("threads", "io_uring")),
            ("reads", "none", ("native",)),
            ("writes", "none", ("native",)),
        ):
            if cache not in CACHES:
                continue
            if cache == "none":
                uncache(raw)
                uncache(qcow2)
            for depth in DEPTHS:
                count = 2000 * min(depth, 16) if cache == "none" else 20_000 * min(depth, 4)
                for path, name in ((raw, "raw"), (qcow2, "qcow2")):
                    for engine in engines:
                        mine, peer = [], []
                        image = ("-f", name, str(path))
                        for _ in range(ROUNDS):
                            words = _case(kind, "", cache, depth, count)
                            mine.append(printed_seconds(ours("aioblock-img"), *words, *image))
                            words = _case(kind, engine, cache, depth, count)
                            peer.append(printed_seconds("qemu-img", *words, *image))
                        where = "cached" if cache == "writeback" else "O_DIRECT"
                        report(f"{where} {kind}, {name}, depth {depth}, {engine}", mine, peer)


if __name__ == "__main__":
    main()
