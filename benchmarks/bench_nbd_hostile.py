"""100 hostile clients of one NBD server beside 10 that read and write: what these notice, by kind and all together."""

import time

from benchmarks.nbd_clients import busy, elsewhere, serving
from benchmarks.nbd_hostile import KINDS, hostile
from benchmarks.peers import ours

GOOD = 10
HOSTILE = 100
WRITES = 0.3
SECONDS = 4.0
_WARM = 1.0


def _run(name: str, program: str) -> None:
    with serving(program, GOOD + HOSTILE + 100) as server, elsewhere(busy, server.path, GOOD, WRITES, SECONDS) as good:
        good.recv()
        good.send("alone")
        _, alone = good.recv()
        print(f"{name:<14} {'alone':<12} {alone}")
        for case, kinds in ({kind: [kind] for kind in KINDS} | {"all kinds": list(KINDS)}).items():
            # Of the least priority: they stand for other machines, which take no processor from the server.
            with elsewhere(hostile, server.path, kinds, HOSTILE, nice=19) as them:
                them.recv()
                time.sleep(_WARM)
                good.send(case)
                _, found = good.recv()
                worse = max(found.p50 / alone.p50, found.p99 / alone.p99, alone.rate / found.rate)
                print(f"{name:<14} {case:<12} {found}   {server.memory >> 20:5d} MiB   worse by {worse:4.1f}")
                if case == "all kinds":
                    print(f"{name:<14} stop with all of them {server.stop():.2f} s")


def main() -> None:
    """No peer beside it: qemu-nbd does not live through the clients that ask for much, and takes all memory before."""
    _run("aioblock-nbd", ours("aioblock-nbd"))


if __name__ == "__main__":
    main()
