"""The beginning of a training run: its folder, with the texts as ids and a first checkpoint.

What comes afterwards is the same at the first step as at any other: see train.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..checkpoint import creating_folder, write_file
from ..config import GPTConfig
from ..conversion.saving import checked_folder
from ..errors import InputError
from ..tokenizer.tokenizer import GPTTokenizer
from ..weights.table import HEAD, parameter_count
from .config import Plan, Settings, planned
from .run_folder import (
    CONFIG,
    HELD_OUT,
    TEXT,
    Learned,
    Run,
    State,
    digest,
    has_run,
    tidy,
    write_checkpoint,
)
from .token_file import Progress, read_tokens, write_tokens


def create_run(
    folder: str | os.PathLike[str],
    texts: Iterable[str],
    held_out: Iterable[str] | None,
    tokenizer: GPTTokenizer,
    config: GPTConfig,
    tensors: dict[str, np.ndarray],
    settings: Settings,
    progress: Progress | None = None,
) -> Plan:
    """Makes the folder of a new run, which appears when all of it is written; `train` goes on.

    texts      the documents to learn from
    held_out   those to be judged by; None: the end of the texts is held back
    config     of the model
    tensors    the weights to begin with, float32 by the table's names; without a head it is wte
    progress   is told (bytes of text read, tokens written)

    Returns the settings, completed. Raises InputError for an argument out of its range and for
    texts that are too short, CheckpointError where the folder is there already or cannot be
    written.
    """
    folder = checked_folder(folder)
    check_new(folder)
    _check_fit(settings, tokenizer, config)
    config = replace(config, tie_word_embeddings=HEAD not in tensors)
    with creating_folder(folder) as temporary:
        write_tokens(texts, tokenizer, temporary / TEXT, progress)
        names = [TEXT]
        if held_out is not None:
            write_tokens(held_out, tokenizer, temporary / HELD_OUT)
            names.append(HELD_OUT)
            settings = replace(settings, held_back=0)
        tokens = len(read_tokens(temporary / TEXT))
        parameters = parameter_count(config, config.tie_word_embeddings)
        plan = planned(settings, tokens, parameters)
        tokenizer.save_pretrained(temporary)
        config_json = json.dumps(config.to_dict(), indent=2) + "\n"
        write_file(temporary / CONFIG, config_json.encode())
        run = Run(temporary, config, plan, {name: digest(temporary / name) for name in names})
        checkpoint = write_checkpoint(run, State(), Learned(tensors, {}, {}))
        tidy(temporary, checkpoint, State())
    return plan


def check_new(folder: Path) -> None:
    """Raises InputError where a run is there already."""
    if has_run(folder):
        raise InputError(
            f"{folder}: holds a training run; `minigpt train --resume {folder}` goes on with it"
        )


def _check_fit(settings: Settings, tokenizer: GPTTokenizer, config: GPTConfig) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"tokenizer: has {tokenizer.vocab_size} tokens, and the model knows "
            f"{config.vocab_size}; take the model's own"
        )
    if settings.context > config.n_positions:
        raise InputError(
            f"context {settings.context}: the model has {config.n_positions} positions, no more"
        )
