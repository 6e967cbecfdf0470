"""How long one status question takes over a chain whose layers need 5 ms each, asked at the same time or not."""

import asyncio
import statistics
import time

from benchmarks.layers import LENGTH, open_chain

SECONDS = 0.005
ROUNDS = 20


async def ask(layers: int, window: int) -> tuple[float, int]:
    """Median seconds of one question, and the probes that it took."""
    async with await open_chain(layers, SECONDS, window=window) as disk:
        took = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await disk.block_status_above(None, 0, LENGTH)
            took.append(time.perf_counter() - began)
        return statistics.median(took), disk.statistics.probes // ROUNDS


def main() -> None:
    print(f"{'layers':>6} {'window':>6} {'median ms':>10} {'times one layer':>16} {'probes':>7}")
    for layers in (1, 4, 16, 64):
        for window in (1, 8, 16, 64):
            if window > layers and window != 16:
                continue
            seconds, probes = asyncio.run(ask(layers, window))
            print(f"{layers:>6} {window:>6} {seconds * 1000:>10.2f} {seconds / SECONDS:>16.2f} {probes:>7}")


if __name__ == "__main__":
    main()
