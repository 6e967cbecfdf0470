"""Extents a second that a program gets of a chain of 16 qcow2 layers: batches of arrays, or one by one."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aioblock
from benchmarks.bench_map import EXTENTS, LAYERS
from benchmarks.chains import scattered
from benchmarks.peers import ROUNDS, need


async def in_batches(disk: aioblock.BlockBackend) -> int:
    return sum([len(batch) async for batch in disk.extent_batches()])


async def one_by_one(disk: aioblock.BlockBackend) -> int:
    count = 0
    async for _ in disk.extents():
        count += 1
    return count


async def ask(image: Path) -> None:
    """The first round reads the tables; the others find them in memory."""
    ways: dict[str, Callable[[aioblock.BlockBackend], Awaitable[int]]] = {
        "batches": in_batches,
        "one by one": one_by_one,
    }
    async with await aioblock.open(str(image), trust=aioblock.TRUST_ALL) as disk:
        for name, way in ways.items():
            rates = []
            for _ in range(ROUNDS + 1):
                began = time.perf_counter()
                count = await way(disk)
                rates.append(count / (time.perf_counter() - began) / 1e6)
            said = f"{statistics.median(rates[1:]):.2f} ({min(rates[1:]):.2f} to {max(rates[1:]):.2f})"
            print(f"{name:<12} {count} extents, million a second: {said}; the first time {rates[0]:.2f}")


def main() -> None:
    if not need("qemu-img"):
        return
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        asyncio.run(ask(scattered(Path(where), LAYERS, EXTENTS)[-1]))


if __name__ == "__main__":
    main()
