"""benchmark.measure: what is timed, bytes per token against a plain count, peak memory."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minigpt import GPTConfig
from minigpt import benchmark as bench
from minigpt.bundled import BUNDLED_MODEL
from minigpt.checkpoint import write_safetensors
from minigpt.errors import InputError
from minigpt.model.engine import Engine
from minigpt.weights.table import parameter_count, tensor_shapes

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
TIED, BF16, UNTIED = (GOLDEN / n for n in ("gelu-new", "relu-bf16", "unscaled-inverse-untied"))
SHORT = {"prompt_tokens": 9, "gen_tokens": 4, "depth": 3, "reps": 2, "threads": 2}


@pytest.fixture
def small_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_STREAM_BYTES", 1 << 22)


def bytes_read(config: GPTConfig, width: int, tied: bool, positions: float) -> float:
    """Count what one token reads, tensor by tensor, and the keys and values of `positions`.

    width  bytes of a weight, key or value; biases and layernorms have 4
    """
    shapes = tensor_shapes(config)
    if not tied:
        shapes = shapes | {"lm_head.weight": (config.vocab_size, config.n_embd)}
    total = 0
    for name, shape in shapes.items():
        looked_up = name == "wpe.weight" or (name == "wte.weight" and not tied)
        elements = config.n_embd if looked_up else math.prod(shape)
        total += elements * (4 if len(shape) == 1 else width)
    return total + 2 * config.n_layer * config.n_embd * width * positions


@pytest.mark.usefixtures("small_stream")
@pytest.mark.parametrize(
    ("folder", "dtype", "width"), [(TIED, "f32", 4), (BF16, "bf16", 2), (UNTIED, "f32", 4)]
)
def test_the_fields_of_a_result(folder: Path, dtype: str, width: int) -> None:
    result = bench.measure(folder, **SHORT)
    asked = {name: getattr(result, name) for name in SHORT}
    assert (result.model, result.dtype, asked) == (str(folder), dtype, SHORT)
    config, tied = GPTConfig.from_file(folder / "config.json"), folder != UNTIED
    # 4 tokens after 3 read the keys and values of 4, 5, 6 and 7 positions
    assert result.bytes_per_token == bytes_read(config, width, tied, 5.5)
    for rate in (result.prefill_tokens_per_s, result.decode_tokens_per_s, result.load_s):
        assert 0 < rate < math.inf


@pytest.mark.usefixtures("small_stream")
def test_the_calls_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt starts with an empty cache; decoding starts at `depth` in every repetition."""
    calls: list[tuple[int, int]] = []
    forward = Engine.forward

    def recorded(engine, cache, slots, ids):
        calls.append((int(cache.lengths[0]), len(ids[0])))
        assert 0 <= ids[0].min() <= ids[0].max() < engine.config.vocab_size
        return forward(engine, cache, slots, ids)

    monkeypatch.setattr(Engine, "forward", recorded)
    phases: list[str] = []
    bench.measure(TIED, **SHORT, progress=phases.append)
    prefill, fill, decode = [(0, 9)], [(0, 3)], [(3, 1), (4, 1), (5, 1), (6, 1)]
    assert calls == [*prefill, *fill, *decode, *2 * [*prefill, *decode]]
    assert phases == ["loading", "warm-up", "1 of 2", "2 of 2"]


@pytest.mark.usefixtures("small_stream")
def test_the_medians_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_prefill_rate", "_decode_rate", "_stream_rate"):
        given = iter([1e9, 5.0, 4.0, 100.0])  # the first is the warm-up's
        monkeypatch.setattr(bench, name, lambda *_, given=given: next(given))
    result = bench.measure(TIED, **SHORT | {"reps": 3})
    assert result.prefill_tokens_per_s == result.decode_tokens_per_s == 5
    assert result.stream_bytes_per_s == 5
    assert result.bandwidth_fraction == result.bytes_per_token  # · 5 tokens/s ÷ 5 bytes/s


@pytest.mark.usefixtures("small_stream")
@pytest.mark.parametrize("dtype", ["f32", "int4"])
def test_the_bundled_model_in_another_dtype(dtype: str) -> None:
    result = bench.measure(BUNDLED_MODEL, **SHORT, dtype=dtype)
    assert result.dtype == dtype


@pytest.mark.usefixtures("small_stream")
def test_a_full_context() -> None:
    """n_positions is 300: a prompt of that length, and a last token at that position."""
    bench.measure(TIED, prompt_tokens=300, gen_tokens=2, depth=298, reps=1)


