"""How times grow with the size of an image, the depth of a chain and the number of requests: curves, with exponents."""

import asyncio
import math
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop

import aioblock

GIB = 1 << 30
SIZES = tuple(GIB << n for n in range(0, 17, 2))
"""1 GiB to 64 TiB."""
DEPTHS = (1, 2, 4, 8, 16, 32, 64)
REQUESTS = (1, 10, 100, 1000, 10_000)
CLUSTERS = 256
"""Allocated ones, anywhere in the image."""
BLOCK = 4096
CLUSTER = 65536


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the line through the logarithms of both (least squares): 1 is proportional, 0 constant."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


async def _best(question: Callable[[], Awaitable[object]], rounds: int = 5) -> float:
    """The shortest time of some rounds, in seconds."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        await question()
        took.append(time.perf_counter() - began)
    return min(took)


def _create(path: Path, size: int, backing: Path | None = None) -> None:
    words = () if backing is None else ("-b", str(backing), "-F", "qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, str(path), str(size)], check=True)


async def _write(path: Path, size: int, seed: int, clusters: int = CLUSTERS) -> None:
    """Write to clusters anywhere but in the last."""
    rng = random.Random(seed)
    async with await aioblock.open(str(path), format="qcow2", writable=True) as disk:
        for _ in range(clusters):
            await disk.pwrite(rng.randrange(size // CLUSTER - 1) * CLUSTER, bytes(BLOCK))


async def _map(path: Path) -> None:
    async with await aioblock.open(str(path), format="qcow2") as disk:
        async for _ in disk.extents():
            pass


async def _open_and_close(path: Path) -> None:
    await (await aioblock.open(str(path), format="qcow2")).close()


async def _by_size(folder: Path) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {"open": [], "map": [], "4 KiB read": []}
    for size in SIZES:
        path = folder / f"size{size}"
        _create(path, size)
        await _write(path, size, 1)
        curves["open"].append((size / GIB, await _best(lambda path=path: _open_and_close(path))))
        curves["map"].append((size / GIB, await _best(lambda path=path: _map(path))))
        async with await aioblock.open(str(path), format="qcow2") as disk:
            read = await _best(
                lambda disk=disk, size=size: disk.pread(random.randrange(size // CLUSTER) * CLUSTER, BLOCK), 200
            )
            curves["4 KiB read"].append((size / GIB, read))
    return curves


async def _by_depth(folder: Path) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {"open": [], "map": [], "read of what no layer has": []}
    below = None
    for depth in range(1, max(DEPTHS) + 1):
        path = folder / f"depth{depth}"
        _create(path, GIB, below)
        await _write(path, GIB, depth, 16)
        below = path
        if depth in DEPTHS:
            curves["open"].append((depth, await _best(lambda path=path: _open_and_close(path))))
            curves["map"].append((depth, await _best(lambda path=path: _map(path))))
            async with await aioblock.open(str(path), format="qcow2") as disk:
                read = await _best(lambda disk=disk: disk.pread(GIB - CLUSTER, BLOCK), 200)
                curves["read of what no layer has"].append((depth, read))
    return curves


async def _by_requests(folder: Path) -> dict[str, list[tuple[float, float]]]:
    path = folder / "requests"
    path.write_bytes(os.urandom(64 << 20))
    curves: dict[str, list[tuple[float, float]]] = {"reads at a time, cached": [], "writes at a time": []}
    async with await aioblock.open(str(path), format="raw", writable=True) as disk:
        data = bytes(BLOCK)
        for count in REQUESTS:
            offsets = [random.randrange(16384) * BLOCK for _ in range(count)]
            reads = await _best(lambda o=offsets: asyncio.gather(*(disk.pread(offset, BLOCK) for offset in o)))
            writes = await _best(lambda o=offsets: asyncio.gather(*(disk.pwrite(offset, data) for offset in o)))
            curves["reads at a time, cached"].append((count, reads))
            curves["writes at a time"].append((count, writes))
    return curves


def _draw(title: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    print(f"\n{title}")
    for name, points in curves.items():
        print(f"  {name}: grows with the power {exponent(points):.2f}")
        most = max(seconds for _, seconds in points)
        for x, seconds in points:
            print(f"    {x:>8g} {seconds * 1e3:>10.3f} ms  {'#' * max(round(40 * seconds / most), 1)}")


async def _measure() -> None:
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        _draw("size of the image in GiB, 256 clusters allocated", await _by_size(Path(where)))
        _draw("layers of a chain of 1 GiB, 16 clusters each", await _by_depth(Path(where)))
        _draw("requests of 4 KiB at a time", await _by_requests(Path(where)))


def main() -> None:
    """In this process; the best of some rounds each."""
    uvloop.run(_measure())


if __name__ == "__main__":
    main()
