"""Plots as SVG text: lines over two axes, linear or logarithmic. Nothing is loaded from anywhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Axis", "Line", "plot"]

_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 28, 14, 44

_COLORS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4d7c0f")

_MOST_POINTS = 1500
"""A line of more points looks the same, and makes a large file."""


@dataclass
class Axis:
    """What an axis is called, how its values are written, and whether it is logarithmic."""

    label: str
    shown: Callable[[float], str] = "{:g}".format
    log: bool = False
    ticks: Sequence[float] = ()
    """Where the marks are; none: at round values."""
    tight: bool = False
    """It ends with the last value, not with a round one behind it."""


@dataclass
class Line:
    """A name, and points from left to right. `steps`: as bars whose tops are joined."""

    name: str
    points: Sequence[tuple[float, float]]
    steps: bool = False


def plot(lines: Sequence[Line], across: Axis, up: Axis) -> str:
    """An `<svg>` element. What a logarithmic axis cannot show is left out; text says so where nothing is left."""
    drawn = [
        Line(line.name, _thinned([point for point in line.points if _fits(point, across, up)]), line.steps)
        for line in lines
    ]
    drawn = [line for line in drawn if line.points]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(up.label)} over {escape(across.label)}">'
    ]
    if drawn:
        xs = [x for line in drawn for x, _ in line.points]
        ys = [y for line in drawn for _, y in line.points]
        x_scale = _Scale(across, min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
        y_scale = _Scale(up, min(ys), max(ys), _HEIGHT - _BOTTOM, _TOP)
        parts += _frame(x_scale, y_scale)
        for number, line in enumerate(drawn):
            parts.append(_path(line, x_scale, y_scale, _COLORS[number % len(_COLORS)]))
    else:
        parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">nothing to show</text>')
    parts.append("</svg>")
    return "\n".join(parts) + _legend(drawn)


class _Scale:
    """From values to places."""

    def __init__(self, axis: Axis, least: float, most: float, start: float, end: float) -> None:
        self.axis = axis
        self.start, self.end = start, end
        self._from: float
        self._to: float
        if axis.log:
            self._from, self._to = math.floor(math.log10(least)), math.ceil(math.log10(most))
            if axis.ticks:
                self._from, self._to = math.log10(min(axis.ticks)), math.log10(max(*axis.ticks, most))
        else:
            step = _round_step(most - min(least, 0))
            self._from = min(0, math.floor(least / step) * step)
            self._to = most if axis.tight else math.ceil(most / step) * step
        if self._from == self._to:
            self._to = self._from + 1

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self.axis.log else value
        return round(self.start + (place - self._from) / (self._to - self._from) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if self.axis.ticks:
            return [tick for tick in self.axis.ticks if not self.axis.log or self._from <= math.log10(tick) <= self._to]
        if self.axis.log:
            decades = range(int(self._from), int(self._to) + 1)
            return [10.0**power for power in decades if len(decades) <= 9 or power % 2 == 0]
        step = _round_step(self._to - self._from)
        return [self._from + number * step for number in range(math.floor((self._to - self._from) / step + 1e-9) + 1)]


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that some five of it make the span."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 6)


def _fits(point: tuple[float, float], across: Axis, up: Axis) -> bool:
    return all(
        math.isfinite(value) and (not axis.log or value > 0) for value, axis in zip(point, (across, up), strict=True)
    )


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    every = -(-len(points) // _MOST_POINTS) if points else 1
    return [*points[::every], *points[-1:]] if every > 1 else points


def _frame(across: _Scale, up: _Scale) -> list[str]:
    parts = []
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(up.axis.shown(tick))}</text>')
    for tick in across.ticks():
        x = across(tick)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" class="grid"/>')
        parts.append(
            f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{escape(across.axis.shown(tick))}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" text-anchor="middle" class="label">'
        f"{escape(across.axis.label)}</text>"
    )
    parts.append(
        f'<text transform="translate(12 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle" class="label">'
        f"{escape(up.axis.label)}</text>"
    )
    return parts


def _path(line: Line, across: _Scale, up: _Scale, color: str) -> str:
    steps = []
    for number, (x, y) in enumerate(line.points):
        if number and line.steps:
            steps.append(f"H{across(x)}V{up(y)}")
        else:
            steps.append(f"{'L' if number else 'M'}{across(x)} {up(y)}")
    dot = f'<circle cx="{across(x)}" cy="{up(y)}" r="3" fill="{color}"/>' if len(line.points) == 1 else ""
    return f'<path d="{"".join(steps)}" stroke="{color}" class="line"/>{dot}'


def _legend(lines: Sequence[Line]) -> str:
    if not any(line.name for line in lines):
        return ""
    names = "".join(
        f'<li><i style="background:{_COLORS[number % len(_COLORS)]}"></i>{escape(line.name)}</li>'
        for number, line in enumerate(lines)
    )
    return f'<ul class="legend">{names}</ul>'
