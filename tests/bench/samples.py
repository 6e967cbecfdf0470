"""Results that nobody had to measure."""

from array import array

import numpy as np

from aioblock.bench import JobResult, KindResult, Result, Usage
from aioblock.bench.results import Interval

__all__ = ["a_result"]


def a_result(
    name: str = "job", *, rate: float = 1000, spread: float = 0.02, intervals: int = 60, seed: int = 0
) -> Result:
    """One job that read so many times a second, as steadily as `spread` says, in intervals of 0.1 s."""
    rng = np.random.default_rng(seed)
    operations = np.maximum(rng.normal(rate / 10, spread * rate / 10, intervals).round(), 0).astype(int)
    kind = KindResult(bytes=int(operations.sum()) * 4096)
    kind.latencies.take(array("q", rng.lognormal(11, 1, int(operations.sum())).astype(np.int64).tolist()))
    job = JobResult(
        {"name": name, "image": "a.raw", "mix": {"read": 1}, "sizes": {"4096": 1}},
        seconds=intervals / 10,
        kinds={"read": kind},
        intervals=[Interval(0.1, {"read": int(count)}) for count in operations],
        statistics={"reads": int(operations.sum())},
    )
    usage = Usage(1.5, 0.5, 50 << 20)
    usage.lags.record(0.002)
    return Result([job], usage, {"processor": "<none>"}, "2026-01-02T03:04:05+00:00")
