"""The percentage that `-p` shows."""

import sys

__all__ = ["Progress"]


class Progress:
    """Shows how much is done, no more often than once a percent; nothing at all unless `shown`."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._last = 0.0

    def begin(self) -> None:
        """Nothing is done yet."""
        self._show(0.0)

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` bytes are done."""
        percent = done * 100 / total if total else 100.0
        if percent - self._last >= 1 or (percent == 100 and self._last != 100):
            self._show(percent)

    def end(self, complete: bool = True) -> None:
        """The work has ended."""
        if complete:
            self._show(100.0)
        if self._shown:
            print(flush=True)

    def _show(self, percent: float) -> None:
        self._last = percent
        if self._shown:
            sys.stdout.write(f"    ({percent:3.2f}/100%)\r")
            sys.stdout.flush()