@pytest.mark.usefixtures("small_stream")
@pytest.mark.parametrize(
    ("context", "depth", "prompt_tokens", "gen_tokens"),
    [(600, 0, 512, 64), (600, 580, 512, 20), (300, 0, 300, 64), (40, 0, 40, 40), (1, 0, 1, 1)],
)
def test_the_default_lengths_fit_the_context(
    context: int, depth: int, prompt_tokens: int, gen_tokens: int, tmp_path: Path
) -> None:
    data = {"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 11, "n_positions": context}
    (tmp_path / "config.json").write_text(json.dumps(data), encoding="utf-8")
    shapes = tensor_shapes(GPTConfig.from_dict(data, "config"))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    result = bench.measure(tmp_path, depth=depth, reps=1, threads=1)
    assert (result.prompt_tokens, result.gen_tokens) == (prompt_tokens, gen_tokens)
    assert result.depth == depth


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("prompt_tokens", {"prompt_tokens": 0}),
        ("prompt_tokens", {"prompt_tokens": 301}),
        ("prompt_tokens", {"prompt_tokens": 10**5000}),
        ("gen_tokens", {"gen_tokens": 0}),
        ("gen_tokens", {"gen_tokens": True}),
        ("gen_tokens", {"gen_tokens": 301}),
        ("depth", {"depth": 300, "gen_tokens": None}),
        ("depth", {"depth": -1}),
        ("depth", {"depth": 1.0}),
        ("depth", {"depth": 297}),
        ("reps", {"reps": 0}),
    ],
)
def test_a_wrong_argument_is_an_error_before_weights_are_read(
    name: str, wrong: dict[str, object], tmp_path: Path
) -> None:
    shutil.copy(TIED / "config.json", tmp_path)
    with pytest.raises(InputError, match=name):
        bench.measure(tmp_path, **SHORT | wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "width"), [("f32", 4), ("bf16", 2)])
@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_one_token(dtype: str, width: int, tied: bool) -> None:
    config = GPTConfig.from_file(UNTIED / "config.json")
    expected = bytes_read(config, width, tied, 8)
    assert bench.bytes_per_token(config, dtype, tied, 7, 1) == expected


DATA_111M = {"n_layer": 10, "n_head": 12, "n_embd": 768, "n_positions": 2048, "vocab_size": 50257}


def test_bytes_of_a_published_model() -> None:
    """Cerebras-GPT 111M reads its 111,050,496 weights but 2047 rows of wpe."""
    config = GPTConfig.from_dict(DATA_111M, "config")
    assert parameter_count(config) == 111_050_496
    read = 111_050_496 - 2047 * 768 + 2 * 10 * 768
    assert bench.bytes_per_token(config, "f32", True, 0, 1) == 4 * read


@pytest.mark.parametrize(("wte_dtype", "wte_bits"), [(None, 8.25), ("int8", 8.25), ("int4", 4.5)])
def test_bytes_of_int4(wte_dtype: str | None, wte_bits: float) -> None:
    """Of 111M: 12 · 768² weights of a layer in 4.5 bits; wte, which the head reads, in its own."""
    config = GPTConfig.from_dict(DATA_111M, "config")
    layers, wte, vectors = 10 * 12 * 768 * 768, 50257 * 768, 10 * 13 * 768 + 2 * 768
    read = layers * 4.5 / 8 + wte * wte_bits / 8 + 4 * vectors + 2 * 768 + 2 * 2 * 10 * 768
    assert bench.bytes_per_token(config, "int4", True, 0, 1, wte_dtype) == int(read)


def test_bytes_of_several_tokens_are_the_mean() -> None:
    config = GPTConfig.from_file(TIED / "config.json")
    each = [bench.bytes_per_token(config, "bf16", True, depth, 1) for depth in range(20, 27)]
    assert bench.bytes_per_token(config, "bf16", True, 20, 7) == np.mean(each)
    assert each[1] - each[0] == 2 * 2 * config.n_layer * config.n_embd


def _python(program: str) -> list[int]:
    """Run a program in a fresh process and return the integers it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=120, check=True
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.slow
def test_the_peak_excludes_the_streams_buffer() -> None:
    """The result's peak is read before the 256 MiB buffer of the stream is allocated."""
    reported, after = _python(
        "from minigpt import benchmark as bench\n"
        f"result = bench.measure({os.fspath(TIED)!r}, 9, 4, 3, 2)\n"
        "print(result.peak_rss_bytes, bench.peak_rss_bytes())"
    )
    assert 20e6 < reported < after - 240e6


@pytest.mark.slow
def test_the_peak_excludes_the_parent_process() -> None:
    """Linux's getrusage starts from the parent's peak."""
    large = np.ones(100_000_000)
    (peak,) = _python("from minigpt import benchmark as bench; print(bench.peak_rss_bytes())")
    assert 20e6 < peak < large.nbytes
