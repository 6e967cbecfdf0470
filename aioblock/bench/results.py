"""Results: what was measured, as a document with a versioned schema, and several of them as one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aioblock import LagHistogram, OptionError

from .latencies import Latencies, need_histograms

__all__ = ["SCHEMA", "Interval", "JobResult", "KindResult", "Result", "Usage", "merged"]

SCHEMA = "aioblock.bench/1"
"""The name and version of the document. What is added keeps the version; what changes or goes makes a new one."""


@dataclass
class KindResult:
    """What came of the requests of one kind."""

    latencies: Latencies = field(default_factory=Latencies)
    bytes: int = 0

    def as_dict(self, seconds: float) -> dict[str, Any]:
        """For the document; times in nanoseconds."""
        return {
            "operations": self.latencies.count,
            "bytes": self.bytes,
            "operations_per_second": round(self.latencies.count / seconds, 2) if seconds else 0.0,
            "bytes_per_second": round(self.bytes / seconds, 2) if seconds else 0.0,
            "latency_ns": self.latencies.as_dict(),
        }


@dataclass
class Interval:
    """A part of the time of a job, and how many requests of each kind ended in it."""

    seconds: float
    operations: dict[str, int]


@dataclass
class JobResult:
    """What came of one job."""

    job: dict[str, Any]
    """As `Job.as_dict` describes it."""
    seconds: float = 0.0
    """From the first request that counts to the end of the last."""
    kinds: dict[str, KindResult] = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)
    unsent: int = 0
    """Requests of an open loop that were due but had not begun at the end."""
    verified: int = 0
    """Bytes that were compared with what they had to be, those read back at the end included."""
    statistics: dict[str, int] = field(default_factory=dict)
    """The counters of the images (`aioblock.Statistics`): by how much they grew, whoever used them."""

    @property
    def name(self) -> str:
        """Of the job."""
        return str(self.job["name"])

    @property
    def overloaded(self) -> bool:
        """Whether more than a hundredth of what was due could not begin: the image did not keep up with the rate."""
        return self.unsent * 100 > self.unsent + self.operations

    @property
    def operations(self) -> int:
        """Of all kinds."""
        return sum(kind.latencies.count for kind in self.kinds.values())

    @property
    def bytes(self) -> int:
        """Of all kinds."""
        return sum(kind.bytes for kind in self.kinds.values())

    def as_dict(self) -> dict[str, Any]:
        """For the document."""
        return {
            "job": self.job,
            "seconds": self.seconds,
            "operations": self.operations,
            "bytes": self.bytes,
            "operations_per_second": round(self.operations / self.seconds, 2) if self.seconds else 0.0,
            "bytes_per_second": round(self.bytes / self.seconds, 2) if self.seconds else 0.0,
            "kinds": {name: kind.as_dict(self.seconds) for name, kind in self.kinds.items()},
            "unsent": self.unsent,
            "verified_bytes": self.verified,
            "statistics": self.statistics,
            "intervals": {
                "seconds": [round(interval.seconds, 6) for interval in self.intervals],
                "operations": {
                    name: [interval.operations.get(name, 0) for interval in self.intervals] for name in self.kinds
                },
            },
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "JobResult":
        """What `as_dict` made. Raises: KeyError, ValueError, TypeError."""
        operations = document["intervals"]["operations"]
        return cls(
            job=dict(document["job"]) | {"name": str(document["job"]["name"])},
            seconds=float(document["seconds"]),
            kinds={
                str(name): KindResult(Latencies.from_dict(kind["latency_ns"]), int(kind["bytes"]))
                for name, kind in document["kinds"].items()
            },
            intervals=[
                Interval(float(seconds), {name: int(operations[name][place]) for name in operations})
                for place, seconds in enumerate(document["intervals"]["seconds"])
            ],
            unsent=int(document["unsent"]),
            verified=int(document["verified_bytes"]),
            statistics={str(name): int(value) for name, value in document["statistics"].items()},
        )


@dataclass
class Usage:
    """What it cost, from the first request that counts to the end of the last job."""

    user: float = 0.0
    """Seconds of processor time."""
    system: float = 0.0
    peak_memory: int = 0
    """The most memory, in bytes, that the process has held since it began; of several processes the sum."""
    lags: LagHistogram = field(default_factory=LagHistogram)
    """How late the callbacks of the event loops ran (see `aioblock.LoopWatchdog`)."""

    def as_dict(self) -> dict[str, Any]:
        """For the document; times in seconds."""
        lags = self.lags
        return {
            "cpu_user": round(self.user, 6),
            "cpu_system": round(self.system, 6),
            "peak_memory": self.peak_memory,
            "loop_lag": {
                "ticks": len(lags),
                "p50": round(lags.percentile(50), 6),
                "p99": round(lags.percentile(99), 6),
                "max": round(lags.maximum, 6),
                "counts": {str(index): count for index, count in enumerate(lags.counts) if count},
            },
        }

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "Usage":
        """What `as_dict` made. Raises: KeyError, ValueError, TypeError, IndexError."""
        lags = LagHistogram()
        lags.maximum = float(document["loop_lag"]["max"])
        for index, count in document["loop_lag"]["counts"].items():
            lags.counts[int(index)] = int(count)
        return cls(float(document["cpu_user"]), float(document["cpu_system"]), int(document["peak_memory"]), lags)


@dataclass
class Result:
    """What a run came to."""

    jobs: list[JobResult]
    usage: Usage
    machine: dict[str, Any]
    """Where it ran, see `describe_machine`."""
    started: str
    """When, as ISO 8601 has it."""
    processes: int = 1
    complete: bool = True
    """False: it was cancelled or failed, and this is what there was until then."""

    def job(self, name: str) -> JobResult:
        """The result of the job of that name. Raises: KeyError."""
        for job in self.jobs:
            if job.name == name:
                return job
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        """The document."""
        return {
            "schema": SCHEMA,
            "started": self.started,
            "complete": self.complete,
            "processes": self.processes,
            "machine": self.machine,
            "usage": self.usage.as_dict(),
            "jobs": [job.as_dict() for job in self.jobs],
        }

    @classmethod
    def from_dict(cls, document: Any, source: str = "result") -> "Result":
        """What `as_dict` made; `source` is named in messages.

        Raises: OptionError where it is something else; NotSupported where a package is missing.
        """
        need_histograms()
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise OptionError(f"{source}: no result of this version: its schema is {schema!r}, not '{SCHEMA}'")
        try:
            return cls(
                jobs=[JobResult.from_dict(job) for job in document["jobs"]],
                usage=Usage.from_dict(document["usage"]),
                machine=dict(document["machine"]),
                started=str(document["started"]),
                processes=int(document["processes"]),
                complete=bool(document["complete"]),
            )
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise OptionError(f"{source}: the result is damaged: {type(error).__name__}: {error}") from None

    @classmethod
    def load(cls, path: str) -> "Result":
        """Read the document in a file. Raises: as `from_dict`; OSError."""
        with open(path, "rb") as file:
            try:
                document = json.load(file)
            except ValueError as error:
                raise OptionError(f"{path}: is not JSON: {error}", filename=path) from None
        return cls.from_dict(document, path)


def merged(results: Sequence[Result]) -> Result:
    """What processes measured that did the same jobs at the same time, as one result. At least one is needed."""
    first = results[0]
    usage = Usage()
    for result in results:
        usage.user += result.usage.user
        usage.system += result.usage.system
        usage.peak_memory += result.usage.peak_memory
        usage.lags.add(result.usage.lags)
    return Result(
        jobs=[_merged_job([result.jobs[place] for result in results]) for place in range(len(first.jobs))],
        usage=usage,
        machine=first.machine,
        started=min(result.started for result in results),
        processes=sum(result.processes for result in results),
        complete=all(result.complete for result in results),
    )


def _merged_job(parts: list[JobResult]) -> JobResult:
    made = JobResult(parts[0].job, seconds=max(part.seconds for part in parts))
    for part in parts:
        for name, kind in part.kinds.items():
            into = made.kinds.setdefault(name, KindResult())
            into.latencies.add(kind.latencies)
            into.bytes += kind.bytes
        for name, value in part.statistics.items():
            made.statistics[name] = made.statistics.get(name, 0) + value
        made.unsent += part.unsent
        made.verified += part.verified
    for intervals in zip(*(part.intervals for part in parts), strict=False):  # as long as all of them were there
        made.intervals.append(
            Interval(
                sum(interval.seconds for interval in intervals) / len(intervals),
                {name: sum(interval.operations.get(name, 0) for interval in intervals) for name in made.kinds},
            )
        )
    return made
