"""`make conformance`: run QEMU's block tests against the programs of this project.

Without tests: those that are listed to pass, of each format. The last line is 'N passed, N failed'; the exit status is
0 only where all of them passed: a listed test that does not run has failed.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conformance.listed import ListError, passing
from tests.conformance.programs import MissingProgram, make_programs
from tests.conformance.suite import FORMATS, SuiteError, cached_suite, names_in
from tests.conformance.verdicts import Outcome, Runner, Verdict


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("tests", nargs="*", metavar="TEST", help="a number, or a name like tests/qemu-img-bitmaps")
    parser.add_argument("--format", action="append", help="qcow2, raw, luks ... (may be given again; all with a list)")
    parser.add_argument(
        "--discover", "--list-all", action="store_true", help="try all tests, and name those that could be listed"
    )
    parser.add_argument("--show", action="store_true", help="print what a test that failed printed")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one test (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tests at the same time (%(default)s)")
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent, help="where the programs are")
    parser.add_argument("--qemu", action="store_true", help="run QEMU's own programs: is it the machine?")
    return parser.parse_args()


def chosen(given: argparse.Namespace, suite: Path) -> Iterator[tuple[str, str]]:
    """The tests to run: (format, test)."""
    for fmt in given.format or FORMATS:
        listed = passing(fmt)
        unlisted = [test for test in names_in(suite) if test not in listed]
        for test in given.tests or (unlisted if given.discover else listed):
            yield fmt, test


def report(fmt: str, outcome: Outcome, *, show: bool) -> None:
    print(f"{fmt} {outcome.test} {outcome.verdict} ({outcome.seconds:.1f} s)", flush=True)
    if show and outcome.verdict is not Verdict.PASS:
        print(outcome.output, flush=True)


def main() -> int:
    given = arguments()
    counts = dict.fromkeys(Verdict, 0)
    found: list[str] = []
    try:
        suite = cached_suite()
        wanted = list(chosen(given, suite))
        with tempfile.TemporaryDirectory(prefix="iot-bin-") as folder:
            programs = Path(folder)
            make_programs(programs, None if given.qemu else given.bin)
            with ThreadPoolExecutor(max(given.jobs, 1)) as pool:
                runner = Runner(suite, programs, given.limit)
                futures = [pool.submit(runner.run, *test) for test in wanted]
                try:
                    for (fmt, _), future in zip(wanted, futures, strict=True):
                        outcome = future.result()
                        counts[outcome.verdict] += 1
                        report(fmt, outcome, show=given.show)
                        if outcome.verdict is Verdict.PASS:
                            found.append(f"{fmt} {outcome.test}")
                except BaseException:  # Ctrl-C, and SIGTERM: see below
                    pool.shutdown(wait=False, cancel_futures=True)
                    runner.stop()
                    raise
    except (SuiteError, MissingProgram, ListError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        print("0 passed, 1 failed")
        return 1
    if given.discover:
        print("could be listed:", ", ".join(found) or "none")
        print(f"{counts[Verdict.PASS]} passed, {counts[Verdict.FAIL]} failed, {counts[Verdict.NOT_RUN]} not run")
        return 0
    if counts[Verdict.NOT_RUN]:
        print(f"{counts[Verdict.NOT_RUN]} of the failed did not run")
    failed = counts[Verdict.FAIL] + counts[Verdict.NOT_RUN]
    print(f"{counts[Verdict.PASS]} passed, {failed} failed")
    return 1 if failed or not counts[Verdict.PASS] else 0


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
