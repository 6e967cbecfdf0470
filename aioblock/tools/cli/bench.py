"""`bench`: how fast an image is: requests a second, and how long they take."""

import asyncio
import random
import time
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from .access import Access, reading_options
from .failures import Failure
from .opening import opened
from .parameters import image_argument
from .progress import WorkProgress
from .quantities import SIZE, duration, exact, human
from .subcommand import subcommand, work

if TYPE_CHECKING:
    from aioblock import BlockBackend

    from .terminal import Terminal

__all__ = ["command"]

_PERCENTILES = (50, 90, 95, 99, 99.9)

_BAR = 40
"""How long the longest bar of the histogram is."""


@subcommand("bench", long=True, short_help="how fast an image is")
@image_argument()
@click.option("--size", type=SIZE, default="4k", show_default=True, help="Bytes of each request.")
@click.option(
    "--depth",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="How many requests are under way at a time.",
)
@click.option("--seconds", type=click.FloatRange(0.05), default=5.0, show_default=True, help="How long to measure.")
@click.option("--count", type=click.IntRange(1), help="So many requests, in place of a time.")
@click.option("--sequential", is_flag=True, help="One place after the other.  [default: random places]")
@click.option("--seed", type=int, default=0, show_default=True, help="Which random places: the same seed, the same.")
@click.option(
    "--cache",
    type=click.Choice(["writeback", "none", "writethrough", "directsync", "unsafe"]),
    default="writeback",
    show_default=True,
    help="How the host caches: 'none' measures the storage, not the memory.",
)
@click.option("--write", is_flag=True, help="Write in place of reading. The content of IMAGE is lost: needs --force.")
@click.option("--force", is_flag=True, help="Yes, overwrite what IMAGE holds.")
@reading_options
def command(
    terminal: "Terminal",
    image: str,
    size: int,
    depth: int,
    seconds: float,
    count: int | None,
    sequential: bool,
    seed: int,
    cache: str,
    write: bool,
    force: bool,
    access: Access,
) -> None:
    """Send requests to IMAGE, and tell how many it does a second and how long they take."""
    if write and not force:
        raise Failure(f"--write overwrites what {image} holds", hint="If that may be lost, add --force.", status=2)
    if not write and force:
        raise Failure("--force goes with --write", status=2)
    times = array("d")
    took = 0.0
    if write:
        terminal.left = f"Parts of {image} are overwritten."

    async def body() -> None:
        nonlocal took
        async with opened(terminal, image, access, writable=write, cache=cache) as disk:
            if size < 1 or disk.length < size:
                raise Failure(f"{image} is {exact(disk.length)} long: no request of {exact(size)} fits", status=2)
            offsets = _offsets(disk.length, size, None if sequential else seed)
            with WorkProgress(terminal, "bench", unit="milliseconds" if count is None else "requests") as progress:
                took = await _measure(disk, offsets, size, depth, seconds, count, write, times, progress)

    work(body)
    result = _result(times, took, size)
    how = {"image": image, "size": size, "depth": depth, "write": write, "sequential": sequential, "cache": cache}
    terminal.result({**how, **result})
    _show(terminal, how, result, times)


def _offsets(length: int, size: int, seed: int | None) -> Iterator[int]:
    """Where the requests go, without end; `seed` None: one after the other."""
    places = length // size
    if seed is None:
        while True:
            for place in range(places):
                yield place * size
    choose = random.Random(seed).randrange
    while True:
        yield choose(places) * size


async def _measure(
    disk: "BlockBackend",
    offsets: Iterator[int],
    size: int,
    depth: int,
    seconds: float,
    count: int | None,
    write: bool,
    times: "array[float]",
    progress: WorkProgress,
) -> float:
    """Let `depth` workers send requests, and note how long each takes; returns how long all took."""
    from aioblock import aligned_buffer

    begin = time.perf_counter()
    end = begin + seconds
    sent = 0

    async def worker() -> None:
        nonlocal sent
        buffer = aligned_buffer(size)
        if write:
            buffer[:] = bytes([0xA5]) * size
        request = disk.pwrite if write else disk.readinto
        now = time.perf_counter()
        while (sent < count) if count is not None else (now < end):
            sent += 1
            before = time.perf_counter()
            await request(next(offsets), buffer)
            now = time.perf_counter()
            times.append(now - before)
            if len(times) % 64 == 0:
                if count is not None:
                    progress(len(times), count)
                else:
                    progress(round((now - begin) * 1000), round(seconds * 1000))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(depth):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return time.perf_counter() - begin


def _result(times: "array[float]", took: float, size: int) -> dict[str, Any]:
    import numpy as np

    latencies = np.frombuffer(times, np.float64) * 1e6
    return {
        "requests": len(times),
        "seconds": round(took, 6),
        "requests_per_second": round(len(times) / took, 1),
        "bytes_per_second": round(len(times) * size / took),
        "latency_us": {
            "min": round(float(latencies.min()), 1),
            "mean": round(float(latencies.mean()), 1),
            **{
                f"p{percentile:g}": round(float(np.percentile(latencies, percentile)), 1) for percentile in _PERCENTILES
            },
            "max": round(float(latencies.max()), 1),
        },
    }


def _show(terminal: "Terminal", how: dict[str, Any], result: dict[str, Any], times: "array[float]") -> None:
    what = "writes" if how["write"] else "reads"
    where = "one after the other" if how["sequential"] else "at random places"
    terminal.heading(f"{how['image']}: {what} of {human(how['size'])} {where}, {how['depth']} at a time")
    terminal.facts(
        {
            "requests": f"{result['requests']} in {duration(result['seconds'])}",
            "a second": f"{result['requests_per_second']:.0f} requests, {human(result['bytes_per_second'])}",
        },
        indent=2,
    )
    terminal.print("")
    latency = result["latency_us"]
    terminal.table(list(latency), [[_microseconds(value) for value in latency.values()]], right=list(latency))
    terminal.print("")
    terminal.print(_histogram(times, drawn=terminal.draws))


def _microseconds(value: float) -> str:
    if value < 1000:
        return f"{value:.3g} us"
    return f"{value / 1000:.3g} ms" if value < 1_000_000 else f"{value / 1_000_000:.3g} s"


def _histogram(times: "array[float]", *, drawn: bool) -> Text:
    """How many requests took how long: a bar for each power of two of microseconds."""
    import numpy as np

    powers = np.floor(np.log2(np.maximum(np.frombuffer(times, np.float64) * 1e6, 1))).astype(int)
    counts = np.bincount(powers)
    text = Text()
    for power in range(int(powers.min()), len(counts)):
        share = counts[power] / len(times)
        text.append(f"< {_microseconds(2.0 ** (power + 1)):>8} ", "bright_black")
        text.append(("━" if drawn else "#") * round(share * _BAR / (counts.max() / len(times))), "bright_blue")
        text.append(f" {share * 100:.3g} %\n")
    text.right_crop(1)
    return text
