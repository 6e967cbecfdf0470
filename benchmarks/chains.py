"""qcow2 images made of tables only, and chains of them: their data is a hole."""

import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

__all__ = ["fill", "half", "scattered"]


def _by_name(path: Path) -> str:
    return path.name


def fill(path: Path, clusters: list[int], cluster_size: int = 65536) -> None:
    """Give an empty image these guest clusters: tables written by hand."""
    entries = cluster_size // 8
    with path.open("r+b") as file:
        file.seek(36)
        l1_size, l1_offset = struct.unpack(">IQ", file.read(12))
        begin = -(-path.stat().st_size // cluster_size) * cluster_size
        tables = [bytearray(cluster_size) for _ in range(l1_size)]
        data = begin + l1_size * cluster_size
        for number, cluster in enumerate(clusters):
            entry = data + number * cluster_size | 1 << 63
            struct.pack_into(">Q", tables[cluster // entries], cluster % entries * 8, entry)
        file.seek(l1_offset)
        file.write(struct.pack(f">{l1_size}Q", *(begin + n * cluster_size | 1 << 63 for n in range(l1_size))))
        file.seek(begin)
        file.write(b"".join(tables))
        file.truncate(data + len(clusters) * cluster_size)


def scattered(
    folder: Path, layers: int, extents: int, cluster_size: int = 65536, named: Callable[[Path], str] = _by_name
) -> list[Path]:
    """The images of such a chain, from the base to the top, each with as many `extents` of one cluster.

    Together they allocate every cluster once. `named`: what the image above calls an image.
    """
    order = list(range(layers * extents))
    random.Random(3).shuffle(order)
    paths: list[Path] = []
    for number in range(layers):
        path = folder / f"layer{number}"
        backing = ("-u", "-b", named(paths[-1]), "-F", "qcow2") if paths else ()
        size = str(layers * extents * cluster_size)
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}"]
        subprocess.run([*create, *backing, path, size], check=True, cwd=folder)
        fill(path, sorted(order[number * extents : (number + 1) * extents]), cluster_size)
        paths.append(path)
    return paths


def half(folder: Path, gib: int) -> Path:
    """An image half of which is allocated, in runs of random length. Nothing is counted: a repair does that."""
    path = folder / "half.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, f"{gib}G"], check=True)
    end = gib << 14
    rng = random.Random(11)
    clusters: list[int] = []
    at = 0
    while at < end:
        run = rng.randrange(1, 128)
        clusters += range(at, min(at + run, end))
        at += run + rng.randrange(1, 128)
    fill(path, clusters)
    return path
