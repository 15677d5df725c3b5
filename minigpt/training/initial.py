"""The tensors that training begins with: random ones, or those of a model."""

from __future__ import annotations

import math
import os

import numpy as np

from ..config import GPTConfig
from ..source import open_source
from ..weights.packed import float32_tensors
from ..weights.table import all_shapes

_SPREAD = 0.02


def random_tensors(config: GPTConfig, seed: int) -> dict[str, np.ndarray]:
    """Those of a new model, float32 by name; the same for the same seed.

    Matrices are normal with a spread of 0.02, those that end a branch of the residual stream
    divided by the root of their number, 2·L, so that the sum of all does not grow with the
    depth. Layernorms begin as the identity, biases at zero. (Radford et al. 2019, section 2.3;
    arXiv 2304.03208 starts from the same, without what is farther out than two spreads.)
    """
    rng = np.random.default_rng(seed)
    shapes = all_shapes(config, own_head=not config.tie_word_embeddings)
    return {name: _random(name, shape, config.n_layer, rng) for name, shape in shapes.items()}


def _random(
    name: str, shape: tuple[int, ...], n_layer: int, rng: np.random.Generator
) -> np.ndarray:
    if name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    if len(shape) == 1:  # the weight of a layernorm
        return np.ones(shape, np.float32)
    ends_branch = name.endswith("c_proj.weight")
    spread = _SPREAD / math.sqrt(2 * n_layer) if ends_branch else _SPREAD
    return np.float32(spread) * rng.standard_normal(shape, np.float32)


def model_tensors(source: str | os.PathLike[str]) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """(config, those of a model source, widened to float32 by the table's names).

    A head that is wte again is left out. Raises SourceError for what is wrong with the source.
    """
    opened = open_source(source)
    return opened.config, float32_tensors(opened)
