"""Debugger: what a filter for tests offers to the layers above it: they tell it of their steps, and it may stop them.

A step is an *event* with QEMU's name for it ("l2_load", "write_aio" ...). A driver that finds a debugger below it (its
file child's node has one: `BlockNode.debugger`) tells it of each step just before the request that the step makes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

__all__ = ["Debugger"]


class Debugger(ABC):
    """Where events are told, and breakpoints are set."""

    announce: Callable[[str], None] | None = None
    """Called with a line for people when a request is suspended or resumed."""

    @abstractmethod
    async def event(self, name: str) -> None:
        """A step is about to be done. Suspends while a breakpoint holds it. Never fails: what it causes fails later."""

    @abstractmethod
    def set_break(self, event: str, tag: str) -> None:
        """Suspend the next request that comes to `event`, and call it `tag`. Raises: OSError ENOENT: no such event."""

    @abstractmethod
    def remove_break(self, tag: str) -> None:
        """Forget the breakpoints of a tag, and resume what they have suspended.

        Raises: OSError ENOENT where no breakpoint was waiting for its request any more.
        """

    @abstractmethod
    def resume(self, tag: str) -> None:
        """Let one request that is suspended as `tag` go on. Raises: OSError ENOENT where there is none."""

    @abstractmethod
    async def suspended(self, tag: str) -> None:
        """Wait until a request is suspended as `tag`."""
