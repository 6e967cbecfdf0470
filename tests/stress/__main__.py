"""`make stress`: sequences on all cores, until so many are done or one differs.

python -m tests.stress [--sequences 10000] [--first 0] [--jobs N] [--seed SEED]
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pytest

from tests.stress.twins import Differs, run_seed

AT_ONCE = 20


def work(first: int, count: int) -> tuple[int, int, list[str]]:
    """Run some seeds; how many steps they had, how many images QEMU spoilt, and what differed."""
    done, spoilt, failures = 0, 0, []
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory(prefix="twins-") as folder:
            try:
                outcome = asyncio.run(run_seed(seed, Path(folder)))
                done += outcome.steps
                spoilt += outcome.spoilt
            except (Differs, pytest.fail.Exception) as error:
                failures.append(str(error))
    return done, spoilt, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--sequences", type=int, default=10_000, help="how many seeds (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--seed", type=int, help="run this one alone")
    given = parser.parse_args()
    if given.seed is not None:
        given.first, given.sequences = given.seed, 1
    begun, done, steps, failed, spoilt = time.monotonic(), 0, 0, 0, 0
    last = given.first + given.sequences
    parts = [(first, min(AT_ONCE, last - first)) for first in range(given.first, last, AT_ONCE)]
    with ProcessPoolExecutor(given.jobs) as pool:
        futures = {pool.submit(work, *part): part for part in parts}
        for future in as_completed(futures):
            more, bad, failures = future.result()
            spoilt += bad
            done += futures[future][1]
            steps += more
            failed += len(failures)
            for failure in failures:
                print(f"\n{failure}\n", flush=True)
            rate = done / (time.monotonic() - begun)
            print(
                f"\r{done}/{given.sequences} sequences, {steps} steps, {failed} differ, "
                f"{spoilt} spoilt by QEMU, {rate:.1f}/s",
                end="",
                flush=True,
            )
    print()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
