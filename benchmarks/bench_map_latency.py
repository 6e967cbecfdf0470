"""Mapping a chain of 8 qcow2 layers, each behind an NBD server that takes 4 ms to answer a read."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.chains import scattered
from benchmarks.peers import ROUNDS, need, ours, report, wall_seconds

LAYERS = 8
DELAY = "4ms"
CASES = {
    "10 MiB, opening alone": (20, 65536),
    "4 GiB, 8 tables a layer": (8 * 8192 // LAYERS, 65536),
    "16 GiB, 32 tables a layer": (32 * 8192 // LAYERS, 65536),
    "64 GiB, 128 tables a layer": (128 * 8192 // LAYERS, 65536),
    "256 MiB, 4 KiB clusters": (128 * 512 // LAYERS, 4096),
}
"""How many extents a layer has, and the cluster size."""


def _socket(image: Path) -> Path:
    return image.with_suffix(".socket")


def _uri(image: Path) -> str:
    return f"nbd+unix:///?socket={_socket(image)}"


@contextmanager
def _served(image: Path) -> Iterator[None]:
    """A server for an image; it answers when this begins."""
    socket = _socket(image)
    command = ["nbdkit", "-f", "-r", "-U", socket, "--filter=delay", "file", image, f"rdelay={DELAY}"]
    with subprocess.Popen(command) as process:
        try:
            until = time.monotonic() + 10
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("nbdkit did not start")
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


def main() -> None:
    """Whole programs, in turns with the peer; both must print the same."""
    if not need("qemu-img") or not need("nbdkit"):
        return
    for name, (extents, cluster_size) in CASES.items():
        with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where, ExitStack() as servers:
            images = scattered(Path(where), LAYERS, extents, cluster_size, named=_uri)
            for image in images:
                servers.enter_context(_served(image))
            words = ("map", "--output=json", _uri(images[-1]))
            said = [subprocess.check_output((program, *words)) for program in (ours("aioblock-img"), "qemu-img")]
            if said[0] != said[1]:
                raise RuntimeError("the programs disagree")
            mine, peer = [], []
            for _ in range(ROUNDS):
                mine.append(wall_seconds(ours("aioblock-img"), *words))
                peer.append(wall_seconds("qemu-img", *words))
            report(name, mine, peer)


if __name__ == "__main__":
    main()
