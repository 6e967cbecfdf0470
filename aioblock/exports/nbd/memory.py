"""Memory: where long reads and writes wait, used again and again."""

from typing import Final

from aioblock.base.buffers import aligned_buffer

__all__ = ["Memory"]


class Memory:
    """Page-aligned memory by powers of two; what is given back is kept for the next one, up to a bound."""

    __slots__ = ("_free", "_kept", "keep")

    smallest: Final = 1 << 16
    """Shorter ones are plain bytearrays, and not kept: to make one is as quick."""

    def __init__(self, keep: int = 16 << 20) -> None:
        self.keep = keep
        self._kept = 0
        self._free: dict[int, list[memoryview]] = {}

    def __repr__(self) -> str:
        return f"<Memory kept={self._kept}>"

    def take(self, nbytes: int) -> memoryview:
        """A view of `nbytes`. What is in it is not said. Never given back: it is just freed.

        What is long takes neither memory nor time before something is put there: it may be announced, and never come.
        """
        if nbytes < self.smallest:
            return memoryview(bytearray(nbytes))
        size = 1 << (nbytes - 1).bit_length()
        free = self._free.get(size)
        if free:
            self._kept -= size
            return free.pop()[:nbytes]
        return aligned_buffer(size)[:nbytes]

    def give(self, view: memoryview) -> None:
        """Take back what `take` gave; nobody may use it any more."""
        nbytes = len(view)
        if nbytes < self.smallest or self._kept >= self.keep:
            return
        whole = memoryview(view.obj)
        self._kept += len(whole)
        self._free.setdefault(len(whole), []).append(whole)
