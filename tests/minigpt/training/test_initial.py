"""The initial weights of a new model."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.training.config import TrainingConfig
from minigpt.training.initial import random_tensors
from minigpt.training.presets import Preset, new_config
from minigpt.weights.table import tensor_shapes


def test_weights_are_normal_layernorms_the_identity_and_biases_zero() -> None:
    config = new_config(Preset(8, 2, 64, TrainingConfig()), 32, 500, None)
    tensors = random_tensors(config, seed=3)
    assert {name: tensor.shape for name, tensor in tensors.items()} == tensor_shapes(config)
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.flags.c_contiguous) == (np.float32, True)
        if name.endswith(".bias"):
            assert not tensor.any()
        elif tensor.ndim == 1:
            assert (tensor == 1).all()
        else:
            std = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert tensor.std() == pytest.approx(std, rel=0.1)
            assert abs(tensor.mean()) < std / 10


def test_weights_are_a_function_of_the_seed() -> None:
    config = new_config(Preset(1, 2, 8, TrainingConfig()), 4, 20, None)
    first, again, other = (random_tensors(config, seed) for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["wte.weight"] != other["wte.weight"]).any()
