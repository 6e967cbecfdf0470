"""How results of `bench` are shown in a terminal: tables, and how many requests took how long."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from .quantities import duration, human, plural

if TYPE_CHECKING:
    from aioblock.bench import Comparison, JobResult, Ratio, Result

    from .terminal import Terminal

__all__ = ["show_comparison", "show_result"]

_BAR = 40
"""How long the longest bar of the histogram is."""

_LATENCIES = ("p50", "p90", "p99", "p99.9", "p99.99")


def show_result(terminal: "Terminal", result: "Result") -> None:
    """Of each job a table and a histogram, then what it cost."""
    from aioblock.bench import short_time

    for job in result.jobs:
        terminal.heading(_title(job))
        _show_kinds(terminal, job)
        if job.overloaded:
            terminal.warn(
                f"{job.name}: {plural(job.unsent, 'request')} could not begin before the end: the image does not keep "
                "up with this rate"
            )
        if job.verified:
            terminal.facts({"verified": human(job.verified)}, indent=2)
        terminal.print("")
        terminal.print(_histogram(job, drawn=terminal.draws))
        terminal.print("")
    usage = result.usage
    lags = usage.lags
    terminal.facts(
        {
            "processor time": f"{duration(usage.user)} user, {duration(usage.system)} system",
            "peak memory": human(usage.peak_memory),
            "loop lag": f"p99 {short_time(lags.percentile(99) * 1e9)}, max {short_time(lags.maximum * 1e9)}",
        }
    )
    if not result.complete:
        terminal.warn("it was ended early: this is what there was until then")


def _title(job: "JobResult") -> str:
    said = job.job
    total = sum(said["mix"].values())
    kinds = ", ".join(
        kind if often == total else f"{often * 100 / total:.3g} % {kind}"
        for kind, often in said["mix"].items()
        if often
    )
    sizes = ", ".join(human(int(size)) for size, often in said["sizes"].items() if often)
    users = f"{said['clients']} x {said['depth']}" if said["clients"] > 1 else str(said["depth"])
    how = f"{said['rate']:g} a second, up to {users}" if said["rate"] else users
    return f"{job.name}: {kinds} of {sizes}, {said['pattern']}, {how} at a time, {duration(job.seconds)}"


def _show_kinds(terminal: "Terminal", job: "JobResult") -> None:
    from aioblock.bench import short_time

    columns = ["", "requests", "a second", "bytes a second", "mean", *_LATENCIES, "max"]
    rows = []
    for kind, found in job.kinds.items():
        latencies = found.latencies
        if not latencies.count or not job.seconds:
            rows.append([kind, "0", *["-"] * (len(columns) - 2)])
            continue
        percentiles = latencies.percentiles()
        times = (latencies.mean, *(percentiles[name] for name in _LATENCIES), latencies.longest)
        rows.append(
            [
                kind,
                str(latencies.count),
                f"{latencies.count / job.seconds:.0f}",
                human(found.bytes / job.seconds) if found.bytes else "-",
                *(short_time(value) for value in times),
            ]
        )
    terminal.table(columns, rows, right=columns[1:])


def _histogram(job: "JobResult", *, drawn: bool) -> Text:
    """How many requests took how long: a bar for each power of two of nanoseconds."""
    from aioblock.bench import Latencies, short_time

    together = Latencies()
    for kind in job.kinds.values():
        together.add(kind.latencies)
    bars: dict[int, int] = {}
    for value, count in zip(*(column.tolist() for column in together.distribution()), strict=True):
        bars[int(value).bit_length()] = bars.get(int(value).bit_length(), 0) + count
    text = Text()
    for power in range(min(bars, default=0), max(bars, default=-1) + 1):
        count = bars.get(power, 0)
        text.append(f"< {short_time(2.0**power):>8} ", "bright_black")
        text.append(("━" if drawn else "#") * round(count * _BAR / max(bars.values())), "bright_blue")
        text.append(f" {count * 100 / together.count:.3g} %\n")
    text.right_crop(1)
    return text


def show_comparison(terminal: "Terminal", names: Sequence[str], found: "list[Comparison]") -> None:
    """A line for each job and kind, and its latencies below."""
    from aioblock.bench import short_time

    terminal.heading(f"{names[1]} compared with {names[0]}")
    columns = ["job", "", "before", "after", "ratio", "95 % interval", ""]
    rows: list[list[str | Text]] = []
    for one in found:
        rate = one.throughput
        rows.append(
            [
                one.job,
                f"{one.kind}, requests a second",
                f"{rate.before:.0f}",
                f"{rate.after:.0f}",
                _ratio(rate.ratio),
                "-" if rate.low is None or rate.high is None else f"{rate.low:.3f} to {rate.high:.3f}",
                _verdict(rate),
            ]
        )
        for name, ratio in one.latencies.items():
            rows.append(
                [
                    "",
                    f"{one.kind}, {name}",
                    short_time(ratio.before),
                    short_time(ratio.after),
                    _ratio(ratio.ratio),
                    "",
                    "",
                ]
            )
    terminal.table(columns, rows, right=columns[2:6])


def _ratio(ratio: float) -> str:
    return f"{ratio:.3f}" if math.isfinite(ratio) else "-"


def _verdict(rate: "Ratio") -> Text:
    style = {"more": "green", "less": "red"}.get(rate.verdict, "yellow")
    words = {"more": "faster", "less": "slower"}.get(rate.verdict, rate.verdict)
    return Text(words, style)
