"""Start a training run: its folder, with token files, tokenizer and a first checkpoint.

One call starts a run, and one resumes it:

    train("run", ["book.txt", "tales.jsonl"], preset="tiny", minutes=5)
    train("run")
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ..arguments import (
    check_callable,
    checked_bool,
    checked_file_names,
    checked_folder,
    checked_integer,
    checked_threads,
)
from ..bundled import BUNDLED_MODEL
from ..checkpoint import creating_folder, write_file
from ..config import GENERATION_CONFIG, GPTConfig, read_generation_config
from ..errors import InputError, warn
from ..source import open_source
from ..texts import check_files
from ..tokenizer.files import tokenizer_files
from ..tokenizer.tokenizer import GPTTokenizer
from ..weights.packed import float32_tensors
from ..weights.table import HEAD, parameter_count
from .config import (
    RunConfig,
    TrainingConfig,
    check_min_lr,
    checked_config,
    complete_config,
    with_defaults,
    with_fixed_defaults,
)
from .initial import random_tensors
from .limits import Limits, checked_limits
from .presets import FINE_TUNING, Preset, checked_preset, new_config
from .run_folder import CONFIG, WeightsAndMoments, digest, has_run, tidy, write_checkpoint
from .schedule import Plan
from .state_json import TEXT, VALIDATION, Run, TrainState
from .throughput import estimated_steps
from .token_file import Progress, write_tokens
from .train import StepReport, compiled_learner, resume_run

Source = str | os.PathLike[str]
Files = Source | Sequence[Source]


def train(
    folder: Source,
    texts: Files | None = None,
    *,
    validation_texts: Files | None = None,
    tokenizer: Source | GPTTokenizer | None = None,
    model: Source | None = None,
    preset: str | Preset | None = None,
    config: TrainingConfig | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    patience: int | None = None,
    threads: int | None = None,
    allow_special: bool = False,
    report: Callable[[StepReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainState:
    """Train a model on texts in a new folder, or resume the run in a folder.

    texts             the files to train on: start a new run. None: resume the run in `folder`,
                      with the same bits as if it had not been interrupted
    validation_texts  files to evaluate on. Default: the end of `texts`, see TrainingConfig
    tokenizer         a tokenizer or its source. Default: the model's, else the bundled one
    model             a model source whose weights the run starts from. Default: random weights
    preset            shape and hyperparameters of a new model: "tiny", "small" (default), "medium",
                      or "111M" to "13B" of Cerebras-GPT; or a Preset
    config            hyperparameters; those that are None take the preset's value or a default
    steps             total steps, from 1. Default: the config's, else see TrainingConfig
    minutes           time of this call, above 0. A new run without steps and epochs is one by the
                      clock: it takes as many steps as fit into it, by an estimate that is renewed
                      as it goes, and its learning rate comes down by its end. Default: no limit
    patience          evaluations in a row without a lower validation loss, after which the call
                      ends, from 1. Default: no limit
    threads           number of threads that compute; the result has the same bits for any number.
                      Default: one per processor
    allow_special     True to read special tokens such as `<|endoftext|>` in the texts as these
                      tokens: texts are cut at each `<|endoftext|>`. Default: plain text
    report            called with a StepReport after each step
    stop              polled before each micro-batch; True ends the call after a checkpoint

    Texts are files, each a document; those named .jsonl, .ndjson or .json hold objects, the "text"
    of each of which is one: see texts.py. Only a new run takes validation_texts, tokenizer, model,
    preset, config and allow_special.

    Returns the progress of the run. The folder is a model source at any time, and whatever ends the
    call, a later one resumes it. Raises InputError for an argument out of its range, for texts that
    cannot be read or are too short, and if another process trains in the folder; SourceError for a
    damaged model or tokenizer and for a folder without a run; CheckpointError if the folder is
    damaged or cannot be written; MinigptError if a loss, gradient or weight is not finite.
    """
    limits = checked_limits(Limits(steps, minutes, patience))
    checked_threads(threads)
    check_callable("report", report)
    check_callable("stop", stop)
    if texts is None:
        options = {
            "validation_texts": validation_texts, "tokenizer": tokenizer, "model": model,
            "preset": preset, "config": config, "allow_special": allow_special or None,
        }  # fmt: skip
        for name, value in options.items():
            if value is not None:
                raise InputError(
                    f"{name}: only a new run takes it, and a new run needs texts", name
                )
    else:
        if limits.steps is not None:
            config = replace(_checked_or_default(config), steps=limits.steps)
        create_run(
            folder, texts, validation_texts=validation_texts, tokenizer=tokenizer, model=model,
            preset=preset, config=config, minutes=limits.minutes, threads=threads,
            allow_special=allow_special,
        )  # fmt: skip
    return resume_run(folder, limits, threads=threads, report=report, stop=stop)


def create_run(
    folder: Source,
    texts: Files,
    *,
    validation_texts: Files | None = None,
    tokenizer: Source | GPTTokenizer | None = None,
    model: Source | None = None,
    preset: str | Preset | None = None,
    config: TrainingConfig | None = None,
    minutes: float | None = None,
    threads: int | None = None,
    allow_special: bool = False,
    progress: Progress | None = None,
) -> RunConfig:
    """Create the folder of a new run, ready for `resume_run`.

    texts             files, each a document; in those named as JSON each object's "text" is one;
                      "-": standard input. See texts.py
    validation_texts  files to evaluate on. Default: the end of `texts`, see TrainingConfig
    tokenizer         a tokenizer or its source. Default: the model's, else the bundled one
    model             a model source whose weights the run starts from. Default: random weights
    preset            shape of a new model and defaults of its hyperparameters: a name of PRESETS
                      or a Preset. Default: "small"
    config            hyperparameters. A field that is None takes the preset's value, or with
                      `model` that of FINE_TUNING. Default: all None
    minutes           without steps and epochs, makes it a run by the clock: it plans for as many
                      steps as fit into this time, estimated by timing a few. Default: no limit
    threads           number of threads for that estimate. Default: one per processor
    allow_special     as in `train`
    progress          called with (bytes of text read, tokens written)

    Returns the complete hyperparameters. The folder appears once all of it is written. Raises
    InputError for an argument out of its range, for texts that cannot be read or are too short, and
    if the folder holds a run; SourceError for a damaged model or tokenizer; CheckpointError if the
    folder exists or cannot be written.
    """
    folder = checked_folder(folder)
    if has_run(folder):
        raise InputError(
            f"{folder}: holds a training run; `minigpt train --resume {folder}` resumes it"
        )
    config = _checked_or_default(config)
    minutes = checked_limits(Limits(minutes=minutes)).minutes
    checked_threads(threads)
    allow_special = checked_bool("allow_special", allow_special)
    check_callable("progress", progress)
    if preset is not None:
        preset = checked_preset(preset)
    if config.steps is not None or config.epochs is not None:
        minutes = None
    # Checked before a model is loaded: a wrong file name is reported at once.
    names = checked_file_names("texts", texts)
    check_files(names)
    validation_names = None
    if validation_texts is not None:
        validation_names = checked_file_names("validation_texts", validation_texts)
        check_files(validation_names)
    has_own_tokenizer = model is not None and tokenizer is None
    if not isinstance(tokenizer, GPTTokenizer):
        source = model if tokenizer is None else tokenizer
        tokenizer = GPTTokenizer.from_pretrained(BUNDLED_MODEL if source is None else source)
    training = tokenizer.documents(names, allow_special)
    validation = None
    if validation_names is not None:
        validation = tokenizer.documents(validation_names, allow_special)
    initial = _initial_model(model, preset, config, tokenizer, has_own_tokenizer)
    if minutes is not None:
        initial = initial._replace(steps_in_time=_steps_in(minutes, initial, threads))
    return write_run(folder, training, validation, tokenizer, initial, progress, allow_special)


class InitialModel(NamedTuple):
    """What a run starts from.

    config    of the model
    tensors   {name: float32 array}; without a head it is tied
    training  the hyperparameters, with the preset's defaults
    steps_in_time  of a run by the clock: the steps that fit into its time by an estimate; else None
    files     {name: content}, further files for the run's folder: of a source its
              generation_config.json, and its tokenizer's if the run takes that
    """

    config: GPTConfig
    tensors: dict[str, np.ndarray]
    training: TrainingConfig
    steps_in_time: int | None = None
    files: Mapping[str, bytes] = MappingProxyType({})


def write_run(
    folder: Path,
    texts: Iterable[str],
    validation_texts: Iterable[str] | None,
    tokenizer: GPTTokenizer,
    initial: InitialModel,
    progress: Progress | None = None,
    allow_special: bool = False,
) -> RunConfig:
    """Write the folder of a new run; texts are documents. Returns its hyperparameters."""
    training = checked_config(initial.training)
    _check_fit(initial, tokenizer)
    tied = HEAD not in initial.tensors
    model = replace(_with_end(initial.config, tokenizer), tie_word_embeddings=tied)
    end = model.eos_token_id
    with creating_folder(folder) as temporary:
        file = temporary / TEXT
        written = write_tokens(texts, tokenizer, file, progress, allow_special, end)
        _check_known(written.vocab_size - 1, model)
        tokens, names = written.tokens, [TEXT]
        if validation_texts is not None:
            file = temporary / VALIDATION
            what = "the held-out texts"
            written = write_tokens(
                validation_texts, tokenizer, file, None, allow_special, end, what
            )
            _check_known(written.vocab_size - 1, model)
            names.append(VALIDATION)
            training = replace(training, validation_tokens=0)
        parameters = parameter_count(model, model.tie_word_embeddings)
        config = complete_config(training, tokens, parameters, initial.steps_in_time)
        tokenizer.save_pretrained(temporary)
        write_file(temporary / CONFIG, (json.dumps(model.to_dict(), indent=2) + "\n").encode())
        for name, content in initial.files.items():
            if not (temporary / name).exists():
                write_file(temporary / name, content)
        run = Run(temporary, model, config, {name: digest(temporary / name) for name in names})
        state = TrainState(plan=None if initial.steps_in_time is None else Plan(config.steps, 0.0))
        tensors = WeightsAndMoments(initial.tensors, {}, {})
        tidy(temporary, write_checkpoint(run, state, tensors), state)
    return config


def _with_end(model: GPTConfig, tokenizer: GPTTokenizer) -> GPTConfig:
    """`model`, which ends at the tokenizer's end-of-text token where it names no end of its own.

    A model that ends at others keeps them, and a warning says so. Raises InputError where the model
    does not know the tokenizer's.
    """
    end = tokenizer.eos_token_id
    if model.eos_token_ids and end not in (None, *model.eos_token_ids):
        warn(
            f"the model ends texts with token {model.eos_token_id}, its tokenizer with "
            f"{tokenizer.eos_token}, {end}; the run ends texts with the model's"
        )
    if model.eos_token_ids or end is None:
        return model
    _check_known(end, model)
    start = end if model.start_token_id is None else model.start_token_id
    return replace(model, eos_token_ids=(end,), start_token_id=start)


def _check_known(token_id: int, model: GPTConfig) -> None:
    """Raises InputError for a token that the tokenizer has beyond the model's vocabulary."""
    if token_id >= model.vocab_size:
        raise InputError(
            f"tokenizer: has a special token {token_id} in the texts or to end them, and the model "
            f"knows {model.vocab_size}; take the model's own tokenizer"
        )


