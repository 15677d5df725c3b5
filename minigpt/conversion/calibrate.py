"""Importance of the rows of a layer's matrices, measured on a text: int4 is fitted to it.

reference_gpt.py computes the activations of the text, one layer after the other: only one layer's
parameters are in memory. The importance of row k of a matrix is the mean square of input k of its
linear layer, because the error of the output grows with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from ..arguments import checked_text
from ..errors import InputError
from ..kernels.reference import embedding_forward
from ..reference_gpt import block_forward
from ..source import ModelSource
from ..tokenizer.tokenizer import GPTTokenizer
from ..weights.table import layer_shapes

SEQUENCE = 512  # tokens of a sequence
MAX_TOKENS = 4096  # of the text; more change little
_MIN_IMPORTANCE = 1e-3  # of a row, relative to the mean of its matrix: its errors still count


def first_ids(texts: Iterable[str], tokenizer: GPTTokenizer, allow_special: bool) -> list[int]:
    """The ids of the first texts that together have MAX_TOKENS tokens, or of all.

    An end-of-text token stands between two texts. Raises InputError for what is no text.
    """
    ids: list[int] = []
    for number, text in enumerate(texts):
        if number and tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        text = checked_text(f"calibration[{number}]", text)
        ids += tokenizer.encode(text, allow_special=allow_special)
        if len(ids) >= MAX_TOKENS:
            break
    return ids


@np.errstate(all="ignore")  # exp underflows; weights that are not finite are found later
def importance(
    source: ModelSource,
    ids: list[int],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """{name: float32 [K]}, the importance of the rows of each matrix in the layers.

    ids       tokens of a text like those that the model will meet; the first MAX_TOKENS are read
    progress  called after each layer with (layers done, layers)

    Raises InputError for no tokens, or ids that the model does not have.
    """
    config = source.config
    if not ids or not 0 <= min(ids) <= max(ids) < config.vocab_size:
        raise InputError("the text to calibrate with: has no tokens, or some that the model lacks")
    if config.activation == "gelu":
        # The tanh formula is faster and near enough: only mean squares are needed.
        config = replace(config, activation_function="gelu_new")
    T = min(SEQUENCE, config.n_positions, len(ids))
    B = min(MAX_TOKENS, len(ids)) // T
    batch = np.array(ids[: B * T]).reshape(B, T)  # [B, T]
    tensor, scale = source.read_float32, config.mup_embeddings_scale
    x = embedding_forward(
        batch, np.arange(T), tensor("wte.weight"), tensor("wpe.weight"), scale
    )  # [B, T, C]
    squares: dict[str, np.ndarray] = {}  # {matrix: Σ input², float64 [K]}

    def add_squares(name: str, inputs: np.ndarray) -> None:
        total = np.square(inputs, dtype=np.float64).sum(axis=(0, 1))  # [B, T, K] → [K]
        squares[f"{name}.weight"] = squares.get(f"{name}.weight", 0) + total

    for n in range(config.n_layer):
        layer = {f"h.{n}.{name}": tensor(f"h.{n}.{name}") for name in layer_shapes(config)}
        for b in range(B):  # one sequence at a time: the activations of all take too much memory
            x[b : b + 1] = block_forward(x[b : b + 1], layer, config, n, add_squares)
        if progress:
            progress(n + 1, config.n_layer)
    return {name: _importance(total / (B * T)) for name, total in squares.items()}


def _importance(mean_square: np.ndarray) -> np.ndarray:
    """float32 [K]: the mean squares, none below a fraction of their mean."""
    floor = _MIN_IMPORTANCE * mean_square.mean() + 1e-30
    importance: np.ndarray = np.maximum(mean_square, floor).astype(np.float32)
    return importance
