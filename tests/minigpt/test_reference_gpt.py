"""reference_gpt against finite differences, PyTorch's golden states, and GPTModel."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minigpt import GPTModel, reference_gpt
from minigpt.config import ACTIVATIONS, GPTConfig
from minigpt.conversion.convert import convert
from minigpt.conversion.gguf_export import save_gguf
from minigpt.reference_gpt import (
    Params,
    adamw_step,
    attention_scale,
    forward,
    generate,
    load,
    loss_and_grads,
)
from minigpt.weights.table import all_shapes, checkpoint_name, is_packed

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/states.npz"))
TRAINING = sorted(path.parent for path in GOLDEN.glob("*/training.npz"))

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 6, "n_inner": 10, "n_positions": 7, "vocab_size": 11}
MUP = {
    "model_type": "btlm",
    "mup_embeddings_scale": 1.7,
    "mup_output_alpha": 0.8,
    "mup_width_scale": 0.6,
    "mup_scale_qk_dot_by_d": True,
}
VARIANTS = {
    **{name: {"activation_function": name} for name in ACTIVATIONS},
    "inverse layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False},
    "own head": {"tie_word_embeddings": False},
    "mup": MUP,
    "mup, own head, inverse layer": {
        **MUP,
        "tie_word_embeddings": False,
        "scale_attn_by_inverse_layer_idx": True,
    },
}


def random_model(fields: dict, dtype: type = np.float64) -> tuple[Params, GPTConfig]:
    config = GPTConfig.from_dict({**SIZES, **fields}, "config")
    rng = np.random.default_rng(5)
    shapes = all_shapes(config, config.tie_word_embeddings)
    return {name: rng.normal(0, 0.5, s).astype(dtype) for name, s in shapes.items()}, config


def zeros_like(params: Params) -> Params:
    return {name: np.zeros_like(param) for name, param in params.items()}


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(6).integers(0, 11, (3, 5))


@pytest.fixture
def targets(ids: np.ndarray) -> np.ndarray:
    targets = np.roll(ids, -1, 1)
    targets[0, 1:3] = -100
    return targets


# ---- against finite differences


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_finite_differences(variant, ids, targets) -> None:
    params, config = random_model(VARIANTS[variant])
    _, grads = loss_and_grads(params, config, ids, targets)
    assert grads.keys() == params.keys()
    rng, h = np.random.default_rng(7), 1e-5
    for name, param in params.items():
        assert grads[name].shape == param.shape
        direction = rng.normal(size=param.shape)
        above, below = (
            loss_and_grads({**params, name: param + step * direction}, config, ids, targets)[0]
            for step in (h, -h)
        )
        derivative = np.sum(grads[name] * direction)
        assert derivative == pytest.approx((above - below) / (2 * h), rel=1e-6, abs=1e-9), name


def test_targets_of_minus_100_do_not_count(ids, targets) -> None:
    params, config = random_model({})
    logits = forward(params, config, ids)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [-log_p[b, t, v] for (b, t), v in np.ndenumerate(targets) if v != -100]
    assert len(losses) == 13
    loss, grads = loss_and_grads(params, config, ids, targets)
    assert loss == pytest.approx(np.mean(losses), rel=1e-12)
    # sequence 0 counts 3 targets of 13, the other two 5 each
    parts = [
        loss_and_grads(params, config, ids[b : b + 1], targets[b : b + 1])[1] for b in range(3)
    ]
    for name, grad in grads.items():
        mean = (3 * parts[0][name] + 5 * parts[1][name] + 5 * parts[2][name]) / 13
        np.testing.assert_allclose(grad, mean, rtol=1e-9, atol=1e-12)


def test_logits_depend_on_no_later_token(ids) -> None:
    params, config = random_model({})
    later = ids.copy()
    later[:, 3:] = (ids[:, 3:] + 1) % 11
    logits, changed = forward(params, config, ids), forward(params, config, later)
    np.testing.assert_array_equal(logits[:, :3], changed[:, :3])
    assert (logits[:, 3:] != changed[:, 3:]).any(-1).all()


def test_attention_scale() -> None:
    config = GPTConfig.from_dict({**SIZES, "n_embd": 8}, "config")  # HS = 4
    assert attention_scale(config, 1) == 0.5
    assert attention_scale(replace(config, mup_scale_qk_dot_by_d=True), 1) == 0.25
    assert attention_scale(replace(config, scale_attn_by_inverse_layer_idx=True), 1) == 0.25
    assert attention_scale(replace(config, scale_attn_weights=False), 1) == 1


# ---- against PyTorch and the engine


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_logits_are_those_of_gptmodel(folder) -> None:
    config, params = load(folder)
    assert {param.dtype for param in params.values()} == {np.dtype(np.float32)}
    T = min(config.n_positions, 12)
    ids = np.random.default_rng(9).integers(0, config.vocab_size, (2, T))
    logits = forward(params, config, ids)
    assert logits.dtype == np.float32
    expected = GPTModel.from_pretrained(folder, dtype="f32", threads=1)(ids).logits
    assert abs(logits - expected).max() < 2e-5 * abs(expected).max()


@pytest.mark.parametrize("folder", TRAINING, ids=lambda folder: folder.name)
def test_gradients_are_those_of_torch_and_gptmodel(folder) -> None:
    config, params = load(folder)
    model = GPTModel.from_pretrained(folder, dtype="f32", threads=1)
    prefix = model.engine.weights.prefix
    with np.load(folder / "training.npz") as states:
        ids, targets, first_loss = states["ids"], states["targets"], states["losses"][0]
        torchs = {name: states[f"grad/{checkpoint_name(name, prefix)}"] for name in params}
    loss, grads = loss_and_grads(params, config, ids, targets)
    assert loss == pytest.approx(first_loss, rel=1e-5)
    _, models = model.loss_and_grad(ids, targets)
    for name, grad in grads.items():
        assert grad.dtype == np.float32
        for expected in (torchs[name], models[checkpoint_name(name, prefix)]):
            assert abs(grad - expected).max() < 1e-4 * abs(expected).max(), name


@pytest.mark.parametrize("folder", TRAINING, ids=lambda folder: folder.name)
def test_ten_adamw_steps_have_the_losses_of_torch(folder) -> None:
    config, params = load(folder)
    m, v = zeros_like(params), zeros_like(params)
    with np.load(folder / "training.npz") as states:
        ids, targets, expected = states["ids"], states["targets"], states["losses"]
    losses = []
    for step in range(1, 11):
        loss, grads = loss_and_grads(params, config, ids, targets)
        adamw_step(params, grads, m, v, step, lr=3e-3, max_grad_norm=0)
        losses.append(loss)
    losses.append(loss_and_grads(params, config, ids, targets)[0])
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["gelu-new", "mup", "silu-f16", "unscaled-inverse-untied"])
def test_greedy_tokens_are_those_of_gptmodel(name) -> None:
    config, params = load(GOLDEN / name)
    model = GPTModel.from_pretrained(GOLDEN / name, dtype="f32", threads=1)
    for prompt in ([1], [7, 3, 5]):
        for new in (0, 5, config.n_positions):  # the last is cut at n_positions
            expected = model.generate(prompt, max_new_tokens=new)[0]
            assert generate(params, config, prompt, new) == expected.tolist()


def test_generation_ends_at_eos() -> None:
    params, config = random_model({})
    ids = generate(params, config, [1], 6)
    assert len(ids) == 7
    first = ids.index(ids[3], 1)
    ended = generate(params, replace(config, eos_token_ids=(ids[3],)), [1], 6)
    assert ended == ids[: first + 1]


def test_quantized_parameters_are_dequantized(tmp_path) -> None:
    convert(GOLDEN / "gelu-new", tmp_path / "int8", "int8")
    config, params = load(tmp_path / "int8")
    exact = load(GOLDEN / "gelu-new")[1]
    assert params.keys() == exact.keys()
    assert config.n_layer == load(GOLDEN / "gelu-new")[0].n_layer
    for name, param in params.items():
        assert param.dtype == np.float32
        assert abs(param - exact[name]).max() <= 0.01 * abs(exact[name]).max()


def test_a_gguf_file_is_a_source(tmp_path) -> None:
    save_gguf(GOLDEN / "tasks", tmp_path / "model.gguf", "f32")
    params, expected = load(tmp_path / "model.gguf")[1], load(GOLDEN / "tasks")[1]
    assert params.keys() == expected.keys()
    for name, param in params.items():
        np.testing.assert_array_equal(param, expected[name])


# ---- AdamW


def test_the_first_step_of_adamw_by_hand() -> None:
    """At step 1 the corrected moments are g and g²: w moves by lr against the sign of g."""
    params, _ = random_model({})
    before = {name: param.copy() for name, param in params.items()}
    rng = np.random.default_rng(8)
    grads = {name: rng.normal(size=param.shape) for name, param in params.items()}
    m, v = zeros_like(params), zeros_like(params)
    norm = adamw_step(params, grads, m, v, 1, lr=0.01, eps=1e-12, weight_decay=0.1)
    assert norm == pytest.approx(np.linalg.norm([np.linalg.norm(g) for g in grads.values()]))
    for name, param in params.items():
        decayed = before[name] * (1 - 0.001 if param.ndim == 2 else 1)
        expected = decayed - 0.01 * np.sign(grads[name])
        np.testing.assert_allclose(param, expected, 1e-6, 1e-8, err_msg=name)
        np.testing.assert_allclose(m[name], 0.1 * grads[name] / norm)
        np.testing.assert_allclose(v[name], 0.05 * (grads[name] / norm) ** 2)


def test_float32_learns(ids, targets) -> None:
    params, config = random_model({}, np.float32)
    m, v = zeros_like(params), zeros_like(params)
    losses = []
    for step in range(1, 101):
        loss, grads = loss_and_grads(params, config, ids, targets)
        adamw_step(params, grads, m, v, step, lr=0.03, weight_decay=0)
        losses.append(loss)
    assert losses[-1] < 0.1 * losses[0]
    for tensors in (params, grads, m, v):
        assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


# ---- the hook, and the example


@pytest.mark.parametrize("variant", ["gelu", "own head"])
def test_the_hook_sees_the_input_of_every_linear_layer(variant, ids) -> None:
    params, config = random_model(VARIANTS[variant])
    inputs: dict[str, np.ndarray] = {}

    def hook(name: str, x: np.ndarray) -> None:
        assert name not in inputs
        inputs[name] = x

    logits = forward(params, config, ids, hook)
    np.testing.assert_array_equal(logits, forward(params, config, ids))
    matrices = {name for name, param in params.items() if is_packed(name, param.shape)}
    linear = {name.removesuffix(".weight") for name in matrices} - {"wte"}
    assert inputs.keys() == linear | {"lm_head"}
    for name in linear - {"lm_head"}:
        assert inputs[name].shape == (3, 5, len(params[f"{name}.weight"]))
    head = params.get("lm_head.weight", params["wte.weight"])
    np.testing.assert_allclose(inputs["lm_head"] @ head.T, logits)


def test_the_example_in_the_docstring() -> None:
    results = doctest.testmod(reference_gpt)
    assert (results.attempted, results.failed) == (7, 0)
