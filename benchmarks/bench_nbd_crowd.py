"""10,000 idle clients of one NBD server beside 1,000 that read: memory, latency, and how long it takes to end."""

from benchmarks.nbd_clients import elsewhere, idle, paced, raise_file_limit, serving
from benchmarks.peers import need, ours

IDLE = 10_000
ACTIVE = 1_000
RATE = 5_000
"""Reads of 4 KiB in a second, by all active ones together: about a twentieth of what either server can do."""
SECONDS = 8.0
_SPARE = 200


def _run(name: str, program: str) -> None:
    with serving(program, IDLE + ACTIVE + 1) as server, elsewhere(paced, server.path, ACTIVE, RATE, SECONDS) as active:
        active.recv()
        for idlers in (0, IDLE):
            if not idlers:
                active.send("alone")
                _, latency, late = active.recv()
                print(f"{name:<14} {ACTIVE} active alone        {latency}   {late} late")
                continue
            before = server.memory
            with elsewhere(idle, server.path, idlers) as sitting:
                took = sitting.recv()
                each = (server.memory - before) / idlers
                print(f"{name:<14} {idlers} idle ones came    {took:7.2f} s   {each / 1024:7.1f} KiB of memory each")
                active.send("beside")
                _, latency, late = active.recv()
                print(f"{name:<14} {ACTIVE} active beside them  {latency}   {late} late")
                print(f"{name:<14} stop with all of them  {server.stop():7.2f} s")


def main() -> None:
    """One server after the other."""
    if not raise_file_limit(IDLE + ACTIVE + _SPARE):
        print(f"RLIMIT_NOFILE does not let a process have {IDLE + ACTIVE + _SPARE} descriptors (ulimit -Hn)")
        return
    _run("aioblock-nbd", ours("aioblock-nbd"))
    if need("qemu-nbd"):
        _run("qemu-nbd", "qemu-nbd")


if __name__ == "__main__":
    main()
