"""A model whose logits are the same after any text, in Hugging Face layout, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minigpt.checkpoint import write_safetensors
from minigpt.config import GPTConfig
from minigpt.weights.table import tensor_shapes


def constant_model(folder: Path, logits: Sequence[float] | np.ndarray, **config: object) -> Path:
    """Write a model with these logits [V] after any text; `config` adds keys to config.json.

    The last layernorm gives its bias, the unit vector e_0, and wte[:, 0] holds the logits.
    """
    folder.mkdir(exist_ok=True)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 16, "n_positions": 64, "vocab_size": len(logits)}
    data = {"model_type": "gpt2", **sizes, **config}
    shapes = tensor_shapes(GPTConfig.from_dict(data, "config"))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors["ln_f.bias"][0] = 1
    tensors["wte.weight"][:, 0] = logits
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    return folder
