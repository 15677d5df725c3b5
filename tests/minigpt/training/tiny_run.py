"""A training run of a few milliseconds, with the learner in plain NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from minigpt import reference_gpt
from minigpt.config import GPTConfig
from minigpt.kernels.layout import IGNORED
from minigpt.tokenizer.bpe import byte_symbols
from minigpt.tokenizer.tokenizer import GPTTokenizer
from minigpt.training.config import Plan, Settings
from minigpt.training.create import create_run
from minigpt.training.initial import random_tensors
from minigpt.training.presets import new_config
from minigpt.training.run_folder import State
from minigpt.training.train import train

TEXTS = ["a tale of two cats. " * 12, "the cat sat on the mat. " * 12]
HELD_OUT = ["a cat sat. the tale of the mat. " * 2]
SETTINGS = Settings(context=8, batch_size=4, lr=0.02, steps=12, eval_every=4)


class ReferenceLearner:
    """minigpt.reference_gpt with the methods of minigpt.learner.Learner: nothing is compiled."""

    def __init__(
        self, config: GPTConfig, tensors: dict[str, np.ndarray], *_: Any, **__: Any
    ) -> None:
        self.config, self.tensors = config, tensors
        self.grads, self.first_moments, self.second_moments = (
            {name: np.zeros_like(tensor) for name, tensor in tensors.items()} for _ in range(3)
        )

    def clear(self) -> None:
        for grad in self.grads.values():
            grad[:] = 0

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        mean, _ = reference_gpt.loss_and_grads(self.tensors, self.config, ids, targets)
        return mean * int((targets != IGNORED).sum())

    def accumulate(self, ids: np.ndarray, targets: np.ndarray, share: float) -> float:
        mean, grads = reference_gpt.loss_and_grads(self.tensors, self.config, ids, targets)
        count = int((targets != IGNORED).sum())
        for name, grad in grads.items():
            self.grads[name] += share * count * grad
        return mean * count

    def update(self, *numbers: float) -> float:
        moments = self.first_moments, self.second_moments
        return reference_gpt.adamw_step(self.tensors, self.grads, *moments, *numbers)


def tokenizer(folder: Path) -> GPTTokenizer:
    """Of the 256 bytes, one merge, and the end of a text."""
    folder.mkdir(exist_ok=True)
    tokens = [*byte_symbols(), "at", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("a t\n", encoding="utf-8")
    return GPTTokenizer.from_pretrained(folder)


def begin(
    folder: Path,
    settings: Settings = SETTINGS,
    texts: list[str] = TEXTS,
    held_out: list[str] | None = HELD_OUT,
) -> Plan:
    """Makes the run `folder`, with its tokenizer beside it."""
    words = tokenizer(folder.parent / "tokenizer")
    config = new_config(2, 2, 8, 8, words.vocab_size, words.eos_token_id)
    tensors = random_tensors(config, settings.seed)
    return create_run(folder, texts, held_out, words, config, tensors, settings)


def go_on(folder: Path, **options: Any) -> State:
    """Trains on with the learner in plain NumPy."""
    return train(folder, make_learner=ReferenceLearner, **options)


def stopping_after(calls: int) -> Any:
    """A `stop` that says so when it was asked so often before."""
    left = [calls]

    def stop() -> bool:
        left[0] -= 1
        return left[0] < 0

    return stop
