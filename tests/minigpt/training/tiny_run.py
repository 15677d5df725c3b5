"""A training run of a few milliseconds, with a learner in plain NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minigpt import reference_gpt
from minigpt.config import GPTConfig
from minigpt.kernels.layout import IGNORED
from minigpt.model.optimizer import AdamW
from minigpt.tokenizer.bpe import byte_symbols
from minigpt.tokenizer.tokenizer import GPTTokenizer
from minigpt.training.config import RunConfig, TrainingConfig
from minigpt.training.create import InitialModel, write_run
from minigpt.training.initial import random_tensors
from minigpt.training.metrics import read_metrics
from minigpt.training.presets import Preset, new_config
from minigpt.training.state_json import TrainState
from minigpt.training.train import resume_run

TEXTS = ["a tale of two cats. " * 12, "the cat sat on the mat. " * 12]
VALIDATION = ["a cat sat. the tale of the mat. " * 2]
N = 12  # steps
CONFIG = TrainingConfig(context=8, batch_size=4, lr=0.02, steps=N, eval_every=4, dtype="f32")


class ReferenceLearner:
    """minigpt.reference_gpt with the methods of the compiled Learner."""

    def __init__(
        self, config: GPTConfig, tensors: dict[str, np.ndarray], *_: Any, **__: Any
    ) -> None:
        self.config, self.tensors = config, tensors
        self.grads, self.first_moments, self.second_moments = (
            {name: np.zeros_like(tensor) for name, tensor in tensors.items()} for _ in range(3)
        )

    def zero_grad(self) -> None:
        for grad in self.grads.values():
            grad[:] = 0

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        mean, _ = reference_gpt.loss_and_grads(self.tensors, self.config, ids, targets)
        return mean * int((targets != IGNORED).sum())

    def backward(self, ids: np.ndarray, targets: np.ndarray, loss_scale: float) -> float:
        mean, grads = reference_gpt.loss_and_grads(self.tensors, self.config, ids, targets)
        count = int((targets != IGNORED).sum())
        for name, grad in grads.items():
            self.grads[name] += loss_scale * count * grad
        return mean * count

    def step(self, settings: AdamW) -> float:
        moments = self.first_moments, self.second_moments
        return reference_gpt.adamw_step(self.tensors, self.grads, *moments, *settings)


def tokenizer(folder: Path) -> GPTTokenizer:
    """A tokenizer of the 256 bytes, one merge, and the end-of-text token."""
    folder.mkdir(exist_ok=True)
    tokens = [*byte_symbols(), "at", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("a t\n", encoding="utf-8")
    return GPTTokenizer.from_pretrained(folder)


def create(
    folder: Path,
    config: TrainingConfig = CONFIG,
    texts: list[str] = TEXTS,
    validation: list[str] | None = VALIDATION,
    steps_in_time: int | None = None,
) -> RunConfig:
    """Create the run `folder`, and its tokenizer as a folder beside it."""
    tokens = tokenizer(folder.parent / "tokenizer")
    model = new_config(Preset(2, 2, 8, config), 8, tokens.vocab_size, tokens.eos_token_id)
    initial = InitialModel(model, random_tensors(model, config.seed), config, steps_in_time)
    return write_run(folder, texts, validation, tokens, initial)


def resume(folder: Path, **options: Any) -> TrainState:
    """Resume the run with the learner in plain NumPy."""
    return resume_run(folder, make_learner=ReferenceLearner, **options)


def stopping_after(calls: int) -> Callable[[], bool]:
    """A `stop` that returns False `calls` times, then True."""
    left = calls

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    return stop


def result(folder: Path) -> dict[str, Any]:
    """The weights, moments, state and metrics of a run, without times."""
    (checkpoint,) = folder.glob("step-*")
    record = json.loads((checkpoint / "state.json").read_text())
    del record["state"]["seconds"], record["state"]["metrics_bytes"]
    lines = [{**line, "seconds": None} for line in read_metrics(folder / "metrics.jsonl")]
    arrays = [checkpoint / "model.safetensors", checkpoint / "moments.safetensors"]
    arrays.append(folder / "model.safetensors")
    return {"record": record, "lines": lines, "bytes": [path.read_bytes() for path in arrays]}


def uninterrupted(folder: Path, **options: Any) -> dict[str, Any]:
    """The result of a run without interruptions."""
    create(folder, **options)
    resume(folder)
    return result(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """{path: bytes} of every file but metrics.jsonl and the lock."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in paths}
    return {n: p.read_bytes() for n, p in names.items() if n not in ("metrics.jsonl", "lock")}
