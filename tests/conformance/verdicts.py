"""One test of the suite: how it is run, and what became of it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from tests.conformance.programs import environment

__all__ = ["Outcome", "Runner", "Verdict", "verdict_of"]

_LINE = re.compile(r"^(?P<test>\S+) +(?P<state>pass|fail|not run)\b", re.MULTILINE)

# What changes how the interpreter of the programs behaves: users do not have it.
_NOT_THERE = ("PYTHONUNBUFFERED", "PYTHONASYNCIODEBUG", "PYTHONDEVMODE", "PYTHONPATH")


class Verdict(StrEnum):
    """What became of a test."""

    PASS = "pass"
    FAIL = "fail"
    NOT_RUN = "not run"


class Outcome(NamedTuple):
    """A test that was run."""

    test: str
    verdict: Verdict
    output: str
    """What the suite printed, with the differences."""
    seconds: float


def verdict_of(test: str, status: int, output: str) -> Verdict:
    """What the suite says of a test by its output and exit status. What it does not say is a failure."""
    said = [found["state"] for found in _LINE.finditer(output) if found["test"] == test]
    if not said:
        return Verdict.FAIL
    verdict = Verdict(said[-1])
    return Verdict.FAIL if verdict is Verdict.PASS and status != 0 else verdict


class Runner:
    """Runs tests, several at the same time from several threads."""

    def __init__(self, suite: Path, programs: Path, limit: float) -> None:
        """`programs`: the folder that `make_programs` has filled. `limit`: seconds for one test."""
        self._suite, self._programs, self._limit = suite, programs, limit
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, fmt: str, test: str) -> Outcome:
        """Run one test in a folder of its own. At the limit it is ended with all that it started, and has failed."""
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="iot-") as work, tempfile.TemporaryFile() as output:
            inherited = {name: value for name, value in os.environ.items() if name not in _NOT_THERE}
            process = subprocess.Popen(
                [sys.executable, "check", f"-{fmt}", test],
                cwd=self._suite,
                env=inherited | environment(self._programs, Path(work)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
            late = ""
            try:
                process.wait(0 if self._stopped else self._limit)
            except subprocess.TimeoutExpired:
                late = f"\nno end in {self._limit:g} s\n"
            finally:
                _end(process)
                self._running.discard(process)
            output.seek(0)
            text = output.read().decode(errors="replace").replace("\r", "\n") + late
        verdict = Verdict.FAIL if late else verdict_of(Path(test).name, process.returncode, text)
        return Outcome(test, verdict, text, time.monotonic() - begun)

    def stop(self) -> None:
        """End all that run; who runs another one afterwards sees it fail."""
        self._stopped = True
        for process in tuple(self._running):
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a test's whole session: what it left behind in the background too."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
