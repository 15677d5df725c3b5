"""Compile every kernel ahead of its first use, by using it on a model of one small layer.

A container image, or an installation on a read-only disk, can then hold the machine code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .api import GPTModel
from .arguments import checked_threads
from .checkpoint import write_safetensors
from .config import GPTConfig
from .errors import MinigptError, warnings_shown_by
from .kernels.cache_dir import cache_folder
from .kernels.layout import f32_to_bf16
from .kernels.memory_read import CHUNK, read_forward
from .kernels.team import Team
from .model.learner import Learner
from .model.optimizer import AdamW
from .tokenizer.bpe import Merges
from .tokenizer.compiled import CompiledBPE
from .training.initial import random_tensors
from .weights.table import DTYPES

_SHAPE = {"n_layer": 1, "n_head": 1, "n_embd": 16, "n_positions": 16, "vocab_size": 32}
_IDS = np.arange(8, dtype=np.int64)[np.newaxis]


def compile_kernels(report: Callable[[str], None] = lambda phase: None) -> Path:
    """Compile all kernels, for all dtypes, into the cache; returns the cache's folder.

    report  called with the name of each phase, and with "" at the end

    Raises MinigptError where the machine code cannot be kept.
    """
    folder = cache_folder()
    if folder is None:
        raise MinigptError("MINIGPT_CACHE: is empty; let it name a folder for compiled kernels")
    checked_threads(1)  # raises an error where nothing can be compiled
    config = GPTConfig.from_dict(_SHAPE, "a small model")
    not_kept: list[str] = []
    with TemporaryDirectory() as name, warnings_shown_by(not_kept.append):
        for phase in _use_kernels(config, Path(name)):
            if not_kept:
                raise MinigptError(not_kept[0])
            report(phase)
    return folder


def _use_kernels(config: GPTConfig, folder: Path) -> Iterator[str]:
    """Call all kernels; yields the name of each phase before it, and "" at the end.

    folder  an empty folder for models
    """
    yield "tokenizer"
    merges = Merges({0: 2}, [2])
    CompiledBPE([0] * 256, merges).encode("aa")
    tensors = random_tensors(config, seed=0)
    for stored in ("f32", "bf16"):
        (folder / stored).mkdir()
        _write_model(folder / stored, config, tensors, stored)
    for dtype in DTYPES[1:]:
        yield dtype
        for stored in ("f32", "bf16"):  # each is packed by a kernel of its own
            model = GPTModel.from_pretrained(folder / stored, dtype, threads=1)
        model(_IDS)
    for dtype in ("f32", "bf16"):
        yield f"training in {dtype}"
        learner = Learner(config, tensors, threads=1, dtype=dtype)
        learner.zero_grad()
        learner.backward(_IDS, _IDS, loss_scale=1.0)
        learner.step(AdamW(step=1, lr=1e-3))
    yield "benchmark"
    team, data = Team(1), np.ones(CHUNK, np.float32)
    team.run(read_forward, np.empty((1, 0), np.float32), np.empty(1, np.float32), data, 1)
    yield ""


def _write_model(
    folder: Path, config: GPTConfig, tensors: dict[str, np.ndarray], stored: str
) -> None:
    """Write a model source whose matrices are stored in float32 or bfloat16."""
    if stored == "bf16":
        tensors = {name: f32_to_bf16(tensor) for name, tensor in tensors.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
