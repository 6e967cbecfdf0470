"""The disks that are converted: 1 GiB, half of it data, random bytes and text in turns with holes."""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["Disks", "disks"]

MIB = 1 << 20


class Disks(NamedTuple):
    """The same content as a raw file with holes, as qcow2, and as qcow2 with compressed clusters; and room beside."""

    raw: Path
    qcow2: Path
    packed: Path
    folder: Path


def _text(rng: random.Random) -> bytes:
    """A MiB that deflate makes about half as long: words of a small language."""
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 11))) for _ in range(4000)]
    return " ".join(rng.choices(words, k=200_000)).encode()[:MIB].ljust(MIB)


def _write(path: Path, mib: int) -> None:
    rng = random.Random(5)
    texts = [_text(rng) for _ in range(16)]
    with path.open("wb") as file:
        file.truncate(mib * MIB)
        at = kind = 0
        while at < mib:
            run = min(rng.randrange(1, 9), mib - at)
            file.seek(at * MIB)
            for number in range(run):
                if kind == 0:
                    file.write(os.urandom(MIB))
                elif kind == 2:
                    file.write(texts[(at + number) % len(texts)])
                else:
                    file.seek(MIB, os.SEEK_CUR)
            at, kind = at + run, (kind + 1) % 4


@contextmanager
def disks(mib: int = 1024) -> Iterator[Disks]:
    """Make them, and have them in the page cache."""
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        folder = Path(where)
        made = Disks(folder / "disk.raw", folder / "disk.qcow2", folder / "packed.qcow2", folder)
        # By a process of its own: what one held before it became another program counts as that one's peak memory.
        subprocess.run([sys.executable, "-m", "benchmarks.disks", made.raw, str(mib)], check=True)
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
        subprocess.run([*convert, made.raw, made.qcow2], check=True)
        subprocess.run([*convert, "-c", made.raw, made.packed], check=True)
        for path in made[:3]:
            with path.open("rb") as file:
                while file.read(MIB):
                    pass
        yield made


if __name__ == "__main__":
    _write(Path(sys.argv[1]), int(sys.argv[2]))
