"""The loss curve is an SVG with its points at the losses; metrics.jsonl survives damage."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from minigpt.training.loss_curve import loss_curve
from minigpt.training.metrics import append_metrics, read_metrics, synced_size, truncate

SVG = "{http://www.w3.org/2000/svg}"


def parsed(lines: list[dict]) -> ElementTree.Element:
    root = ElementTree.fromstring(loss_curve(lines))
    assert root.tag == SVG + "svg"
    return root


def coordinates(line: ElementTree.Element) -> list[tuple[float, float]]:
    pairs = (point.split(",") for point in line.attrib["points"].split())
    return [(float(x), float(y)) for x, y in pairs]


def test_points_are_at_their_losses() -> None:
    lines: list[dict] = [{"step": 0, "held_out": 8.0}]
    lines += [{"step": n, "loss": 8.0 - n} for n in range(1, 4)]
    lines += [{"step": 4, "loss": 4.0, "held_out": 4.0}]
    root = parsed(lines)
    batches, held_out = (coordinates(line) for line in root.iter(SVG + "polyline"))
    assert len(list(root.iter(SVG + "circle"))) == 2
    assert batches[-1] == held_out[-1]
    (left, high), (right, low) = held_out
    expected = [(left + (right - left) * n / 4, high + (low - high) * n / 4) for n in range(1, 5)]
    for point, expected_point in zip(batches, expected, strict=True):
        assert point == pytest.approx(expected_point, abs=0.1)


def test_a_long_run_has_few_points() -> None:
    lines = [{"step": n, "loss": 5.0 + (-1) ** n} for n in range(1, 100_001)]
    (batches, none) = parsed(lines).iter(SVG + "polyline")
    assert 300 <= len(coordinates(batches)) <= 360
    assert len({y for _, y in coordinates(batches)}) == 1
    assert none.attrib["points"] == ""


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"step": 1}],
        [{"step": 1, "loss": 3.0}],
        [{"step": 5, "held_out": 0.0}],
        [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1e300}, {"step": 3, "loss": "<&"}],
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 3.0 + 1e-12}],
        [{"step": 1, "loss": 1e8}, {"step": 2, "loss": 1e8 + 2e-8}],
        [{"step": 0, "loss": -5}, {"step": 2**53, "loss": -0.0, "held_out": -(10**8)}],
    ],
)
def test_any_values_give_a_valid_svg(lines: list[dict]) -> None:
    assert 3 <= len(list(parsed(lines).iter(SVG + "path"))) < 20


def test_lines_are_appended_and_truncated(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    assert synced_size(path) == 0
    append_metrics(path, {"step": 1, "loss": 0.1})
    size = synced_size(path)
    append_metrics(path, {"step": 2, "loss": 0.3})
    assert read_metrics(path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.3}]
    truncate(path, size)
    assert read_metrics(path) == [{"step": 1, "loss": 0.1}]
    truncate(path, 1000)  # a shorter file stays
    assert path.stat().st_size == size
    with path.open("ab") as file:
        file.write(b'\xff\n[]\n{"loss": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 0.1}]
