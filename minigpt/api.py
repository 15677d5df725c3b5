"""GPTModel: the engine as an object. Everything it does is done elsewhere; arguments are checked
here, at the border."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .arguments import checked_batch, checked_targets, checked_threads
from .bundled import BUNDLED_MODEL
from .conversion.saving import save_model
from .errors import InputError, SourceError
from .generation import generate as generation
from .model.engine import Engine
from .source import ModelSource, open_source
from .weights.loading import load_weights
from .weights.table import checkpoint_name

if TYPE_CHECKING:
    from .model.learner import Learner


class Output(NamedTuple):
    """logits  float32 [B, T, V]"""

    logits: np.ndarray


class GPTModel:
    """A GPT that is ready to run.

        model = GPTModel.from_pretrained("cerebras/Cerebras-GPT-111M")
        logits = model(ids).logits                       # ids: int64 [B, T]
        ids = model.generate(ids, max_new_tokens=64)     # int64 [B, T + n]

    config  the GPTConfig
    dtype   "f32", "bf16", "int8" or "int4": how the matrices are held
    source  the folder or GGUF file it was loaded from

    Several threads may use one model: they take turns, one pass at a time.
    """

    def __init__(self, engine: Engine, source: Path) -> None:
        self.engine = engine
        self.source = source
        self.config = engine.config
        self.dtype = engine.weights.dtype
        self._learner: Learner | None = None
        self._learning = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | ModelSource = BUNDLED_MODEL,
        dtype: str = "auto",
        threads: int | None = None,
    ) -> GPTModel:
        """The model of a source: a folder in Hugging Face layout, a GGUF file, or a hub id; by
        default the one in the box.

        dtype    how weights are held: "f32", "bf16", "int8", "int4", or "auto" (as the folder
                 holds them)
        threads  how many threads compute; by default one for each processor this process may use

        Raises SourceError (and its children CheckpointError, ConfigError) for what is wrong with
        the source, InputError for the other arguments.
        """
        threads = checked_threads(threads)
        opened = open_source(source)
        folder = opened.path
        try:
            weights = load_weights(opened, dtype, threads)
            engine = Engine(opened.config, weights, threads)
        except MemoryError as error:
            raise SourceError(f"{folder}: its weights need more memory than there is") from error
        except RuntimeError as error:
            raise InputError(f"threads {threads}: {error}; take fewer") from error
        return cls(engine, folder)

    def __call__(self, ids: Any) -> Output:
        """The logits at every position of ids: int [B, T] (or [T], read as B = 1)."""
        rows = checked_batch(ids, self.config)
        B, T = rows.shape
        cache = self.engine.new_cache(B, T)
        slots = [cache.allocate() for _ in range(B)]
        logits = self.engine.forward(cache, slots, list(rows), last=None)
        return Output(logits.reshape(B, T, -1))

    def generate(self, ids: Any, **options: Any) -> Any:
        """Continue sequences; see minigpt.generation.generate.generate for the options."""
        return generation.generate(self, ids, **options)

    def stream(self, ids: Any, **options: Any) -> Iterator[int]:
        """Continue one sequence, token by token; the options are those of generate.stream."""
        return generation.stream(self, ids, **options)

    def loss_and_grad(self, ids: Any, targets: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The mean cross-entropy of foretelling targets from ids, and its gradient.

        ids      int [B, T]
        targets  int [B, T]: targets[b, t] should follow ids[b, t]; -100 does not count

        Returns the loss in nats and {checkpoint's tensor name: float32 array of its shape}; a tied
        head's gradient is part of wte's. Products are of bfloat16 factors where dtype is "bf16",
        else of float32; of int8 and int4 weights the gradient is that at the numbers they stand
        for. Raises InputError for ids and targets that are no tokens or of unequal shape, and where
        no target counts.

        The first call makes float32 copies of the weights, which the model keeps.
        """
        rows = checked_batch(ids, self.config)
        wanted, counted = checked_targets(targets, rows.shape, self.config)
        weights = self.engine.weights
        with self._learning:
            if self._learner is None:
                self._learner = self._new_learner()
            self._learner.zero_grad()
            nats = self._learner.backward(rows, wanted, 1 / counted)
            grads = self._learner.pop_grads()
        return nats / counted, {
            checkpoint_name(name, weights.prefix): grad for name, grad in grads.items()
        }

    def _new_learner(self) -> Learner:
        from .model.learner import Learner

        tensors = self.engine.weights.float32_copies()
        dtype = "bf16" if self.dtype == "bf16" else "f32"
        return Learner(self.config, tensors, self.engine.threads, dtype)

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: str = "f32") -> None:
        """Write config.json and model.safetensors into a folder, with the source's tokenizer files.

        dtype  "f32" or "bf16": how the matrices are stored
        """
        save_model(self.config, self.engine.weights, self.source, folder, dtype)
