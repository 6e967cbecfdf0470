"""The picture of a chain's map in the terminal: a row of cells a layer, by colour, or by plain characters."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.text import Text

from .layer_map import COMPRESSED, DATA, KINDS, OPEN, ZERO, LayerMap, shares, totals
from .quantities import human, offset_text, percent
from .terminal import shown

if TYPE_CHECKING:
    from .terminal import Terminal

__all__ = ["draw_map", "row"]

_COLORS = {DATA: "bright_blue", COMPRESSED: "magenta", ZERO: "yellow", OPEN: "bright_black"}
"""Colours that every terminal has, in the shades of its user."""

_WORDS = {
    DATA: "data",
    COMPRESSED: "compressed data",
    ZERO: "reads as zeroes",
    OPEN: "left to the layers below",
}
_PLAIN = {DATA: "#", COMPRESSED: "%", ZERO: "0", OPEN: "."}
_BLOCKS = "░▒▓█"
_END, _PLAIN_END = "▏", "|"


def draw_map(terminal: "Terminal", layers: Sequence[LayerMap], start: int, end: int) -> None:
    """Draw the layers, the top first, from offset `start` to `end`."""
    drawn = terminal.draws
    names = [f"{layer.depth} {shown(layer.filename).plain}" for layer in layers]
    wide = min(max(map(len, names)), max(terminal.out.width // 4, 12))
    cells = max(min(terminal.out.width, 160) - wide - 3, 16)
    for name, layer in zip(names, layers, strict=True):
        label = name if len(name) <= wide else name[: wide - 1] + ("…" if drawn else "~")
        terminal.print(Text.assemble((label.ljust(wide), "bold"), " ", row(layer, start, end, cells, drawn=drawn)))
    terminal.print(_ruler(wide, cells, start, end, drawn))
    terminal.print("")
    terminal.print(_legend(drawn))
    terminal.print("")
    _summary(terminal, layers)


def row(layer: LayerMap, start: int, end: int, cells: int, *, drawn: bool) -> Text:
    """One layer as so many cells, and a mark where it ends, if that is among them.

    A cell has the colour of what most of it is, of what the layer decides; how much of it that is, is how full it is.
    """
    columns = np.linspace(start, max(end, start + 1), cells + 1)
    found = shares(layer, columns)
    cells_of_layer = int(np.searchsorted(columns[:-1], layer.end, "left"))
    text = Text()
    for kind, group in groupby(range(cells_of_layer), lambda cell: _main_kind(found[:, cell])):
        parts = [found[:, cell] for cell in group]
        text.append("".join(_cell(kind, float(part[1:].sum() / part.sum()), drawn) for part in parts), _COLORS[kind])
    if start <= layer.length == layer.end:
        text.append(_END if drawn else _PLAIN_END, "bold red")
    return text


def _main_kind(found: npt.NDArray[np.float64]) -> int:
    """What most of a cell is, of what the layer decides."""
    decided = found[1:]
    return int(decided.argmax()) + 1 if decided.any() else OPEN


def _cell(kind: int, share: float, drawn: bool) -> str:
    if not drawn:
        return _PLAIN[kind]
    if kind == OPEN:
        return "·"
    return _BLOCKS[min(int(share * len(_BLOCKS)), len(_BLOCKS) - 1)]


def _ruler(wide: int, cells: int, start: int, end: int, drawn: bool) -> Text:
    """Offsets below the picture: at the left, in the middle and at the right."""
    step = 1 << max((end - start).bit_length() - 2, 0)
    left, middle, right = (offset_text(offset, step) for offset in (start, (start + end) // 2, end))
    line = [" "] * cells
    for text, at in ((left, 0), (middle, cells // 2 - len(middle) // 2), (right, cells - len(right))):
        line[at : at + len(text)] = text
    return Text(" " * (wide + 1) + "".join(line), style="bright_black")


def _legend(drawn: bool) -> Text:
    text = Text()
    for kind in (DATA, COMPRESSED, ZERO, OPEN):
        text.append(_cell(kind, 1.0, drawn) * (1 if kind == OPEN or not drawn else 2), _COLORS[kind])
        text.append(f" {_WORDS[kind]}   ")
    text.append(_END if drawn else _PLAIN_END, "bold red")
    text.append(" end of the layer")
    return text


def _summary(terminal: "Terminal", layers: Sequence[LayerMap]) -> None:
    """What each layer holds, in numbers."""
    rows = []
    for layer in layers:
        counts = totals(layer)
        seen = layer.end - layer.start
        cells = [
            f"{human(counts[KINDS[kind]])} ({percent(counts[KINDS[kind]], seen)})" if counts[KINDS[kind]] else "-"
            for kind in (DATA, COMPRESSED, ZERO, OPEN)
        ]
        rows.append((str(layer.depth), layer.filename, layer.format, human(layer.length), *cells))
    columns = ("#", "Layer", "Format", "Size", "Data", "Compressed", "Zeroes", "Left open")
    terminal.table(columns, rows, right=("Size", "Data", "Compressed", "Zeroes", "Left open"))
