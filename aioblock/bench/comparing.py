"""Comparing two results: how much faster, and whether that is more than chance.

Throughput is compared by its intervals: each run's intervals are put together into at most 32 batches of equal length,
so that what lasts for some tenths of a second (a flush, a full cache) does not count as many independent samples, and
10,000 times as many batches are drawn with replacement from each side. The middle 95 % of the ratios of their means are
the interval (the percentile bootstrap). It knows how much a run varied within itself. What differs between two runs as
a whole, such as another process or a colder processor, it cannot know: repeat them in turns before believing little.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aioblock import OptionError

from .results import JobResult, Result

__all__ = ["Comparison", "Ratio", "compare"]

_BATCHES = 32
_LEAST = 8
"""Fewer batches say nothing about their spread."""
_DRAWS = 10_000
_SHOWN = ("p50", "p99", "p99.9")


@dataclass
class Ratio:
    """How the second result relates to the first: above 1, it has more."""

    before: float
    after: float
    low: float | None = None
    """Between this and `high` the ratio lies with 95 % confidence; None: too few samples to say."""
    high: float | None = None

    @property
    def ratio(self) -> float:
        """Infinite where there was nothing before; not a number where there is nothing at all."""
        return self.after / self.before if self.before else float("inf") if self.after else float("nan")

    @property
    def significant(self) -> bool | None:
        """Whether 1 is outside the interval; None: too few samples to say."""
        return None if self.low is None or self.high is None else not self.low <= 1 <= self.high

    @property
    def verdict(self) -> str:
        """In words."""
        if self.significant is None:
            return "too few samples to say"
        if not self.significant:
            return "no significant difference"
        return "more" if self.ratio > 1 else "less"

    def as_dict(self) -> dict[str, Any]:
        """For a document; what is no number is None."""
        ratio = self.ratio
        return {
            "before": self.before,
            "after": self.after,
            "ratio": ratio if np.isfinite(ratio) else None,
            "low": self.low,
            "high": self.high,
            "significant": self.significant,
            "verdict": self.verdict,
        }


@dataclass
class Comparison:
    """Requests of one kind of one job in both results."""

    job: str
    kind: str
    throughput: Ratio
    """Requests a second."""
    latencies: dict[str, Ratio]
    """Percentiles in nanoseconds; of one histogram each, so without intervals."""

    def as_dict(self) -> dict[str, Any]:
        """For a document."""
        return {
            "job": self.job,
            "kind": self.kind,
            "operations_per_second": self.throughput.as_dict(),
            "latency_ns": {name: ratio.as_dict() for name, ratio in self.latencies.items()},
        }


def compare(before: Result, after: Result, *, seed: int = 0) -> list[Comparison]:
    """What both have: jobs of the same name, or the only job of each; kinds of requests in both.

    Raises: OptionError where they have nothing in common.
    """
    rng = np.random.default_rng(seed)
    found = []
    for one, other in _pairs(before, after):
        for kind in one.kinds:
            if kind in other.kinds:
                found.append(_compare(one, other, kind, rng))
    if not found:
        raise OptionError(
            "The results have no job in common: "
            + " and ".join(", ".join(f"'{job.name}'" for job in result.jobs) or "none" for result in (before, after))
        )
    return found


def _pairs(before: Result, after: Result) -> list[tuple[JobResult, JobResult]]:
    if len(before.jobs) == len(after.jobs) == 1:
        return [(before.jobs[0], after.jobs[0])]
    names = {job.name: job for job in after.jobs}
    return [(job, names[job.name]) for job in before.jobs if job.name in names]


def _compare(one: JobResult, other: JobResult, kind: str, rng: np.random.Generator) -> Comparison:
    mean, other_mean = (job.kinds[kind].latencies.count / job.seconds if job.seconds else 0.0 for job in (one, other))
    low, high = _interval(_batches(one, kind), _batches(other, kind), rng)
    percentiles = [job.kinds[kind].latencies.percentiles() for job in (one, other)]
    return Comparison(
        job=one.name if one.name == other.name else f"{one.name} / {other.name}",
        kind=kind,
        throughput=Ratio(mean, other_mean, low, high),
        latencies={
            name: Ratio(percentiles[0][name], percentiles[1][name])
            for name in _SHOWN
            if all(name in found for found in percentiles)
        },
    )


def _batches(job: JobResult, kind: str) -> npt.NDArray[np.float64]:
    """Requests a second of each batch of intervals; a short last interval counts for what it is."""
    seconds = np.array([interval.seconds for interval in job.intervals])
    operations = np.array([interval.operations.get(kind, 0) for interval in job.intervals], np.float64)
    usable = np.flatnonzero(seconds > 0.5 * np.median(seconds)) if len(seconds) else np.arange(0)
    parts = np.array_split(usable, min(_BATCHES, len(usable)) or 1)
    return np.array([operations[part].sum() / seconds[part].sum() for part in parts if len(part)])


def _interval(
    one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], rng: np.random.Generator
) -> tuple[float | None, float | None]:
    """What lies in the middle 95 % of the ratios of drawn means."""
    if min(len(one), len(other)) < _LEAST:
        return None, None
    means = [rng.choice(batches, (_DRAWS, len(batches))).mean(axis=1) for batches in (one, other)]
    if (means[0] <= 0).any():
        return None, None
    low, high = np.percentile(means[1] / means[0], (2.5, 97.5))
    return float(low), float(high)
