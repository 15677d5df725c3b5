"""Every step of bench/ladder.py computes the product, and docs/kernels.md shows its code."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.layout import QUANT_BLOCK, bf16_to_f32, f32_to_bf16, unpack_panels

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "bench" / "ladder.py"
PAGE = ROOT / "docs" / "kernels.md"


def load_ladder() -> ModuleType:
    """Import bench/ladder.py, which is in no package and imports its neighbours by name."""
    spec = importlib.util.spec_from_file_location("ladder", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SOURCE.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SOURCE.parent))
    return module


ladder = load_ladder()
STEPS = [(name, step) for name in ("MANY_ROWS", "ONE_ROW") for step in getattr(ladder, name)]


@pytest.fixture(scope="module")
def problem():
    """Sizes that are no multiple of a tile, of ROWS, of K_BLOCK or of N_BLOCK."""
    return ladder.Problem(ladder.ROWS + 7, ladder.K_BLOCK + 5, 70)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 thread", "2 threads"])
def runners(request):
    return {request.param: ladder.Runner(request.param)}


def product(problem, step):
    """The product in float64, of the x and w that this step multiplies; [M or 1, N]."""
    K, N = problem.K, problem.N
    w = problem.w["rows"].reshape(K, N)
    x = problem.x.reshape(-1, K)[: problem.M if step in ladder.MANY_ROWS else 1]
    if step.w == "bf16":
        w = bf16_to_f32(unpack_panels(problem.w["bf16"], K, N))
    elif step.w in ("int8", "int4"):
        q, *scales = reference.quantize(w, step.w)
        scale, *offset = (repeat(blocks, 0, K) for blocks in scales)
        w = q * scale + sum(offset)
        q, scale = reference.quantize_activations(x)
        x = q * repeat(scale, 1, K)
    if step.kernel is ladder.amx_tiles:
        x = bf16_to_f32(f32_to_bf16(x))
    y = x.astype(np.float64) @ w
    return reference.gelu_forward(y + problem.bias) if "GELU" in step.name else y


def repeat(blocks, axis, K):
    """A value of each QUANT_BLOCK of K, repeated for each of its elements, in float64."""
    return np.repeat(blocks.astype(np.float64), QUANT_BLOCK, axis).take(range(K), axis)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [step for _, step in STEPS], ids=[f"{name}: {step.name}" for name, step in STEPS]
)
def test_every_step_computes_the_product(step, problem, runners):
    if not ladder.runs_here(step):
        pytest.skip("needs AMX; tests/kernels/simd/test_amx.py runs it in an emulator")
    for run in ladder.runs([step], problem, runners):
        problem.y[:] = np.nan
        run.call()
        expected = product(problem, step)
        y = problem.y[: expected.size].reshape(expected.shape)
        np.testing.assert_allclose(y, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_a_row_has_the_same_bits_for_any_number_of_threads_and_rows(problem):
    many, one = (
        next(step for step in steps if step.name == "the kernel")
        for steps in (ladder.MANY_ROWS, ladder.ONE_ROW)
    )
    results = []
    for threads in (1, 3):
        for step in (many, one):
            ladder.Runner(threads).run(step.kernel, *problem.arguments(step))
            results.append(problem.y[: problem.N].copy())
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_step_for_amx_runs_where_amx_is(problem, monkeypatch):
    step = next(step for step in ladder.MANY_ROWS if step.kernel is ladder.amx_tiles)
    for amx in (True, False):
        monkeypatch.setattr(ladder, "AMX", amx)
        assert len(ladder.runs([step], problem, {})) == amx


def test_rates_are_the_best_round_and_slow_runs_are_not_repeated(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(ladder.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(ladder.time, "sleep", lambda seconds: None)

    def taking(name, times):
        def call():
            calls.append(name)
            now[0] += times.pop(0)

        return ladder.Run(name, 1, call, work=1.0)

    found = ladder.rates([taking("quick", [0.25, 0.125, 0.25]), taking("slow", [4.0])], rounds=3)
    assert found == {"quick": {1: 8.0}, "slow": {1: 0.25}}
    assert calls == ["quick", "slow", "quick", "quick"]


def test_the_table_compares_each_step_with_the_limit_for_its_threads():
    found = {"limit": {1: 4e9, 2: 8e9}, "alone": {1: 1e9}, "together": {1: 2e9, 2: 6e9}}
    lines = [re.sub(" +", " ", line).strip() for line in ladder.table("title", found).splitlines()]
    assert lines == [
        "title",
        "threads 1 2",
        "limit 4.0 1.00 8.0 1.00",
        "alone 1.0 0.25",
        "together 2.0 0.50 6.0 0.75",
    ]


def test_the_page_shows_code_of_the_ladder():
    """Every Python block of the page is contained in bench/ladder.py, letter for letter."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    source = SOURCE.read_text(encoding="utf-8")
    assert len(blocks) > 10
    for block in blocks:
        assert block in source


@pytest.mark.parametrize("name", [step.name for _, step in STEPS])
def test_the_page_has_the_figure_of_every_step(name):
    assert f"| {name} |" in PAGE.read_text(encoding="utf-8")
