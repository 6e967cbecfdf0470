"""What the benchmark engine itself costs: requests a second through it, beside a bare loop of the same requests."""

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aioblock
from aioblock.bench import Job
from benchmarks.engine import LOOPS, measure
from benchmarks.peers import ROUNDS

COUNT = 300_000
SIZE = 64 << 20


def bare(image: Any, depth: int) -> float:
    """Requests a second of workers that do nothing but read, at places made beforehand."""

    async def run() -> float:
        async with await aioblock.open(image, format=None if isinstance(image, dict) else "raw") as disk:
            places = iter([random.randrange(disk.length // 4096) * 4096 for _ in range(COUNT)])

            async def worker() -> None:
                buffer = aioblock.aligned_buffer(4096)
                read = disk.readinto
                for place in places:
                    await read(place, buffer)

            began = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(depth):
                    group.create_task(worker())
            return COUNT / (time.perf_counter() - began)

    with asyncio.Runner(loop_factory=LOOPS["uvloop"]) as runner:
        return runner.run(run())


def through_the_engine(image: Any, depth: int) -> float:
    """The same by the engine, which makes the places, takes the times and counts them."""
    job = Job(image=image, format=None if isinstance(image, dict) else "raw", count=COUNT, depth=depth)
    [result] = measure(job).jobs
    return result.operations / result.seconds


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="aioblock-bench-") as where:
        path = Path(where) / "disk.raw"
        path.write_bytes(random.randbytes(1 << 20) * (SIZE >> 20))
        images = {"null-co": {"driver": "null-co", "size": SIZE}, "cached raw": str(path)}
        print(f"{'image':<12} {'depth':>5} {'bare, 1/s':>10} {'engine, 1/s':>12} {'ratio':>6} {'us a request':>13}")
        for name, image in images.items():
            for depth in (1, 16, 64):
                rounds = [(bare(image, depth), through_the_engine(image, depth)) for _ in range(ROUNDS)]
                without, through = (statistics.median(side) for side in zip(*rounds, strict=True))
                ratio = statistics.median(ours / theirs for theirs, ours in rounds)
                costs = statistics.median(1e6 / ours - 1e6 / theirs for theirs, ours in rounds)
                print(f"{name:<12} {depth:>5} {without:>10,.0f} {through:>12,.0f} {ratio:>6.2f} {costs:>13.2f}")


if __name__ == "__main__":
    main()
