"""Measuring: what is timed is what is told, the numbers agree, and memory is the model's own."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minigpt import GPTConfig, GPTModel
from minigpt import benchmark as bench
from minigpt.errors import InputError
from minigpt.weights.table import parameter_count, tensor_shapes

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
TIED, BF16, UNTIED = (GOLDEN / n for n in ("gelu-new", "relu-bf16", "unscaled-inverse-untied"))
SHORT = {"prompt_tokens": 9, "gen_tokens": 4, "depth": 3, "reps": 2, "threads": 2}


@pytest.fixture
def small_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_STREAM_BYTES", 1 << 22)


@pytest.mark.usefixtures("small_stream")
@pytest.mark.parametrize(("folder", "dtype"), [(TIED, "f32"), (BF16, "bf16"), (UNTIED, "f32")])
def test_a_result_agrees_with_itself(folder: Path, dtype: str) -> None:
    result = bench.measure(folder, **SHORT)
    asked = {name: getattr(result, name) for name in SHORT}
    assert (result.model, result.dtype, asked) == (str(folder), dtype, SHORT)
    config, tied = GPTConfig.from_file(folder / "config.json"), folder != UNTIED
    assert result.bytes_per_token == bench.bytes_per_token(config, dtype, tied, 3, 4)
    for rate in (result.prefill_tokens_per_s, result.decode_tokens_per_s, result.load_s):
        assert 0 < rate < math.inf
    assert math.isclose(
        result.bandwidth_fraction,
        result.bytes_per_token * result.decode_tokens_per_s / result.stream_bytes_per_s,
    )


@pytest.mark.usefixtures("small_stream")
def test_what_the_model_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts go into an empty cache; decoding begins at the depth, each time, and never ends."""
    calls: list[tuple[int, int]] = []
    advance = GPTModel.advance

    def recorded(model, state, rows, ids):
        calls.append((int(state.lengths[0]), len(ids[0])))
        assert 0 <= ids[0].min() <= ids[0].max() < model.config.vocab_size
        return advance(model, state, rows, ids)

    monkeypatch.setattr(GPTModel, "advance", recorded)
    phases: list[str] = []
    bench.measure(TIED, **SHORT, progress=phases.append)
    prefill, fill, decode = [(0, 9)], [(0, 3)], [(3, 1), (4, 1), (5, 1), (6, 1)]
    assert calls == [*prefill, *fill, *decode, *2 * [*prefill, *decode]]
    assert phases == ["loading", "warm-up", "1 of 2", "2 of 2"]


@pytest.mark.usefixtures("small_stream")
def test_the_medians_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_prefill_rate", "_decode_rate", "_stream_rate"):
        given = iter([1e9, 5.0, 4.0, 100.0])  # the first is the warm-up's
        monkeypatch.setattr(bench, name, lambda *_, given=given: next(given))
    result = bench.measure(TIED, **SHORT | {"reps": 3})
    assert result.prefill_tokens_per_s == result.decode_tokens_per_s == 5
    assert (result.stream_bytes_per_s, result.bandwidth_fraction) == (5, result.bytes_per_token)


@pytest.mark.usefixtures("small_stream")
def test_the_longest_that_fits() -> None:
    """n_positions is 300: a prompt of so many, and a last token at its end."""
    bench.measure(TIED, prompt_tokens=300, gen_tokens=2, depth=298, reps=1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("prompt_tokens", {"prompt_tokens": 0}),
        ("prompt_tokens", {"prompt_tokens": 301}),
        ("prompt_tokens", {"prompt_tokens": 10**5000}),
        ("gen_tokens", {"gen_tokens": 0}),
        ("gen_tokens", {"gen_tokens": True}),
        ("depth", {"depth": -1}),
        ("depth", {"depth": 1.0}),
        ("depth", {"depth": 297}),
        ("reps", {"reps": 0}),
    ],
)
def test_a_wrong_number_is_told_before_weights_are_read(
    name: str, wrong: dict[str, object], tmp_path: Path
) -> None:
    shutil.copy(TIED / "config.json", tmp_path)
    with pytest.raises(InputError, match=name):
        bench.measure(tmp_path, **SHORT | wrong)  # type: ignore[arg-type]


def test_bytes_of_weights_that_a_token_reads() -> None:
    """Every tensor once, but one row of those that ids and positions are looked up in."""
    config = GPTConfig.from_file(UNTIED / "config.json")
    shapes = tensor_shapes(config) | {"lm_head.weight": (config.vocab_size, config.n_embd)}
    vectors = sum(shape[0] for shape in shapes.values() if len(shape) == 1)
    matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    looked_up = sum(
        math.prod(shapes[name]) - config.n_embd for name in ("wte.weight", "wpe.weight")
    )
    own_keys_and_values = 2 * config.n_layer * config.n_embd
    elements = matrices - looked_up + own_keys_and_values
    count = bench.bytes_per_token
    assert count(config, "f32", False, 0, 1) == 4 * elements + 4 * vectors
    assert count(config, "bf16", False, 0, 1) == 2 * elements + 4 * vectors
    # a tied wte is read by the head, whole; without it there is no other row to look up
    assert count(config, "f32", True, 0, 1) == count(config, "f32", False, 0, 1) - 4 * config.n_embd


def test_bytes_of_a_published_model() -> None:
    """Cerebras-GPT 111M: 111,050,496 weights, all but 2047 rows of wpe read."""
    data = {"n_layer": 10, "n_head": 12, "n_embd": 768, "n_positions": 2048, "vocab_size": 50257}
    config = GPTConfig.from_dict(data, "config")
    assert parameter_count(config) == 111_050_496
    read = 111_050_496 - 2047 * 768 + 2 * 10 * 768
    assert bench.bytes_per_token(config, "f32", True, 0, 1) == 4 * read


def test_bytes_of_several_tokens_are_the_mean() -> None:
    config = GPTConfig.from_file(TIED / "config.json")
    each = [bench.bytes_per_token(config, "bf16", True, depth, 1) for depth in range(20, 27)]
    assert bench.bytes_per_token(config, "bf16", True, 20, 7) == np.mean(each)
    assert each[1] - each[0] == 2 * 2 * config.n_layer * config.n_embd


def _python(program: str) -> list[int]:
    """The numbers that a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=120, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_the_streams_memory_is_not_the_models() -> None:
    """A result's peak was taken before; after it, the process has had those 256 MiB, too."""
    told, after = _python(
        "from minigpt import benchmark as bench\n"
        f"result = bench.measure({os.fspath(TIED)!r}, 9, 4, 3, 2)\n"
        "print(result.peak_rss_bytes, bench.peak_rss_bytes())"
    )
    assert 20e6 < told < after - 240e6


def test_the_peak_is_this_process_own() -> None:
    """Not that of the one that started it, which some systems begin with."""
    large = np.ones(100_000_000)
    (peak,) = _python("from minigpt import benchmark as bench; print(bench.peak_rss_bytes())")
    assert 20e6 < peak < large.nbytes
