"""Random command lines for both programs, until so many seeds are done.

python -m tests.drop_in [--seeds 1000] [--first 0] [--subcommand convert ...] [--wrong] [--jobs N] [--line N]
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.drop_in.cases import Differs, run_seed
from tests.drop_in.commands import NAMES
from tests.drop_in.programs import Ours

AT_ONCE = 10


def work(
    subcommand: str, first: int, count: int, wrong: bool, line: int | None, keep: str | None
) -> tuple[str, int, list[str]]:
    """Run some seeds of a subcommand; how many command lines there were, and what differed."""
    done, failures = 0, []
    with Ours() as ours, tempfile.TemporaryDirectory(prefix="drop-in-") as scratch:
        for seed in range(first, first + count):
            folder = Path(keep or scratch, f"{subcommand}-{seed}")
            for outcome in run_seed(ours, subcommand, seed, folder, wrong=wrong, only=line):
                done += 1
                if isinstance(outcome, Differs):
                    failures.append(str(outcome))
    return subcommand, done, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drop_in", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds of each subcommand (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--subcommand", action="append", choices=NAMES, help="this one, not all")
    parser.add_argument("--wrong", action="store_true", help="command lines with faults in them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--line", type=int, help="of a seed's command lines this one alone")
    parser.add_argument("--keep", help="a folder to leave the images in")
    given = parser.parse_args()
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    last = given.first + given.seeds
    parts = [
        (name, first, min(AT_ONCE, last - first))
        for first in range(given.first, last, AT_ONCE)
        for name in given.subcommand or NAMES
    ]
    with ProcessPoolExecutor(given.jobs) as pool:
        futures = [pool.submit(work, *part, given.wrong, given.line, given.keep) for part in parts]
        for future in as_completed(futures):
            subcommand, lines, failures = future.result()
            done[subcommand] += lines
            failed[subcommand] += len(failures)
            for failure in failures:
                print(f"{failure}\n", flush=True)
    for name in sorted(done):
        print(f"{name:<10} {done[name]:>7} command lines, {failed[name]} differ")
    return 1 if failed.total() else 0


if __name__ == "__main__":
    sys.exit(main())
