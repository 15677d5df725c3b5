"""Dims, Layer and WeightTable: they agree with the config and with the table of tensors."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.config import GPTConfig
from minigpt.kernels.activation import GELU, GELU_TANH, RELU, SILU
from minigpt.model.block import Layer, layer_modules
from minigpt.model.dims import attention_scales, make_dims
from minigpt.model.forward import make_weight_table
from minigpt.weights.packed import Weights
from minigpt.weights.table import HEAD, all_shapes, layer_shapes

SIZES = {"n_layer": 2, "n_head": 3, "n_embd": 12, "n_positions": 16, "vocab_size": 50}


def small_config(**options: object) -> GPTConfig:
    return GPTConfig.from_dict({**SIZES, **options}, "test")


def test_layer_has_the_modules_of_the_table_in_its_order():
    modules = layer_modules(small_config())
    assert Layer._fields == tuple(name.replace(".", "_") for name in modules)
    names = [f"{module}.{part}" for module in modules for part in ("weight", "bias")]
    assert names == list(layer_shapes(small_config()))


@pytest.mark.parametrize("tied", [False, True])
def test_the_weight_table_has_the_address_and_shape_of_every_tensor(tied):
    config = small_config()
    shapes = all_shapes(config, tied)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    table = make_weight_table(Weights(tensors, {}, shapes, "f32", ""), config)
    assert table.layers.shape == (2, 6)
    head = "wte" if tied else HEAD.removesuffix(".weight")
    modules = {("wte", 0): table.non_layer[0], ("wpe", 0): table.non_layer[1]}
    modules |= {("ln_f", 0): table.non_layer[2], (head, 1): table.non_layer[3]}
    for n in range(2):
        for i, name in enumerate(layer_modules(config)):
            modules[f"h.{n}.{name}", 0] = table.layers[n, i]
    found = set()
    for (name, _), record in modules.items():
        weight = tensors[f"{name}.weight"]
        assert record["weight"] == weight.ctypes.data
        K, N = (1, *weight.shape)[-2:]
        assert (record["K"], record["N"]) in ((K, N), (N, K))
        assert record["scales"] == 0
        bias = tensors.get(f"{name}.bias")
        assert record["bias"] == (0 if bias is None else bias.ctypes.data)
        found |= {f"{name}.weight"} | ({f"{name}.bias"} if bias is not None else set())
    assert found == set(tensors)


@pytest.mark.parametrize(
    ("name", "activation"),
    [("gelu", GELU), ("gelu_new", GELU_TANH), ("relu", RELU), ("silu", SILU)],
)
def test_dims_are_those_of_the_config(name, activation):
    dims = make_dims(small_config(activation_function=name, n_inner=20))
    assert dims[:8] == (2, 12, 3, 4, 20, 50, 16, activation)
    rounded = make_dims(small_config(activation_function=name, n_inner=20), rounded=True)
    assert (rounded.activation != activation) == name.startswith("gelu")
    assert dims.eps == np.float32(1e-5)
    assert (dims.embedding_scale, dims.logit_scale) == (1, 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.5]),
        ({"scale_attn_weights": False}, [1, 1]),
        ({"scale_attn_by_inverse_layer_idx": True}, [0.5, 0.25]),
        ({"mup_scale_qk_dot_by_d": True}, [0.25, 0.25]),
    ],
)
def test_attention_scales(options, expected):
    np.testing.assert_array_equal(attention_scales(small_config(**options)), expected)
