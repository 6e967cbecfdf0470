"""Many workloads on all cores, until so many states were looked at."""

import itertools
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

from tests.faults.powercut.explore import Plan, Tally, explore
from tests.faults.powercut.fsck import Damage
from tests.faults.powercut.layouts import LAYOUTS
from tests.faults.powercut.states import Effort
from tests.faults.powercut.sweep import FAULTS, sites
from tests.faults.powercut.workloads import TWELVE, sequences

__all__ = ["plan_of", "run_campaign", "run_sweep", "seeds"]

THOROUGH = Plan(Effort(full=10, choices=48, torn=5, garbage=1), go_on=0.01)
"""For sequences of a few operations."""
WIDE = Plan(Effort(full=7, choices=48, torn=5, garbage=1), go_on=0.01)
"""For long ones."""


def plan_of(seed: str) -> Plan:
    """How far to go with a workload."""
    return WIDE if "/random" in seed else THOROUGH


def seeds(names: list[str], longest: int = 3) -> Iterator[str]:
    """Seeds without an end: all sequences of a few operations of each layout in turn, and ever more random ones."""
    short = {name: sequences(LAYOUTS[name].kinds, longest) for name in names}
    for number in itertools.count(1):
        for name in names:
            if LAYOUTS[name].rare and len(names) > 1 and number % 10:
                continue
            yield f"{name}/random{number}"
            for sequence in itertools.islice(short[name], 2):
                yield f"{name}/{sequence}"


def _explore(seed: str) -> tuple[str, Tally]:
    try:
        return seed, explore(seed, plan_of(seed))
    except Exception as error:
        raise RuntimeError(f"the simulator itself failed, seed {seed}") from error


def run_campaign(states: int | None, names: list[str], jobs: int) -> int:
    """Look at so many states, or at all sequences of three operations; tell about it, and return the exit code."""
    started = time.monotonic()
    layouts: defaultdict[str, Tally] = defaultdict(Tally)
    total = Tally()
    shown = 0.0
    source = _bounded(seeds(names))
    wanted = f"{states:,}" if states is not None else "all"
    if states is None:
        source = (f"{name}/{sequence}" for name in names for sequence in sequences(TWELVE, 3))
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for seed, tally in pool.imap_unordered(_explore, source, chunksize=1):
            layouts[seed.partition("/")[0]].add(tally)
            total.add(tally)
            for failure in tally.failures[:3]:
                print(f"\n{failure.text}\n    make powercut SEED={failure.seed}", flush=True)
            now = time.monotonic()
            if now - shown > 1:
                shown = now
                rate = total.states / (now - started)
                print(
                    f"\r{total.states:,} of {wanted} states, {rate:,.0f} a second, {total.workloads:,} workloads, "
                    f"{len(total.failures)} failures ",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            if states is not None and total.states >= states:
                break
        pool.terminate()
    print(file=sys.stderr)
    print_table(layouts, total, time.monotonic() - started)
    return 1 if total.failures else 0


def _bounded(source: Iterator[str]) -> Iterator[str]:
    """As many seeds as anyone could want: a pool reads its source without waiting."""
    return itertools.islice(source, 200_000)


KINDS = (
    "corrupt",
    "lost",
    "neither",
    "foreign",
    "size",
    "snapshot",
    "bitmap",
    "open",
    "reopen",
    "check",
    "autoclear",
    "failed",
)


def print_table(layouts: dict[str, Tally], total: Tally, seconds: float) -> None:
    """Figures by layout."""
    print(f"{'layout':<10}{'workloads':>10}{'states':>10}{'gone on':>9}{'cut again':>10}  " + "  ".join(KINDS))
    for name, tally in (*layouts.items(), ("all", total)):
        found = "  ".join(f"{tally.kinds[kind]:>{len(kind)}}" for kind in KINDS)
        print(
            f"{name:<10}{tally.workloads:>10,}{tally.states:>10,}{tally.went_on:>9,}{tally.second_cuts:>10,}  {found}"
        )
    print(f"{total.states + total.second_cuts:,} different states in {seconds:,.0f} s, {os.cpu_count()} cores")


def _sweep(job: tuple[str, str]) -> tuple[str, str, int, str]:
    count = 0
    try:
        for _ in sites(*job):
            count += 1
    except Damage as damage:
        return *job, count, str(damage)
    return *job, count, ""


def run_sweep(names: list[str], jobs: int) -> int:
    """Let every request of these layouts fail; tell how many there were, and return the exit code."""
    total = bad = 0
    work = [(name, kind) for name in names for kind in FAULTS if not LAYOUTS[name].rare or len(names) == 1]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for name, kind, count, damage in pool.imap_unordered(_sweep, work):
            total += count
            bad += bool(damage)
            print(f"{name:<10}{kind:<18}{count:>5} requests failed  {damage}", flush=True)
    print(f"{total:,} requests failed, one in each run; {bad} sweeps ended badly")
    return 1 if bad else 0
