"""The initial tensors of a run that starts from no model."""

from __future__ import annotations

import math

import numpy as np

from ..config import GPTConfig
from ..weights.table import all_shapes

_STD = 0.02  # GPT-2's


def random_tensors(config: GPTConfig, seed: int) -> dict[str, np.ndarray]:
    """Tensors of a new model, {name: float32 array}; a function of config and seed.

    Matrices are normal with standard deviation 0.02. Those that project into the residual stream
    are divided by √(2·L), since 2·L of them add up: the variance then does not grow with depth
    (Radford et al. 2019, section 2.3). Layernorms start as the identity, biases at zero.
    Cerebras-GPT (arXiv 2304.03208) starts from the same, truncated at two standard deviations.
    """
    rng = np.random.default_rng(seed)
    shapes = all_shapes(config, tied=config.tie_word_embeddings)
    return {
        name: _random_tensor(name, shape, config.n_layer, rng) for name, shape in shapes.items()
    }


def _random_tensor(
    name: str, shape: tuple[int, ...], n_layer: int, rng: np.random.Generator
) -> np.ndarray:
    if name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:  # the weight of a layernorm
        return np.ones(shape, np.float32)
    into_residual = name.endswith("c_proj.weight")
    std = _STD / math.sqrt(2 * n_layer) if into_residual else _STD
    return np.float32(std) * rng.standard_normal(shape, np.float32)
