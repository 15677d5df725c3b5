"""`minigpt convert`: any model source to a folder of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .terminal import LARGEST_INPUT, Text, complete_source, threads_option

DTYPES = ("f32", "bf16", "int8", "int4")  # those of convert.py, which is too heavy for --help


@click.command(
    short_help="Write a model as a folder of another dtype.",
    epilog="Example: minigpt convert cerebras/Cerebras-GPT-13B gpt-13b-int4 --dtype int4",
)
@click.argument("source", type=Text(), shell_complete=complete_source)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="int8",
    help="How the weights are held: int8 in 8.25 bits each, int4 in 4.5, with little loss for the "
    "first and more for the second; bf16 in 16; f32 in 32, exactly.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="TEXT",
    help="For int4: a file of text like what the model will meet; errors are kept away from the "
    "weights that it uses most.",
)
@threads_option
def convert(
    source: str, folder: Path, dtype: str, calibrate: Path | None, threads: int | None
) -> None:
    """Writes the model of SOURCE, a folder, a GGUF file or a hub id, as the new FOLDER.

    One tensor at a time is in memory. The folder appears when all of it is written; whatever
    interrupts that leaves none. A folder of int8 or int4 is for minigpt alone and starts at once;
    one of f32 or bf16 is in Hugging Face layout.
    """
    from ..convert import Progress
    from ..convert import convert as convert_model

    with click.progressbar(
        length=1, file=sys.stderr, hidden=not sys.stderr.isatty(), show_eta=True
    ) as bar:

        def show(progress: Progress) -> None:
            bar.length = progress.all_nbytes
            bar.label = (
                f"{progress.tensors}/{progress.all_tensors} tensors, "
                f"{progress.nbytes / 1e9:.2f}/{progress.all_nbytes / 1e9:.2f} GB"
            )
            bar.update(progress.nbytes - bar.pos)

        text = None if calibrate is None else _text(calibrate)
        convert_model(source, folder, dtype, threads, text, show)


def _text(path: Path) -> str:
    """A file of text; raises SourceError."""
    from ..checkpoint.files import read_small_file
    from ..errors import SourceError

    data = read_small_file(path, LARGEST_INPUT, SourceError)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text, at byte {error.start}") from None