def _checked_or_default(config: TrainingConfig | None) -> TrainingConfig:
    return TrainingConfig() if config is None else checked_config(config)


def _initial_model(
    source: Source | None,
    preset: str | Preset | None,
    config: TrainingConfig,
    tokenizer: GPTTokenizer,
    has_own_tokenizer: bool,
) -> InitialModel:
    """The model of a source, or a random one in the shape of a preset.

    has_own_tokenizer  whether the tokenizer is the source's
    """
    if source is not None:
        if preset is not None:
            raise InputError(
                "preset: give either preset or model, which has its own shape", "preset"
            )
        config = with_defaults(config, FINE_TUNING)
        check_min_lr(config)
        opened = open_source(source)
        model, tensors = opened.config, float32_tensors(opened)
        if config.context is None:
            config = replace(config, context=min(RunConfig.context, model.n_positions))
        files = tokenizer_files(opened.files) if has_own_tokenizer else {}
        if (content := read_generation_config(opened.files)) is not None:
            files[GENERATION_CONFIG] = content
        return InitialModel(model, tensors, config, files=files)
    preset = checked_preset("small" if preset is None else preset)
    config = with_defaults(config, preset.training)
    check_min_lr(config)
    model = new_config(
        preset, config.context or RunConfig.context, tokenizer.vocab_size, tokenizer.eos_token_id
    )
    return InitialModel(model, random_tensors(model, config.seed), config)


def _steps_in(minutes: float, initial: InitialModel, threads: int | None) -> int:
    """The number of steps that fit into `minutes`."""
    config = with_fixed_defaults(initial.training)
    learner = compiled_learner(
        initial.config, initial.tensors, threads, config.dtype, config.recompute
    )
    return estimated_steps(learner, config, minutes)


def _check_fit(initial: InitialModel, tokenizer: GPTTokenizer) -> None:
    """Raises InputError for a vocabulary or a context that is too large for the model."""
    model, context = initial.config, initial.training.context or RunConfig.context
    if tokenizer.stored_vocab_size > model.vocab_size:
        raise InputError(
            f"tokenizer: has {tokenizer.stored_vocab_size} tokens, and the model knows "
            f"{model.vocab_size}; take the model's own"
        )
    checked_integer("context", context, 1, model.n_positions, "the model's context")
