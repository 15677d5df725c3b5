"""A plot of a training run as an SVG: training loss and validation loss over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metrics import Metrics

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 28, 36, 44  # margins around the axes
_MAX_POINTS = 360  # of a curve; neighbours are averaged to stay below
_TRAINING, _VALIDATION = "#a9b1bb", "#2563a8"
_GRID, _INK = "#e5e7eb", "#374151"

Point = tuple[float, float]


def loss_curve(lines: Sequence[Metrics]) -> str:
    """The SVG of the lines of metrics.jsonl; empty axes if they hold no loss."""
    training = _thinned(_points(lines, "loss"))
    validation = _points(lines, "held_out")
    points = [*training, *validation] or [(0.0, 0.0)]
    x_ticks = _ticks(0.0, max(x for x, _ in points))
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    axes = _Axes(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    body = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *(_y_tick(axes, y) for y in y_ticks),
        *(_x_tick(axes, x) for x in x_ticks),
        _text(_LEFT + axes.width / 2, _HEIGHT - 8, "steps", "middle"),
        _text(_LEFT, 20, "loss, nats per token", "start"),
        *_legend(bool(validation)),
        _line(axes, training, _TRAINING),
        _line(axes, validation, _VALIDATION),
        *(_dot(axes, point) for point in validation),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _points(lines: Sequence[Metrics], name: str) -> list[Point]:
    """(step, value) of the lines with a finite value of that name."""
    found = [(line["step"], line.get(name)) for line in lines]
    return [
        (float(step), float(value))
        for step, value in found
        if isinstance(value, int | float) and abs(value) < 1e9  # false for NaN
    ]


def _thinned(points: list[Point]) -> list[Point]:
    """At most _MAX_POINTS points, each the mean of neighbours."""
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _ticks(low: float, high: float) -> list[float]:
    """At most ten round numbers at equal distances, from at most `low` to at least `high`."""
    span = max(high - low, 1e-6 * abs(high)) or 1.0  # wide enough for floats to tell ticks apart
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * n for n in (1, 2, 5, 10) if span / (unit * n) <= 8)
    first, last = math.floor(low / step), math.ceil(max(high, low + step) / step)
    return [n * step for n in range(first, last + 1)]


class _Axes:
    """Maps (step, loss) to coordinates in the SVG."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.width, self.height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        self._left, self._low = left, low
        self._x_unit, self._y_unit = self.width / (right - left), self.height / (high - low)

    def x(self, step: float) -> float:
        return _LEFT + (step - self._left) * self._x_unit

    def y(self, loss: float) -> float:
        return _TOP + self.height - (loss - self._low) * self._y_unit


def _y_tick(axes: _Axes, loss: float) -> str:
    y = axes.y(loss)
    line = f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_GRID}"/>'
    return line + _text(_LEFT - 8, y + 4, f"{loss:.10g}", "end")


def _x_tick(axes: _Axes, step: float) -> str:
    return _text(axes.x(step), _HEIGHT - _BOTTOM + 18, f"{step:.10g}", "middle")


def _line(axes: _Axes, points: list[Point], color: str) -> str:
    coordinates = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
    return f'<polyline points="{coordinates}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def _dot(axes: _Axes, point: Point) -> str:
    x, y = point
    return f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.5" fill="{_VALIDATION}"/>'


def _legend(with_validation: bool) -> list[str]:
    names = [("training", _TRAINING)] + [("validation", _VALIDATION)] * with_validation
    parts = []
    for n, (name, color) in enumerate(names):
        x = _WIDTH - _RIGHT - 110 * (len(names) - n)
        parts.append(f'<path d="M{x} 16h20" stroke="{color}" stroke-width="2"/>')
        parts.append(_text(x + 26, 20, name, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{_INK}" text-anchor="{anchor}">{text}</text>'
