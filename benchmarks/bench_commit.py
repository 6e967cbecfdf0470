"""Committing 400 MiB from one qcow2 layer into the next, flushes included."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.peers import ROUNDS, Used, measured, need, ours, report

MIB = 400


def main() -> None:
    """In turns with the peer, each with a fresh copy of the images that is on the disk already."""
    if not need("qemu-img"):
        return
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        folder = Path(where)
        base, top, content = folder / "base", folder / "top", folder / "content"
        with content.open("wb") as file:
            for _ in range(MIB):
                file.write(os.urandom(1 << 20))
        create = ["qemu-img", "create", "-q", "-f", "qcow2"]
        subprocess.run([*create, base, "1G"], check=True)
        subprocess.run([*create, "-b", "base", "-F", "qcow2", top], check=True)
        subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", content, top], check=True)
        content.unlink()
        for path in (base, top):
            shutil.copy(path, f"{path}.kept")
        mine: list[Used] = []
        peer: list[Used] = []
        for _ in range(ROUNDS):
            for program, used in ((ours("aioblock-img"), mine), ("qemu-img", peer)):
                for path in (base, top):
                    shutil.copy(f"{path}.kept", path)
                os.sync()
                used.append(measured(program, "commit", "-q", str(top)))
        report(f"commit of {MIB} MiB", [used.wall for used in mine], [used.wall for used in peer])
        report("  processor time", [used.processor for used in mine], [used.processor for used in peer])


if __name__ == "__main__":
    main()
