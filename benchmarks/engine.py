"""Running the engine of `aioblock bench` from a benchmark, on a fresh event loop."""

import asyncio
from collections.abc import Callable
from typing import Any

import uvloop

from aioblock.bench import Bench, Job, ProcessBench, Result

__all__ = ["LOOPS", "measure"]

LOOPS: dict[str, Callable[[], Any]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def measure(*jobs: Job, loop: str = "uvloop", processes: int = 1) -> Result:
    """Run jobs at the same time; for rounds with a peer in turns, call it once in each."""

    async def run() -> Result:
        bench = Bench(jobs) if processes == 1 else ProcessBench(jobs, processes)
        return await bench.run()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(run())
