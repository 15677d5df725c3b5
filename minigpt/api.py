"""GPTModel, the object that applications use: it checks arguments and calls the other modules."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .arguments import checked_batch, checked_targets, checked_threads
from .bundled import BUNDLED_MODEL
from .conversion.saving import save_model
from .errors import CheckpointError, InputError, SourceError
from .generation import generate as generation
from .generation.sampler import Eos, SamplingParams
from .kernels.threads import is_mine, new_lock
from .model.engine import Engine, interrupted_error
from .source import ModelSource, open_source
from .tokenizer.files import read_vocabulary
from .weights.loading import load_weights
from .weights.table import checkpoint_name

if TYPE_CHECKING:
    from .model.learner import Learner


class Output(NamedTuple):
    """What calling a GPTModel returns.

    logits  float32 [B, T, V]
    """

    logits: np.ndarray


class GPTModel:
    """A GPT-2-architecture model, ready to run.

        model = GPTModel.from_pretrained("cerebras/Cerebras-GPT-111M")
        logits = model(ids).logits                       # ids: int64 [B, T]
        ids = model.generate(ids, max_new_tokens=64)     # int64 [B, T + n]

    config  the GPTConfig
    dtype   data type of the weight matrices: "f32", "bf16", "int8" or "int4"
    source  the folder or GGUF file it was loaded from

    Several threads may use one model: they take turns, pass by pass. Ctrl-C ends a call and leaves
    the model usable. A copy shares the weights. A pickle holds no weights: it is read by loading
    `source` again, with this dtype and number of threads.
    """

    def __init__(self, engine: Engine, source: Path) -> None:
        self.engine = engine
        self.source = source
        self.config = engine.config
        self.dtype = engine.weights.dtype
        self._learner: Learner | None = None
        self._learning = new_lock()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str] | ModelSource = BUNDLED_MODEL,
        dtype: str = "auto",
        threads: int | None = None,
    ) -> GPTModel:
        """Load a model.

            model = GPTModel.from_pretrained("cerebras/Cerebras-GPT-111M", dtype="bf16")

        source   a folder in Hugging Face layout, a folder that `minigpt convert` or `train` wrote,
                 a GGUF file, or a hub id; by default the bundled model
        dtype    data type of the weight matrices in memory: "f32", "bf16", "int8" or "int4";
                 "auto": that of the source, but f32 for f16 and f64
        threads  number of threads that compute, from 1 to 256. Default: one per processor of this
                 process

        Raises SourceError (or its subclasses CheckpointError and ConfigError) for a source that is
        missing, damaged or of an unsupported kind, and InputError for a wrong dtype or threads.
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

    def __copy__(self) -> GPTModel:
        return type(self)(self.engine, self.source)

    def __deepcopy__(self, memo: object) -> GPTModel:
        return self.__copy__()  # nothing changes weights

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return type(self).from_pretrained, (self.source.absolute(), self.dtype, self.engine.threads)

    @cached_property
    def sampled_vocab_size(self) -> int:
        """Generation chooses ids below this one: the size of the source's tokenizer.

        vocab_size where the source has none that can be read. Models often have rows of wte, and so
        ids, that no token of their tokenizer names.
        """
        try:
            tokens = len(read_vocabulary(self.source).tokens)
        except SourceError:
            return self.config.vocab_size
        return min(tokens, self.config.vocab_size)

    def __call__(self, ids: Any) -> Output:
        """The logits at every position.

        ids  integers [B, T], or [T] for B = 1; 1 ≤ T ≤ n_positions, 0 ≤ id < vocab_size

        Returns Output, a tuple of one array: .logits, float32 [B, T, V]. logits[b, t] predicts
        the token after ids[b, t]. Raises InputError for ids that are not such integers.
        """
        batch = checked_batch(ids, self.config)
        B, T = batch.shape
        cache = self.engine.new_cache(B, T)
        slots = [cache.allocate() for _ in range(B)]
        logits = self.engine.forward(cache, slots, list(batch), last=None)
        return Output(logits.reshape(B, T, -1))

    def generate(
        self,
        ids: Any,
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        eos_token_id: Eos = "config",
        vocab_size: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Continue prompts; greedy by default.

            ids = tokenizer.encode("Once upon a time", return_tensors="np")
            ids = model.generate(ids, max_new_tokens=100, temperature=0.8, top_p=0.95, seed=1)
            print(tokenizer.decode(ids[0]))

        ids             the prompts, of at most n_positions tokens each:
                        integers [B, T], or [T] for B = 1, which return an array, or
                        a list of B prompts, integers [T_i], which returns a list.
                        An array, a list, or any other iterable. An empty prompt begins after
                        config.start_token_id, which is not among the tokens returned
        max_new_tokens  generate at most this many tokens, an integer from 0. Fewer where
                        eos_token_id comes, or where prompt and new tokens together fill the
                        model's context, n_positions
        temperature     0 takes the most likely token each time, whatever top_k, top_p, min_p and
                        seed are (Hugging Face's do_sample=False); a UserWarning says so where one
                        of the first three is set. Above 0 tokens are drawn from
                        softmax(logits ÷ temperature): below 1 sharpens, above 1 flattens the
                        distribution. Any finite number
        top_k           keep only the k most likely tokens: an integer from 1, or 0 or None for all
        top_p           keep only the smallest set of most likely tokens whose probabilities sum to
                        top_p or more: above 0 and at most 1, or None for all
        min_p           keep only tokens of at least min_p times the probability of the most likely:
                        from 0 to 1, or None for all. Temperature, top_k, top_p and min_p apply in
                        this order, each to what the one before it left
        seed            an integer from 0 to 2⁶⁴ − 1. The same seed, prompt and options give the
                        same tokens, with any number of threads. None: different ones each time.
                        Each row of a batch draws random numbers of its own
        eos_token_id    the token that ends a row, or several, each of which does; it is the last of
                        the row. "config": config.eos_token_ids; None: nothing ends a row early
        vocab_size      choose only ids below this one, an integer from 1, and those that end a row.
                        None: below sampled_vocab_size, the size of the source's tokenizer

        Returns prompts and new tokens: an array gives int64 [B, T + n], in which rows that ended
        early are filled with eos_token_id, of several the first; a list gives a list of B arrays,
        int64 [T_i + n_i].
        A row's tokens do not depend on the other rows of the batch, and row 0 is what `stream`
        yields.

        Raises InputError for an argument of the wrong type or out of its range, and
        CheckpointError where the model's logits are not finite.
        """
        params = SamplingParams(
            max_new_tokens, temperature, top_k, top_p, min_p, seed, eos_token_id, vocab_size
        )
        _warn_of_unused(params)
        return generation.generate(self, ids, params)

    def stream(
        self,
        ids: Any,
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        eos_token_id: Eos = "config",
        vocab_size: int | None = None,
    ) -> Generator[int, None, None]:
        """Continue one prompt, and yield its new tokens as they come.

            for token_id in model.stream(ids, temperature=0.8):
                print(decoder.push(token_id), end="", flush=True)

        ids  the prompt: integers [T] or [1, T], T ≤ n_positions; an empty one begins after
             config.start_token_id

        The options are those of `generate`. A token is computed when it is asked for, and closing
        the generator stops the work. Raises InputError at the call, for a wrong argument; the
        generator raises CheckpointError where the model's logits are not finite.
        """
        params = SamplingParams(
            max_new_tokens, temperature, top_k, top_p, min_p, seed, eos_token_id, vocab_size
        )
        _warn_of_unused(params)
        return generation.stream(self, ids, params)

    def loss_and_grad(self, ids: Any, targets: Any) -> tuple[float, dict[str, np.ndarray]]:
        """The mean cross-entropy loss, and its gradient with respect to every parameter.

            loss, grads = model.loss_and_grad(ids[:, :-1], ids[:, 1:])

        ids      integers [B, T], or [T] for B = 1
        targets  integers of the shape of `ids`: targets[b, t] is the token after ids[b, t]; -100
                 is ignored

        Returns the loss in nats, a float, and the gradients: {tensor name in the checkpoint:
        float32 array of the tensor's shape}. The gradient of a tied head is added to that of
        wte.weight. Operands of matrix products are bfloat16 for a model of dtype "bf16", else
        float32; int8 and int4 weights are dequantized. The first call makes float32 copies of the
        weights, which stay in memory.

        Raises InputError for ids or targets that are not tokens, for different shapes, and for
        targets that are all ignored, and CheckpointError where the loss is not finite.
        """
        batch = checked_batch(ids, self.config)
        wanted, counted = checked_targets(targets, batch.shape, self.config)
        weights = self.engine.weights
        if is_mine(self._learning):
            raise interrupted_error()
        with self._learning:
            if self._learner is None:
                self._learner = self._new_learner()
            self._learner.zero_grad()
            nats = self._learner.backward(batch, wanted, 1 / counted)
            grads = self._learner.pop_grads()
        if not math.isfinite(nats):
            raise CheckpointError(
                f"loss: is {nats}; the weights are damaged, or overflow in this dtype"
            )
        return nats / counted, {
            checkpoint_name(name, weights.prefix): grad for name, grad in grads.items()
        }

    def _new_learner(self) -> Learner:
        from .model.learner import Learner

        tensors = self.engine.weights.float32_copies()
        dtype = "bf16" if self.dtype == "bf16" else "f32"
        return Learner(self.config, tensors, self.engine.threads, dtype)

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: str = "f32") -> None:
        """Save the model in Hugging Face layout: config.json, model.safetensors, tokenizer files.

        folder  the folder to write to, created if it does not exist. generation_config.json and
                tokenizer files are copied from the model's source, except tokenizer files that the
                folder already has
        dtype   data type of the matrices in the file, "f32" or "bf16"; vectors are float32

        Raises InputError for another dtype, and SourceError if the folder cannot be written.
        """
        save_model(self.config, self.engine.weights, self.source, folder, dtype)


def _warn_of_unused(params: SamplingParams) -> None:
    """Warn the caller of `generate` or `stream` of options that do nothing at temperature 0."""
    if params.unused:
        names = " and ".join(params.unused)
        warnings.warn(
            f"temperature is 0: the most likely token is taken, with or without {names}; "
            "give a temperature above 0 to sample",
            UserWarning,
            stacklevel=3,
        )
