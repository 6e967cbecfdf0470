"""Lines of text out of columns of numbers, thousands at a time.

Every line is laid out in columns of 4 bytes, which NumPy fills for all lines at once: a number takes as many of them as
the largest needs, and what a line does not need stays zero. In the end the zero bytes are left out.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

import numpy as np

__all__ = ["Numbers", "decimal", "format_lines", "padded_hex"]

AT_ONCE: Final = 8192
"""Lines that are laid out together: as many as stay in the processor's cache."""
CELL: Final = 4
"""Bytes of a column."""


class Numbers:
    """How numbers from 0 on are written. `prefix`: before all but 0; `width`: spaces follow, up to so many bytes."""

    def __init__(self, base: int, digits: int, prefix: bytes = b"", width: int = 0) -> None:
        self.base = base
        self.group = base**digits
        """What one column can tell: so many digits."""
        self.prefix = int.from_bytes(prefix.rjust(CELL, b"\0"), "little")
        self.prefix_bytes = len(prefix)
        self.width = width
        number = np.arange(self.group, dtype=np.int64)
        text = np.zeros((3, self.group, CELL), np.uint8)
        """With zeroes in front; without; and so that 0 is seen."""
        for place in range(digits):
            text[0, :, -1 - place] = np.frombuffer(b"0123456789abcdef", np.uint8)[number // base**place % base]
            text[1, :, -1 - place] = np.where(number >= base**place, text[0, :, -1 - place], 0)
        text[1, 0] = 0
        text[2] = text[1]
        text[2, 0, -1] = ord("0")
        self._inner, self._first, self._last = text.view("<u4")[:, :, 0]
        self._powers = np.array([base**power for power in range(1, 64) if base**power < 1 << 63], np.int64)
        pads = [b" " * max(width - length, 0) for length in range(width + 1)]
        self._pads = np.frombuffer(b"".join(pad.ljust(width, b"\0") for pad in pads), "<u4").reshape(width + 1, -1)

    def columns(self, largest: int) -> int:
        """How many columns numbers up to `largest` take."""
        groups = 1
        while largest >= self.group:
            largest //= self.group
            groups += 1
        return groups + (self.prefix_bytes > 0) + self.width // CELL

    def put(self, cells: Any, values: Any) -> None:
        """Write a number into each row of `cells`; one below 0 is left out."""
        last = cells.shape[1] - self.width // CELL - 1
        if self.width:
            length = 1 + np.searchsorted(self._powers, values, "right") + (values > 0) * self.prefix_bytes
            cells[:, last + 1 :] = self._pads[np.minimum(length, self.width)]
        first = 0
        if self.prefix_bytes:
            cells[:, 0] = (values > 0) * np.uint32(self.prefix)
            first = 1
        rest, texts = values, self._last
        for column in range(last, first, -1):
            above = rest // self.group
            group = rest - above * self.group
            cells[:, column] = np.where(above > 0, self._inner[group], texts[group])
            rest, texts = above, self._first
        cells[:, first] = texts[rest]
        if values.size and values.min() < 0:
            cells[values < 0] = 0


@cache
def decimal() -> Numbers:
    """As `%d`."""
    return Numbers(10, 4)


@cache
def padded_hex() -> Numbers:
    """As `%#-16x`."""
    return Numbers(16, 3, b"0x", 16)


def format_lines(
    numbers: Numbers, texts: Sequence[Sequence[bytes]], which: Any, columns: Sequence[Any]
) -> Iterator[bytes]:
    """Line i is a text, a number, a text ... and a text: those of `texts[which[i]]`, and `columns[...][i]`.

    A number below 0 is left out. The lines come many in one piece; no text has a zero byte in it.
    """
    cells = 0
    places: list[tuple[int, int]] = []
    rows = [bytearray() for _ in texts]
    for number, parts in enumerate(zip(*texts, strict=True)):
        wide = -(-max(map(len, parts)) // CELL) * CELL
        for row, part in zip(rows, parts, strict=True):
            row += part.ljust(wide, b"\0")
        cells += wide // CELL
        if number < len(columns):
            room = numbers.columns(int(columns[number].max(initial=0)))
            for row in rows:
                row += bytes(room * CELL)
            places.append((cells, cells + room))
            cells += room
    blank = np.frombuffer(b"".join(rows), "<u4").reshape(len(rows), cells)
    for at in range(0, len(which), AT_ONCE):
        page = blank[which[at : at + AT_ONCE]]
        for (first, end), column in zip(places, columns, strict=True):
            numbers.put(page[:, first:end], column[at : at + AT_ONCE])
        flat = page.view(np.uint8).ravel()
        yield flat[flat != 0].tobytes()
