"""`minigpt train`: trains a model on texts, from random weights or from a model."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .generate import FiniteRange
from .terminal import (
    NewPath,
    Text,
    clock,
    complete_source,
    expand_wildcards,
    files_argument,
    in_main_thread,
    is_interactive,
    note,
    show_line,
    special_option,
    threads_option,
    verbose_option,
)

if TYPE_CHECKING:
    from ..training.config import TrainingConfig
    from ..training.limits import Limits
    from ..training.presets import Preset
    from ..training.train import StepReport

# A copy of the names in training.presets: importing that loads NumPy, which --help should not wait
# for. A test compares them.
PRESETS = ("tiny", "small", "medium", "111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B")

_SHAPE = ("n_layer", "n_head", "n_embd")
_FROM_1 = click.IntRange(min=1)
_FROM_0 = click.IntRange(min=0)
_ABOVE_0 = FiniteRange(0, min_open=True)
_NUMBER_FROM_0 = FiniteRange(0)
_BELOW_1 = FiniteRange(0, 1, max_open=True)

# Options whose fields in TrainingConfig have other names.
_FIELDS = {"warmup": "warmup_steps", "clip": "max_grad_norm"}


@click.command(
    short_help="Train a model on texts, from random weights or from a model.",
    epilog="Example: minigpt train tales/*.txt --preset tiny --minutes 5 --out my-tales",
)
@files_argument("texts", "[TEXT]...")
@click.option("--out", type=NewPath(), metavar="FOLDER", help="New folder of a run.")
@click.option(
    "--resume",
    type=Text(),
    shell_complete=complete_source,
    metavar="FOLDER",
    help="Resume the run in this folder. Takes --steps, --minutes, --patience and --threads; all "
    "other options are the run's own.",
)
@click.option(
    "-m",
    "--model",
    type=Text(),
    shell_complete=complete_source,
    metavar="SOURCE",
    help="Start from this model (fine-tuning): a folder, a GGUF file, or a hub id. "
    "Default: random weights.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    help="Shape and hyperparameters of a new model, see above. Default: small.",
)
@click.option("--n-layer", type=_FROM_1, help="Number of layers. Default: the preset's.")
@click.option(
    "--n-embd", type=_FROM_1, help="Embedding width, a multiple of --n-head. Default: the preset's."
)
@click.option("--n-head", type=_FROM_1, help="Number of attention heads. Default: the preset's.")
@click.option(
    "--context",
    type=_FROM_1,
    help="Tokens of a sequence. Default: the preset's; with -m 256, or the model's context if that "
    "is shorter.",
)
@click.option(
    "--tokenizer",
    type=Text(),
    shell_complete=complete_source,
    metavar="SOURCE",
    help="A folder written by `minigpt train-tokenizer`, or any model source. Default: the "
    "tokenizer of -m, else that of the bundled model, with 4096 tokens for English.",
)
@click.option(
    "--held-out",
    multiple=True,
    callback=expand_wildcards,
    metavar="TEXT",
    shell_complete=complete_source,
    help="Validation text, which is not trained on; may be repeated. Default: the last hundredth "
    "of the texts, none if they are shorter than 20 sequences.",
)
@click.option(
    "--batch-size",
    type=_FROM_1,
    help="Sequences per step. Gradients are accumulated over micro-batches: memory does not grow "
    "with it. Default: the preset's; with -m 16.",
)
@click.option(
    "--lr",
    type=_ABOVE_0,
    help="Peak learning rate, which every run reaches. Default: the preset's; with -m 5e-5.",
)
@click.option(
    "--min-lr",
    type=_NUMBER_FROM_0,
    help="Learning rate at the end of the decay, at most --lr. The decay would reach it one step "
    "after the last, so that with 0 the last step still learns. Default: a tenth of --lr.",
)
@click.option(
    "--warmup",
    type=_FROM_0,
    help="Steps of linear warmup from 0 to --lr; with 0 the first step has --lr. Default: as many "
    "as the preset's number of tokens takes, but at most a fifth of all steps.",
)
@click.option(
    "--decay",
    type=click.Choice(["cosine", "linear"]),
    help="Shape of the decay from --lr to --min-lr. Default: the preset's; with -m cosine.",
)
@click.option(
    "--weight-decay",
    type=_NUMBER_FROM_0,
    help="AdamW's weight decay, of matrices only. Default: 0.1.",
)
@click.option(
    "--beta-1", type=_BELOW_1, help="AdamW's decay rate of the first moments. Default: 0.9."
)
@click.option(
    "--beta-2", type=_BELOW_1, help="AdamW's decay rate of the second moments. Default: 0.95."
)
@click.option(
    "--clip",
    type=_NUMBER_FROM_0,
    help="Maximum norm of the gradient: a larger one is scaled down to it; 0: no clipping. "
    "Default: 1.",
)
@click.option(
    "--steps",
    type=_FROM_1,
    help="Optimizer steps of the whole run. Default: 20 tokens per parameter, but at most 16 "
    "epochs; with -m one epoch. With --resume, steps beyond those planned keep the learning rate "
    "of the last.",
)
@click.option("--epochs", type=_ABOVE_0, help="Instead of --steps: passes over the training text.")
@click.option(
    "--minutes",
    type=_ABOVE_0,
    help="Time of this call; --resume goes on. A new run without --steps and --epochs makes as "
    "many steps as fit into it: it estimates them anew after each step, so that the learning rate "
    "has come down by the end. Default: no limit.",
)
@click.option(
    "--patience",
    type=_FROM_1,
    help="Stop after this many evaluations in a row without a lower validation loss. "
    "Default: no limit.",
)
@click.option(
    "--eval-every",
    type=_FROM_1,
    help="Steps between evaluations on the validation text. Default: a 50th of all steps.",
)
@click.option(
    "--save-every",
    type=_FROM_1,
    help="Steps between checkpoints; a new best model is always saved. Default: --eval-every.",
)
@click.option(
    "--seed",
    type=_FROM_0,
    help="Seed of the initial weights and of the order of the batches. Default: 0.",
)
@click.option(
    "--dtype",
    type=click.Choice(["f32", "bf16"]),
    help="Operands of matrix products; weights, gradients and sums are f32 in both. "
    "Default: bf16 on processors that multiply bfloat16, else f32.",
)
@click.option(
    "--recompute",
    is_flag=True,
    default=None,
    help="Recompute activations in the backward pass instead of storing them: less memory, a third "
    "more time.",
)
@special_option
@threads_option
@verbose_option
def train(
    texts: tuple[str, ...],
    out: Path | None,
    resume: str | None,
    minutes: float | None,
    patience: int | None,
    special: bool,
    threads: int | None,
    verbose: bool,
    **chosen: Any,
) -> None:
    """Train a model on all TEXTs, in a new FOLDER that is a model source like any other.

    A TEXT is a file of plain text, a .jsonl, .ndjson or .json file of objects with a "text", or -
    for standard input.

    FOLDER holds the model with the lowest validation loss, the losses in metrics.jsonl and
    loss.svg, and a checkpoint. Whatever ends the training, Ctrl-C too, --resume goes on from the
    checkpoint and ends with the same result as without the interruption.

    \b
    preset   parameters   context   memory
    tiny           1.3M       128   0.3 GB
    small          5.8M       256   0.4 GB
    medium          16M       512   0.7 GB
    111M           111M      2048   2.8 GB
    256M           256M      2048   5.7 GB
    590M           590M      2048    12 GB
    1.3B           1.3B      2048    25 GB
    2.7B           2.7B      2048    50 GB
    6.7B           6.7B      2048   118 GB
    13B             13B      2048   223 GB

    111M to 13B have the shapes and hyperparameters of Cerebras-GPT. Parameters are those with the
    bundled model's vocabulary of 4096 tokens, from 111M on with GPT-2's 50257. Memory is that of
    training in f32.
    """
    given = {name: value for name, value in chosen.items() if value not in (None, ())}
    if special:
        given["special"] = True
    _check_usage(texts, out, resume, given)

    from ..training.limits import Limits

    if resume:
        _resume(Path(resume), Limits(given.get("steps"), minutes, patience), threads, verbose)
    else:
        assert out
        steps = _create(out, texts, given, minutes, threads)
        _resume(out, Limits(None, minutes, patience), threads, verbose, steps)


def _check_usage(
    texts: tuple[str, ...], out: Path | None, resume: str | None, given: dict[str, Any]
) -> None:
    """Raises UsageError for options that exclude or need each other."""
    names = {name: _option(name) for name in given}
    if bool(out) == bool(resume):
        raise _usage("Give one of '--out', the folder of a new run, and '--resume'.")
    if resume:
        others = ["TEXT"] * bool(texts) + [names[name] for name in given if name != "steps"]
        if others:
            raise _usage(f"'{others[0]}' cannot be given with '--resume': the run has its own.")
        return
    if not texts:
        raise _usage("Missing argument 'TEXT...': name the files to train on.")
    if "model" in given:
        others = [names[name] for name in ("preset", *_SHAPE) if name in given]
        if others:
            raise _usage(f"'{others[0]}' cannot be given with '--model', which has its shape.")
    if "steps" in given and "epochs" in given:
        raise _usage("Give '--steps' or '--epochs', not both.")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _usage(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context())


def _create(
    folder: Path,
    texts: tuple[str, ...],
    given: dict[str, Any],
    minutes: float | None,
    threads: int | None,
) -> int:
    """Create the folder of a new run; returns its number of steps."""
    from ..training.create import create_run

    model, tokenizer, held_out = (given.pop(n, None) for n in ("model", "tokenizer", "held_out"))
    special = given.pop("special", False)
    preset, config = _checked_options(given, model)

    def progress(text_bytes: int, tokens: int) -> None:
        show_line(f"{folder}   reading   {text_bytes / 1e6:.1f} MB   {tokens:,} tokens")

    if minutes and not (config.steps or config.epochs):
        show_line(f"{folder}   timing a few steps")
    return create_run(
        folder, texts, validation_texts=held_out, tokenizer=tokenizer, model=model, preset=preset,
        config=config, minutes=minutes, threads=threads, allow_special=special,
        progress=progress,
    ).steps  # fmt: skip


def _checked_options(
    given: dict[str, Any], model: str | None
) -> tuple[Preset | None, TrainingConfig]:
    """The preset, None with a model, and the hyperparameters; raises UsageError for wrong ones."""
    from ..training.config import TrainingConfig, checked_config
    from ..training.presets import checked_preset

    name, shape = given.pop("preset", "small"), {n: given.pop(n) for n in _SHAPE if n in given}
    fields = {_FIELDS.get(option, option): value for option, value in given.items()}
    try:
        config = checked_config(TrainingConfig(**fields))
        preset = None if model else checked_preset(replace(checked_preset(name), **shape))
    except InputError as error:
        raise _usage(str(error)) from None
    return preset, config


def _resume(
    folder: Path, limits: Limits, threads: int | None, verbose: bool, planned: int | None = None
) -> None:
    """Train, and show the progress. planned: the steps of a new run."""
    from ..training.train import resume_run

    show_line(f"{folder}   preparing")
    show, interrupted = _shower(verbose), _interrupts()

    def report(report: StepReport) -> None:
        nonlocal planned
        planned = report.planned_steps
        show(report)

    state = resume_run(folder, limits, threads=threads, report=report, stop=interrupted)
    show_line("")
    loss = state.best_loss
    best = "" if loss is None else f"; validation loss {loss:.4f} after step {state.best_step}"
    of_planned = f" of {planned} planned" if planned and planned > state.step else ""
    note(f"{folder}: {state.step}{of_planned} steps{best}", verbose)
    if interrupted():
        note(f"interrupted; `minigpt train --resume {folder}` goes on", verbose)
        raise KeyboardInterrupt


def _interrupts() -> Callable[[], bool]:
    """Whether SIGINT (Ctrl-C) or SIGTERM arrived since this call; a second one ends at once."""
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        if interrupted and is_interactive():
            raise KeyboardInterrupt
        if interrupted:
            os._exit(130)
        interrupted = True

    if in_main_thread():
        # Ignored for background jobs of a script; that stays so.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)
    return lambda: interrupted


def _shower(verbose: bool) -> Callable[[StepReport], None]:
    """A function that shows reports: milestones as notes, the others as a progress line."""
    last_shown = 0.0

    def show(report: StepReport) -> None:
        nonlocal last_shown
        if report.milestone:
            show_line("")
            note(_line(report), verbose)
        elif perf_counter() - last_shown > 0.1:  # nobody reads faster
            last_shown = perf_counter()
            show_line(_line(report))

    return show


def _line(report: StepReport) -> str:
    """step 120 of 4000   loss 3.2100   validation 3.4000   8123 tokens/s   12:05 left"""
    parts = [f"step {report.step} of {report.steps}", f"loss {report.loss:.4f}"]
    if report.validation_loss is not None:
        parts.append(f"validation {report.validation_loss:.4f}")
    elif report.best_loss is not None:
        parts.append(f"best validation {report.best_loss:.4f}")
    parts += [f"{report.tokens_per_s:.0f} tokens/s", f"{clock(report.seconds_left)} left"]
    return "   ".join(parts)
