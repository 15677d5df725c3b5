"""A picture of a training run, as an SVG: the loss of its batches, and on the held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metrics import Line

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 28, 36, 44  # what is beside the field that the curves are in
_POINTS = 360  # of a curve; of more, neighbours are averaged
_BATCHES, _HELD_OUT = "#a9b1bb", "#2563a8"
_GRID, _INK = "#e5e7eb", "#374151"

Point = tuple[float, float]


def loss_curve(lines: Sequence[Line]) -> str:
    """The SVG of the lines of metrics.jsonl; an empty frame where they hold no loss."""
    batches, held_out = _thinned(_points(lines, "loss")), _points(lines, "held_out")
    points = [*batches, *held_out] or [(0.0, 0.0)]
    x_ticks = _ticks(0.0, max(x for x, _ in points))
    y_ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    field = _Field(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    body = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *(_level(field, y) for y in y_ticks),
        *(_mark(field, x) for x in x_ticks),
        _text(_LEFT + field.width / 2, _HEIGHT - 8, "updates", "middle"),
        _text(_LEFT, 20, "loss, nats per token", "start"),
        *_legend(bool(held_out)),
        _line(field, batches, _BATCHES),
        _line(field, held_out, _HELD_OUT),
        *(_dot(field, point) for point in held_out),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _points(lines: Sequence[Line], name: str) -> list[Point]:
    """(step, value) of the lines that hold a value of that name which can be drawn."""
    found = [(line["step"], line.get(name)) for line in lines]
    return [
        (float(step), float(value))
        for step, value in found
        if isinstance(value, int | float) and abs(value) < 1e9  # not so of NaN
    ]


def _thinned(points: list[Point]) -> list[Point]:
    """At most _POINTS of them: the means of as many neighbours as that takes."""
    size = math.ceil(len(points) / _POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def _ticks(low: float, high: float) -> list[float]:
    """At most ten round numbers, equally far apart, from below `low` to above `high`."""
    span = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * n for n in (1, 2, 5, 10) if span / (unit * n) <= 8)
    first, last = math.floor(low / step), math.ceil(max(high, low + step) / step)
    return [n * step for n in range(first, last + 1)]


class _Field:
    """Where numbers lie in the picture."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.width, self.height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        self._left, self._low = left, low
        self._x_unit, self._y_unit = self.width / (right - left), self.height / (high - low)

    def x(self, step: float) -> float:
        return _LEFT + (step - self._left) * self._x_unit

    def y(self, loss: float) -> float:
        return _TOP + self.height - (loss - self._low) * self._y_unit


def _level(field: _Field, loss: float) -> str:
    y = field.y(loss)
    line = f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{_GRID}"/>'
    return line + _text(_LEFT - 8, y + 4, f"{loss:.10g}", "end")


def _mark(field: _Field, step: float) -> str:
    return _text(field.x(step), _HEIGHT - _BOTTOM + 18, f"{step:.10g}", "middle")


def _line(field: _Field, points: list[Point], color: str) -> str:
    places = " ".join(f"{field.x(x):.1f},{field.y(y):.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def _dot(field: _Field, point: Point) -> str:
    x, y = point
    return f'<circle cx="{field.x(x):.1f}" cy="{field.y(y):.1f}" r="2.5" fill="{_HELD_OUT}"/>'


def _legend(with_held_out: bool) -> list[str]:
    names = [("batches", _BATCHES)] + [("held-out text", _HELD_OUT)] * with_held_out
    parts = []
    for n, (name, color) in enumerate(names):
        x = _WIDTH - _RIGHT - 110 * (len(names) - n)
        parts.append(f'<path d="M{x} 16h20" stroke="{color}" stroke-width="2"/>')
        parts.append(_text(x + 26, 20, name, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{_INK}" text-anchor="{anchor}">{text}</text>'
