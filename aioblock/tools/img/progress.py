"""The percentage that `-p` shows, and that SIGUSR1 asks for."""

import signal
import sys
from contextlib import suppress

__all__ = ["Progress"]


class Progress:
    """Shows how much is done, no more often than once a percent; nothing unless `shown`, or where SIGUSR1 asks for it.

    From the first one on, that signal does not end the program any more.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._last = self._percent = 0.0
        with suppress(ValueError, AttributeError):  # not the main thread, or a system without it
            signal.signal(signal.SIGUSR1, lambda *_: self._tell())

    def begin(self) -> None:
        """Nothing is done yet."""
        self._show(0.0)

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` bytes are done."""
        percent = self._percent = done * 100 / total if total else 100.0
        if percent - self._last >= 1 or (percent == 100 and self._last != 100):
            self._show(percent)

    def all_done(self) -> None:
        """There is no more to be done."""
        self._show(100.0)

    def end(self, complete: bool = True) -> None:
        """The work has ended."""
        if complete:
            self._show(100.0)
        if self._shown:
            print(flush=True)

    def _tell(self) -> None:
        print(f"    ({self._percent:3.2f}/100%)", file=sys.stderr, flush=True)

    def _show(self, percent: float) -> None:
        self._last = percent
        if self._shown:
            sys.stdout.write(f"    ({percent:3.2f}/100%)\r")
            sys.stdout.flush()
