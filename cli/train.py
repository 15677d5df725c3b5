"""`minigpt train`: a model from texts, or from another model and texts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ..bundled import BUNDLED_MODEL
from .terminal import (
    Text,
    clock,
    complete_source,
    note,
    show_line,
    threads_option,
    verbose_option,
)

if TYPE_CHECKING:
    from ..training.train import Report

# Those of presets.py, which is too heavy to be imported for --help.
PRESETS = ("tiny", "small", "medium", "111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B")

_SHAPE = ("n_layer", "n_head", "n_embd")
_COUNT = click.IntRange(min=1)
_SHARE = click.FloatRange(0, 1, max_open=True)
_ABOVE_0 = click.FloatRange(0, min_open=True)
_FROM_0 = click.FloatRange(0)


@click.command(
    short_help="Train a model on texts, from nothing or from a model.",
    epilog="Example: minigpt train tales/*.txt --out my-tales --minutes 60",
)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="The new run.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Go on with the run in this folder. Beside it only --steps, --minutes, --patience and "
    "--threads can be given.",
)
@click.option(
    "-m",
    "--model",
    "source",
    type=Text(),
    shell_complete=complete_source,
    metavar="SOURCE",
    help="Begin with this model: a folder, a GGUF file, or a hub id. Default: with random weights.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    help="The shape of a new model, and how it is trained: 111M to 13B are Cerebras-GPT's. "
    "Default: small.",
)
@click.option("--n-layer", type=_COUNT, help="Layers. Default: the preset's.")
@click.option("--n-embd", type=_COUNT, help="Width. Default: the preset's.")
@click.option("--n-head", type=_COUNT, help="Heads of attention. Default: the preset's.")
@click.option(
    "--context",
    type=_COUNT,
    help="Tokens of a sequence. Default: the preset's; with -m 256, or the model's if shorter.",
)
@click.option(
    "--tokenizer",
    type=Text(),
    shell_complete=complete_source,
    metavar="SOURCE",
    help="The folder of a model or of `minigpt train-tokenizer`, or a hub id. Default: that of "
    "the -m model, else of the model in the box, which knows 4096 pieces of English.",
)
@click.option(
    "--held-out",
    multiple=True,
    metavar="TEXT",
    help="A text to judge the model by, which it does not learn from; may be repeated.  "
    "Default: the last hundredth of the texts, if they are not too short.",
)
@click.option(
    "--batch-size",
    type=_COUNT,
    help="Sequences of an update. Default: the preset's; with -m 16.",
)
@click.option(
    "--lr", type=_ABOVE_0, help="The highest learning rate. Default: the preset's; with -m 5e-5."
)
@click.option("--min-lr", type=_FROM_0, help="The last learning rate. Default: a tenth of --lr.")
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    help="Updates in which the learning rate rises. Default: the preset's tokens, but at most a "
    "fifth of all updates.",
)
@click.option(
    "--decay",
    type=click.Choice(["cosine", "linear"]),
    help="How the learning rate falls then. Default: the preset's; with -m cosine.",
)
@click.option("--weight-decay", type=_FROM_0, help="Of the matrices. Default: 0.1.")
@click.option("--beta-1", type=_SHARE, help="Of AdamW. Default: 0.9.")
@click.option("--beta-2", type=_SHARE, help="Of AdamW. Default: 0.95.")
@click.option("--clip", type=_FROM_0, help="The largest norm of a gradient; 0: any. Default: 1.")
@click.option(
    "--steps",
    type=_COUNT,
    help="Updates in all. Default: 20 tokens for each parameter, but each text at most 16 times; "
    "with -m once.",
)
@click.option("--epochs", type=_ABOVE_0, help="The same, in times that each text is read.")
@click.option(
    "--minutes",
    type=_ABOVE_0,
    help="Stop after this time; --resume goes on. Without --steps and --epochs a new run is "
    "planned to end by then.",
)
@click.option(
    "--patience",
    type=_COUNT,
    help="Stop when so many evaluations, one after the other, were no better than the best.",
)
@click.option(
    "--eval-every",
    type=_COUNT,
    help="Updates from one evaluation on the held-out text to the next. Default: a 50th of all.",
)
@click.option(
    "--save-every",
    type=_COUNT,
    help="Updates from one checkpoint to the next; the best model is saved in any case.  "
    "Default: as --eval-every.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Of the random weights and of the order of the texts. Default: 0.",
)
@click.option(
    "--dtype",
    type=click.Choice(["f32", "bf16"]),
    help="What matrices are multiplied in; weights are f32 in any case.  "
    "Default: bf16 where the processor multiplies that, else f32.",
)
@click.option(
    "--recompute", is_flag=True, default=None, help="Take less memory and a third more time."
)
@threads_option
@verbose_option
def train(
    texts: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    minutes: float | None,
    patience: int | None,
    threads: int | None,
    verbose: bool,
    **chosen: Any,
) -> None:
    """Trains a model on each TEXT, and writes it into a new FOLDER, which every command takes.

    A TEXT is a file in UTF-8, or ends in .jsonl and holds an object with a "text" in each line;
    - is standard input.

    The folder holds the model that did best on the held-out text, in metrics.jsonl and loss.svg
    how it went, and a checkpoint: whatever ends the training, Ctrl-C too, --resume goes on as if
    nothing had happened.
    """
    given = {name: value for name, value in chosen.items() if value not in (None, ())}
    _check_usage(texts, out, resume, given)

    from ..training.train import Limits

    if resume:
        folder, steps = resume, given.get("steps")
    else:
        assert out
        _begin(out, texts, given, minutes, threads)
        folder, steps = out, None
    _go_on(folder, Limits(steps, minutes, patience), threads, verbose)


def _check_usage(
    texts: tuple[str, ...], out: Path | None, resume: Path | None, given: dict[str, Any]
) -> None:
    """Raises UsageError where the options do not go together."""
    names = {name: _option(name) for name in given}
    if bool(out) == bool(resume):
        raise _usage("Give one of '--out', the folder of a new run, and '--resume'.")
    if resume:
        others = ["TEXT"] * bool(texts) + [names[name] for name in given if name != "steps"]
        if others:
            raise _usage(f"'{others[0]}' cannot be given with '--resume': the run has its own.")
        return
    if not texts:
        raise _usage("Missing argument 'TEXT...': name the files to learn from.")
    if "source" in given:
        others = [names[name] for name in ("preset", *_SHAPE) if name in given]
        if others:
            raise _usage(f"'{others[0]}' cannot be given with '--model', which has its shape.")
    if "steps" in given and "epochs" in given:
        raise _usage("Give '--steps' or '--epochs', not both.")


def _option(name: str) -> str:
    return "--model" if name == "source" else f"--{name.replace('_', '-')}"


def _usage(message: str) -> click.UsageError:
    return click.UsageError(message, click.get_current_context())


def _begin(
    out: Path,
    texts: tuple[str, ...],
    given: dict[str, Any],
    minutes: float | None,
    threads: int | None,
) -> None:
    """Makes the folder of a new run."""
    from .. import GPTTokenizer
    from ..texts import documents
    from ..training.create import check_new, create_run

    source, held_out = given.pop("source", None), given.pop("held_out", None)
    # before a model is loaded: a name that is wrong is found at once
    check_new(out)
    learned = documents(texts)
    judged = documents(held_out) if held_out else None
    tokenizer = GPTTokenizer.from_pretrained(given.pop("tokenizer", source or BUNDLED_MODEL))
    given.setdefault("dtype", _best_dtype())
    if source:
        config, tensors, settings = _of_model(source, given)
    else:
        config, tensors, settings = _of_preset(tokenizer, given)

    if minutes and not {"steps", "epochs"} & given.keys():
        from ..training.throughput import steps_in

        show_line(f"{out}   timing")
        most = steps_in(minutes, config, tensors, settings, threads)
        settings = replace(settings, most_steps=most)

    def progress(text_bytes: int, tokens: int) -> None:
        show_line(f"{out}   reading   {text_bytes / 1e6:.1f} MB   {tokens:,} tokens")

    create_run(
        out,
        learned,
        judged,
        tokenizer,
        config,
        tensors,
        settings,
        progress,
    )


def _best_dtype() -> str:
    from ..kernels.simd import BF16_PRODUCTS

    return "bf16" if BF16_PRODUCTS else "f32"


def _of_model(source: str, given: dict[str, Any]) -> tuple[Any, ...]:
    """(config, tensors, settings) of a run that begins with a model."""
    from ..training.initial import model_tensors
    from ..training.presets import FINE_TUNING

    config, tensors = model_tensors(source)
    context = min(FINE_TUNING.context, config.n_positions)
    return config, tensors, replace(FINE_TUNING, **{"context": context, **_lengths(given)})


def _of_preset(tokenizer: Any, given: dict[str, Any]) -> tuple[Any, ...]:
    """(config, tensors, settings) of a run that begins with a new model."""
    from ..training.initial import random_tensors
    from ..training.presets import PRESETS, new_config

    preset = PRESETS[given.pop("preset", "small")]
    shape = {name: given.pop(name, getattr(preset, name)) for name in _SHAPE}
    settings = replace(preset.settings, **given)
    config = new_config(
        **shape,
        context=settings.context,
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
    )
    return config, random_tensors(config, settings.seed), settings


def _lengths(given: dict[str, Any]) -> dict[str, Any]:
    """The options, which with --steps replace the epochs that would be the default."""
    return {"epochs": None, **given} if "steps" in given else given


def _go_on(folder: Path, limits: Any, threads: int | None, verbose: bool) -> None:
    """Trains, and says how it goes."""
    from ..training.train import train as go_on

    show_line(f"{folder}   preparing")
    interrupted = _interrupts()
    state = go_on(folder, limits, threads, _shower(verbose), interrupted)
    show_line("")
    best = "" if state.best is None else f", the best after {state.best_step}: {state.best:.4f}"
    note(f"{folder}: {state.step} updates{best}", verbose)
    if interrupted():
        note(f"interrupted; `minigpt train --resume {folder}` goes on", verbose)
        raise KeyboardInterrupt


def _interrupts() -> Callable[[], bool]:
    """Whether Ctrl-C was pressed since, or the process told to end, as a machine that shuts down
    does; told so once more it ends where it stands."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        if asked:
            os._exit(130)
        asked = True

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)
    return lambda: asked


def _shower(verbose: bool) -> Callable[[Report], None]:
    """Shows a report in a line that goes, and now and then in one that stays."""
    short_repr = 0.0

    def show(report: Report) -> None:
        nonlocal short_repr
        if report.milestone:
            show_line("")
            note(_line(report), verbose)
        elif perf_counter() - short_repr > 0.1:  # no eye reads faster
            short_repr = perf_counter()
            show_line(_line(report))

    return show


def _line(report: Report) -> str:
    """step 120 of 4000   loss 3.2100   held out 3.4000   8123 tokens/s   12:05 left"""
    parts = [f"step {report.step} of {report.steps}", f"loss {report.loss:.4f}"]
    if report.held_out is not None:
        parts.append(f"held out {report.held_out:.4f}")
    elif report.best is not None:
        parts.append(f"best held out {report.best:.4f}")
    parts += [f"{report.tokens_per_s:.0f} tokens/s", f"{clock(report.seconds_left)} left"]
    return "   ".join(parts)
