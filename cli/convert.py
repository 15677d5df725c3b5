"""`minigpt convert`: writes any model source as a folder of another dtype, or as a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .terminal import (
    NewPath,
    Text,
    chosen_tokenizer,
    complete_source,
    note,
    progress_line,
    show_line,
    special_option,
    threads_option,
    tokenizer_option,
)

if TYPE_CHECKING:
    from .. import GPTTokenizer
    from ..conversion.convert import Progress
    from ..source import ModelSource

# Copies from conversion/, whose import would slow down --help; the first of each is the default.
DTYPES = {"folder": ("int8", "int4", "bf16", "f32"), "gguf": ("f16", "q8_0", "f32")}


@click.command(
    short_help="Write a model as a folder of another dtype, or as a GGUF file.",
    epilog="Example: minigpt convert cerebras/Cerebras-GPT-13B gpt-13b-int4 --dtype int4",
)
@click.argument("source", type=Text(), shell_complete=complete_source)
@click.argument("target", metavar="FOLDER", type=NewPath())
@click.option(
    "--to",
    type=click.Choice(list(DTYPES)),
    default="folder",
    help="Format: a folder, or a single file for llama.cpp and minigpt.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(dict.fromkeys(sum(DTYPES.values(), ())))),
    help="Data type of the weights. In a folder: int8 (the default, 8.25 bits per weight), int4 "
    "(4.5 bits; wte and the head in int8; less exact), bf16 or f32. In a GGUF file: f16 (the "
    "default), q8_0 or f32.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="TEXT",
    help="For int4: a text of the kind that the model will meet, or a .jsonl, .ndjson or .json "
    'file of objects with a "text"; the weights that matter most for it lose least.',
)
@special_option
@tokenizer_option
@threads_option
def convert(
    source: str,
    target: Path,
    to: str,
    dtype: str | None,
    calibrate: Path | None,
    special: bool,
    tokenizer: str | None,
    threads: int | None,
) -> None:
    """Write the model of SOURCE, a folder, a GGUF file or a hub id, to the new FOLDER.

    Memory holds one tensor at a time. The folder appears once it is complete; an interrupted
    conversion leaves none. Folders of int8 and int4 are for minigpt alone, which maps them into
    memory; those of f32 and bf16 are in Hugging Face layout. A SOURCE of int8 or int4, such as the
    bundled model, is dequantized first.
    """
    dtype = dtype or DTYPES[to][0]
    if dtype not in DTYPES[to]:
        raise click.UsageError(
            f"Invalid value for '--dtype': a {to} is of {', '.join(DTYPES[to])}, not {dtype}",
            click.get_current_context(),
        )
    if calibrate and dtype != "int4":
        raise click.UsageError(
            f"Invalid value for '--calibrate': it is for int4, not {dtype}",
            click.get_current_context(),
        )
    if special and not calibrate:
        raise click.UsageError(
            "Invalid value for '--special': it is for the text of '--calibrate'",
            click.get_current_context(),
        )
    if threads and to == "gguf":
        raise click.UsageError(
            "Invalid value for '--threads': it is for a folder; one thread writes a gguf",
            click.get_current_context(),
        )
    from ..conversion.convert import convert as write_folder
    from ..conversion.gguf_export import save_gguf
    from ..source import open_source

    opened = open_source(source)
    if opened.quantized and opened.quantized != dtype:
        note(f"{source} is {opened.quantized}: {dtype} regains nothing of the original", False)
    chosen = chosen_tokenizer(tokenizer)
    texts = _calibration(calibrate, special, chosen, opened) if calibrate else None
    line = progress_line(str(target), lambda rate: f"{rate / 1e6:.0f} MB/s")

    def show(progress: Progress) -> None:
        line(progress.nbytes, progress.all_nbytes)

    if to == "gguf":
        save_gguf(source, target, dtype, show, tokenizer=chosen)
    else:
        write_folder(
            opened, target, dtype, threads, texts, show, tokenizer=chosen, allow_special=special
        )
    show_line("")


def _calibration(
    file: Path, special: bool, tokenizer: GPTTokenizer | None, source: ModelSource
) -> Iterator[str]:
    """The texts of a file for the model of `source`; a wrong file is an error at once."""
    from .. import GPTTokenizer
    from ..texts import check_files

    check_files([str(file)])
    tokenizer = tokenizer or GPTTokenizer.from_pretrained(source)
    return tokenizer.documents([str(file)], special)
