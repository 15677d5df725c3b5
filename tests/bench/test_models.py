"""Tasks of bench/models.py, and the tables that bench/page.py makes of what they measured."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def models() -> Iterator[Any]:
    """The module, which is in no package and imports its neighbours by name."""
    sys.path.insert(0, str(BENCH))
    try:
        import models

        yield models
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture
def minigpt(models, tmp_path) -> Any:
    """Engine functions on a tiny model."""
    models.write_checkpoint("tiny", tmp_path)
    return models.engines.load_minigpt(tmp_path, "tiny", "f32", 1)


def test_tasks_count_their_tokens(models) -> None:
    found = {name: (task.kind, task.tokens) for name, task in models.TASKS.items()}
    assert found == {
        "prefill": ("prefill", 512),
        "decode": ("decode", 64),
        "decode_deep": ("decode", 64),
        "batch": ("batch", 32 * 16),
        "pass_1": ("passes", 8),
        "pass_8": ("passes", 64),
        "pass_16": ("passes", 128),
    }


def test_minigpt_does_every_task(models, minigpt, monkeypatch) -> None:
    monkeypatch.setattr(models.engines, "loaded", [minigpt])
    monkeypatch.setattr(models, "ask", lambda _, function, *arguments: function(*arguments))
    for task in models.TASKS.values():
        small = task._replace(depth=20, written=min(task.written, 4))
        assert models.does(None, small.kind)
        assert models.seconds_for(None, small) > 0


def test_an_engine_without_a_task_is_left_out_of_it(models, monkeypatch) -> None:
    engine = models.engines.Engine(lambda ids: (1.0, ids), lambda ids, count: 1.0)
    monkeypatch.setattr(models.engines, "loaded", [engine])
    found = {kind: models.engines.does(kind) for kind in ("prefill", "decode", "batch", "passes")}
    assert found == {"prefill": True, "decode": True, "batch": False, "passes": False}


def test_a_batch_is_timed_while_all_sequences_run(models, minigpt, monkeypatch) -> None:
    """Prompts of more tokens than a pass takes: all have begun, and none has ended."""
    from minigpt.generation.scheduler import Scheduler

    sizes = []
    step = Scheduler.step

    def counted(self):
        events = step(self)
        sizes.append(len(events))
        return events

    monkeypatch.setattr(Scheduler, "step", counted)
    minigpt.batch(models.random_ids(8 * 128).reshape(8, 128), 5)
    assert sizes[-5:] == [8] * 5
    assert len(sizes) > 6


def test_tables_of_the_new_tasks(models) -> None:
    pytest.importorskip("matplotlib")
    import page

    seconds = {"batch": [2.0], "pass_1": [0.08], "pass_8": [0.1], "pass_16": [0.16]}
    result = {
        "engines": {
            "minigpt bf16": {"seconds": seconds, "ratios": {}},
            "openvino bf16": {"seconds": seconds, "ratios": {"batch": 1.5}},
            "llama.cpp f16": {"seconds": {}, "ratios": {}},
        }
    }
    rows = page.together_table(result).splitlines()[2:]
    assert rows == [
        "| **minigpt bf16** | 256 | 10 | 12.5 (1.25) | 20 (2.00) |",
        "| openvino bf16 | 256 (1.50) | 10 | 12.5 (1.25) | 20 (2.00) |",
    ]
    assert page.speed_cell(result["engines"]["llama.cpp f16"], "batch") == ""


def test_openvino_computes_minigpts_logits(models, minigpt, tmp_path) -> None:
    """In one pass, in two, and in 8 and 4 bits as far as these are the same model."""
    pytest.importorskip("openvino")
    import openvino_graph as graph

    ids = models.random_ids(40)
    expected = minigpt.prefill(ids)[1]
    for dtype, tolerance in {"f32": 1e-5, "int8": 5e-2, "int4": 5e-1}.items():
        sequence = graph.Sequence(tmp_path, dtype, 1, last_only=dtype != "int8")
        for pieces in ([ids], [ids[:30], ids[30:]]):
            sequence.clear()
            for piece in pieces:
                logits = sequence.step(piece)[-1].copy()
            wide = max(tolerance, 1e-2) if len(pieces) > 1 else tolerance  # 8 bits hold the keys
            np.testing.assert_allclose(
                logits, expected, rtol=0, atol=wide * np.abs(expected).max(), err_msg=dtype
            )


def test_readmes_tables_are_made_anew(models) -> None:
    pytest.importorskip("matplotlib")
    import page

    engines = {"minigpt f32": {"seconds": {"prefill": [0.5]}, "ratios": {}}}
    reports = {"some-cpu": {"results": [{"size": "111M", "engines": engines}]}}
    text = "a\n<!-- speeds: some-cpu 111M -->\nold\n<!-- end of speeds -->\nb"
    made = page.with_speeds(text, reports)
    assert made.startswith("a\n<!-- speeds: some-cpu 111M -->\n| tokens per second | prefill 512 |")
    assert made.endswith("| **minigpt f32** | 1,024 |  |  |\n<!-- end of speeds -->\nb")
