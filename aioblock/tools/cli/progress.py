"""Progress of long work, on stderr: a bar with rate and time left, or a line of JSON a step."""

import json
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .quantities import human
from .terminal import Terminal

__all__ = ["INTERVAL", "WorkProgress"]

INTERVAL = 0.1
"""Seconds between two steps that are shown; the first and the last always are."""


class _Amount(ProgressColumn):
    """How much of how much."""

    def render(self, task: Task) -> Text:
        total = human(task.total) if task.total is not None else "?"
        return Text(f"{human(task.completed)} of {total}", style="green", justify="right")


class _Rate(ProgressColumn):
    """How fast."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{human(speed)}/s" if speed else "", style="magenta", justify="right")


class WorkProgress:
    """`with WorkProgress(terminal, "convert") as progress:` - and `progress(done, total)` now and then.

    They are bytes, unless `unit` says what they are.

    Where it is to be shown is the terminal's `progress`: "bar", "json", "none", or "auto": a bar where stderr is a
    terminal and nobody asked for quiet.
    """

    def __init__(self, terminal: Terminal, step: str, *, unit: str = "bytes") -> None:
        self.step = step
        self.unit = unit
        self.done = self.total = 0
        self._begin = self._shown = time.monotonic()
        self._first = True
        mode = terminal.progress
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() and not terminal.quiet else "none"
        self._json = mode == "json"
        self._bar = _bar(terminal, unit) if mode == "bar" else None
        self._task = self._bar.add_task(step, total=None) if self._bar is not None else None

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._begin

    def __enter__(self) -> Self:
        self._begin = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.done = self.total
        self._show("done" if error is None else "failed")
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` bytes are done."""
        self.done, self.total = done, total
        now = time.monotonic()
        if self._first or now - self._shown >= INTERVAL:
            self._first, self._shown = False, now
            self._show("running")

    def _show(self, state: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, total=self.total or None)
        if self._json:
            sys.stderr.write(json.dumps(self._line(state)) + "\n")
            sys.stderr.flush()

    def _line(self, state: str) -> dict[str, Any]:
        seconds = self.seconds
        speed = self.done / seconds if seconds > 0 else 0.0
        left = (self.total - self.done) / speed if speed else None
        return {
            "step": self.step,
            "state": state,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "per_second": round(speed),
            "seconds": round(seconds, 3),
            "seconds_left": None if left is None else round(left, 3),
        }


def _bar(terminal: Terminal, unit: str) -> Progress:
    amounts = (_Amount(), _Rate()) if unit == "bytes" else ()
    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %", markup=False),
        *amounts,
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=terminal.err,
        expand=True,
        transient=True,
        redirect_stdout=False,
    )
