"""The picture of a chain's map as a file: matplotlib draws it, and is imported here only."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .failures import Failure
from .layer_map import COMPRESSED, DATA, KINDS, OPEN, ZERO, LayerMap, shares, totals
from .quantities import human, offset_text, percent
from .terminal import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ENDINGS", "plot_map"]

ENDINGS = (".svg", ".png", ".pdf")

_COLORS = {DATA: "#2563eb", COMPRESSED: "#9333ea", ZERO: "#fbbf24", OPEN: "#eef2f7"}
_WORDS = {DATA: "data", COMPRESSED: "compressed data", ZERO: "reads as zeroes", OPEN: "left to the layers below"}
_INK, _GREY, _END = "#1f2937", "#6b7280", "#dc2626"

_MOST_RUNS = 4000
"""More runs than this are drawn as so many columns: nobody sees more, and a file of them is too large to look at."""


def plot_map(path: str, title: str, layers: Sequence[LayerMap], start: int, end: int) -> None:
    """Draw the layers as rows, the top one above, over the offsets from `start` to `end`. Raises: Failure, OSError."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in ENDINGS:
        raise Failure(f"{path}: a picture ends with {', '.join(ENDINGS)}", hint="Name the file accordingly.", status=2)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Failure(
            f"--plot needs the package '{error.name}', which is not installed",
            hint="Install it with: pip install 'aioblock[plot]' - or leave --plot away, for a picture in the terminal.",
        ) from None

    title = shown(title).plain
    style: Any = {
        "font.family": "DejaVu Sans",
        "svg.fonttype": "none",
        "svg.hashsalt": "aioblock",
        "axes.edgecolor": _GREY,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(12, 1.75 + 0.72 * len(layers)), dpi=144, facecolor="white")
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
        axes = figure.add_subplot()
        for place, layer in enumerate(layers):
            _draw(axes, place, layer, start, end)
        _frame(axes, title, layers, start, end)
        metadata: dict[str, Any] = {"Title": title} if ending != ".svg" else {"Title": title, "Date": None}
        figure.savefig(path, format=ending[1:], metadata=metadata)


def _draw(axes: "Axes", place: int, layer: LayerMap, start: int, end: int) -> None:
    from matplotlib.collections import PolyCollection

    top, bottom = place - 0.36, place + 0.36
    for kind, (lefts, rights) in _boxes(layer).items():
        corners = np.empty((len(lefts), 4, 2))
        corners[:, 0, 0] = corners[:, 3, 0] = lefts
        corners[:, 1, 0] = corners[:, 2, 0] = rights
        corners[:, :2, 1], corners[:, 2:, 1] = top, bottom
        drawn = PolyCollection(corners, facecolors=_COLORS[kind], edgecolors="none", antialiaseds=False)  # type: ignore[arg-type]
        drawn.set_gid(f"layer-{layer.depth}-{KINDS[kind]}")
        axes.add_collection(drawn)
    if start <= layer.length <= end:
        (line,) = axes.plot([layer.length] * 2, [place - 0.46, place + 0.46], color=_END, linewidth=2, clip_on=False)
        line.set_gid(f"layer-{layer.depth}-eof")
        near = layer.length > start + (end - start) * 0.88
        label = axes.annotate(
            f"EOF {human(layer.length)}",
            (layer.length, place),
            xytext=(-5 if near else 5, 0),
            textcoords="offset points",
            ha="right" if near else "left",
            va="center",
            fontsize=8,
            color=_END,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )
        label.set_gid(f"layer-{layer.depth}-eof-label")


def _boxes(layer: LayerMap) -> dict[int, tuple[Any, Any]]:
    """Where the boxes of each kind begin and end."""
    edges, kinds = layer.edges.astype(float), layer.kinds
    if len(kinds) > _MOST_RUNS:
        edges = np.linspace(layer.start, layer.end, _MOST_RUNS + 1)
        kinds = shares(layer, edges)[1:].argmax(axis=0) + 1
        kinds = np.where(shares(layer, edges)[1:].any(axis=0), kinds, OPEN).astype(np.uint8)
    found = {}
    for kind in range(len(KINDS)):
        which = np.flatnonzero(kinds == kind)
        if len(which):
            found[kind] = (edges[which], edges[which + 1])
    return found


def _frame(axes: "Axes", title: str, layers: Sequence[LayerMap], start: int, end: int) -> None:
    """Names, numbers, offsets and the legend."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    axes.set_xlim(start, max(end, start + 1))
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_yticks(range(len(layers)), [_label(layer) for layer in layers], fontsize=9, color=_INK)
    step = _step(start, end)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda offset, _: offset_text(int(offset), step)))
    axes.tick_params(axis="x", labelsize=8.5, colors=_GREY)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#d1d5db", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"What the layers of {title} hold", loc="left", fontsize=12, fontweight="bold", color=_INK, pad=12)
    axes.set_xlabel("offset", fontsize=9, color=_GREY)
    patches = [
        Patch(facecolor=_COLORS[kind], edgecolor="#cbd5e1", label=_WORDS[kind])
        for kind in (DATA, COMPRESSED, ZERO, OPEN)
    ]
    legend = axes.figure.legend(
        handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=_INK
    )
    legend.set_gid("legend")


def _label(layer: LayerMap) -> str:
    counts = totals(layer)
    stored = counts["data"] + counts["compressed"]
    name = os.path.basename(layer.filename) if not layer.filename.startswith("json:") else layer.format
    name = shown(name).plain
    name = name if len(name) <= 34 else name[:33] + "…"
    return f"{name}\n{layer.format}, {human(layer.length)}, {percent(stored, layer.end - layer.start)} data"


def _step(start: int, end: int) -> int:
    """How far apart the marks are: a power of two, so that they are round numbers of bytes."""
    step = 1
    while (end - start) / step > 9:
        step *= 2
    return step
