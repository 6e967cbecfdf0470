"""A result as one HTML file: tables and plots, without anything from elsewhere."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate

from aioblock import human_size

from .latencies import PERCENTILES, Latencies
from .results import JobResult, KindResult, Result
from .svg import Axis, Line, plot

__all__ = ["html_report", "short_time"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff }
body { max-width: 860px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em }
h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #d1d5db }
h3 { font-size: 1em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5em 0; font-size: .93em }
th, td { padding: .2em .6em; text-align: right; border-bottom: 1px solid #e5e7eb; overflow-wrap: anywhere }
th { color: #6b7280; font-weight: 600; white-space: nowrap }
th:first-child, td:first-child, .facts td { text-align: left }
svg { width: 100%; height: auto }
svg text { font: 11px system-ui, sans-serif; fill: #6b7280 }
svg .label { fill: #1f2937 }
svg .grid { stroke: #e5e7eb }
svg .line { fill: none; stroke-width: 1.6; stroke-linejoin: round }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0 1.5em; padding: 0; margin: 0; font-size: .85em }
.legend i { display: inline-block; width: 1em; height: .3em; margin-right: .4em; vertical-align: middle }
.warning { background: #fef3c7; border-left: 4px solid #d97706; padding: .5em 1em }
"""


def short_time(nanoseconds: float) -> str:
    """With a unit: "850 ns", "12.3 us", "4.56 ms", "1.2 s"."""
    for unit, size in (("ns", 1), ("us", 1e3), ("ms", 1e6)):
        if nanoseconds < 999.5 * size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds / 1e9:.4g} s"


def html_report(result: Result, title: str = "aioblock bench") -> str:
    """The text of the file."""
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *_warnings(result),
        _facts(_about(result)),
        "<h2>Throughput</h2>",
        _table(
            ["job", "kind", "requests", "a second", "bytes a second"],
            [
                [job.name, kind, f"{found.latencies.count:,}", *_rates(found.latencies.count, found.bytes, job.seconds)]
                for job, kind, found in _kinds(result)
            ],
        ),
        plot([*_throughput(result)], Axis("seconds", tight=True), Axis("requests a second", _thousands)),
        "<h2>Latency</h2>",
        _table(
            ["job", "kind", "mean", *(f"p{percent:g}" for percent in PERCENTILES), "max"],
            [[job.name, kind, *_latency_row(found.latencies)] for job, kind, found in _kinds(result)],
        ),
        "<h3>How long so many of all requests took at most</h3>",
        plot([*_percentile_curves(result)], _PERCENT, Axis("latency", short_time, log=True)),
        "<h3>How many took how long</h3>",
        plot([*_histograms(result)], Axis("latency", short_time, log=True), Axis("% of requests")),
        "<h2>Event loop</h2>",
        plot([_lags(result)], Axis("callback late by", short_time, log=True), Axis("callbacks", log=True)),
        *(part for job in result.jobs for part in _details(job)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _warnings(result: Result) -> Iterator[str]:
    if not result.complete:
        yield '<p class="warning">The run was ended early: this is what there was until then.</p>'
    for job in result.jobs:
        if job.overloaded:
            yield (
                f'<p class="warning">{escape(job.name)}: {job.unsent:,} requests were due before the end and could not '
                "begin: the image did not keep up with the rate, and the latencies are those of the requests sent.</p>"
            )


def _about(result: Result) -> dict[str, str]:
    usage, machine = result.usage, result.machine
    longest = max((job.seconds for job in result.jobs), default=0.0)
    return {
        "started": result.started,
        "took": f"{longest:.3g} s" + (f", {result.processes} processes" if result.processes > 1 else ""),
        "processor time": f"{usage.user:.3g} s user, {usage.system:.3g} s system",
        "peak memory": human_size(usage.peak_memory),
        "loop lag": f"p99 {short_time(usage.lags.percentile(99) * 1e9)}, max {short_time(usage.lags.maximum * 1e9)}",
        **{name: str(value) for name, value in machine.items()},
    }


def _kinds(result: Result) -> Iterator[tuple[JobResult, str, KindResult]]:
    for job in result.jobs:
        for kind, found in job.kinds.items():
            yield job, kind, found


def _rates(operations: int, nbytes: int, seconds: float) -> tuple[str, str]:
    if not seconds:
        return "-", "-"
    return f"{operations / seconds:,.0f}", human_size(nbytes / seconds) if nbytes else "-"


def _latency_row(latencies: Latencies) -> list[str]:
    if not latencies.count:
        return ["-"] * (len(PERCENTILES) + 2)
    return [short_time(value) for value in (latencies.mean, *latencies.percentiles().values(), latencies.longest)]


def _throughput(result: Result) -> Iterator[Line]:
    for job, kind, _ in _kinds(result):
        ends = accumulate(interval.seconds for interval in job.intervals)
        points = [
            (end, interval.operations.get(kind, 0) / interval.seconds)
            for end, interval in zip(ends, job.intervals, strict=True)
            if interval.seconds
        ]
        yield Line(f"{job.name}: {kind}", points)


def _percentile_curves(result: Result) -> Iterator[Line]:
    """Over how rare it is: one in 1, 10, 100 ... takes longer."""
    for job, kind, found in _kinds(result):
        values, counts = found.latencies.distribution()
        total = found.latencies.count
        points = []
        before = 0
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            points.append((total / (total - before), float(max(value, 1))))
            before += count
        yield Line(f"{job.name}: {kind}", points)


_PERCENT = Axis(
    "of all requests",
    lambda rarity: f"{100 * (1 - 1 / rarity):g} %",
    log=True,
    ticks=(1, 2, 10, 100, 1000, 10_000, 100_000, 1_000_000),
)


def _histograms(result: Result) -> Iterator[Line]:
    """Ten bars for each power of ten."""
    for job, kind, found in _kinds(result):
        bars: dict[int, int] = {}
        values, counts = found.latencies.distribution()
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            bar = math.floor(math.log10(max(value, 1)) * 10)
            bars[bar] = bars.get(bar, 0) + count
        total = found.latencies.count
        edges = range(min(bars), max(bars) + 2) if bars else range(0)
        yield Line(f"{job.name}: {kind}", [(10 ** (bar / 10), bars.get(bar, 0) * 100 / total) for bar in edges], True)


def _lags(result: Result) -> Line:
    return Line(
        "", [(max(seconds * 1e9, 1000.0), float(count)) for seconds, count in result.usage.lags.buckets()], True
    )


def _details(job: JobResult) -> Iterator[str]:
    yield f"<h2>Job {escape(job.name)}</h2>"
    shown = {name: value for name, value in job.job.items() if value not in (None, "", {}, False)}
    yield _facts({name.replace("_", " "): _plain(value) for name, value in shown.items()})
    counted = {name.replace("_", " "): f"{value:,}" for name, value in job.statistics.items() if value}
    if job.verified:
        counted["verified"] = human_size(job.verified)
    if counted:
        yield "<h3>Counters of the images</h3>"
        yield _facts(counted)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    return str(value)


def _thousands(value: float) -> str:
    return f"{value:,.10g}"


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f'<table class="facts">{rows}</table>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
