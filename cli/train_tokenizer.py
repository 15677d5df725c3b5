"""`minigpt train-tokenizer`: learns a vocabulary from texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from .terminal import show_line

# Those of tokenizer_training.py, which is too heavy for --help.
SMALLEST, LARGEST = 257, 0x110000


@click.command(
    "train-tokenizer",
    short_help="Learn a vocabulary from texts.",
    epilog="Example: minigpt train-tokenizer books/*.txt --vocab-size 8192 --out vocabulary",
)
@click.argument("sources", nargs=-1, required=True, metavar="TEXT...")
@click.option(
    "--vocab-size",
    type=click.IntRange(SMALLEST, LARGEST),
    required=True,
    help="Tokens of the vocabulary: the 256 bytes, a token for each merge, <|endoftext|>.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="The new folder to write the vocabulary into.",
)
def train_tokenizer(sources: tuple[str, ...], vocab_size: int, out: Path) -> None:
    """Learns a byte-level BPE vocabulary of GPT-2's kind from each TEXT.

    A TEXT is a file in UTF-8; one named .jsonl holds an object with a "text" on each line; - is
    standard input. Their order does not matter.

    FOLDER appears when all of it is written: vocab.json and merges.txt, tokenizer.json and
    tokenizer_config.json, which minigpt, transformers and the tokenizers library read.
    """
    from ..checkpoint.atomic import creating_folder
    from ..texts import documents
    from ..tokenizer.training import train_tokenizer

    with creating_folder(out) as folder:
        tokenizer = train_tokenizer(_shown(documents(sources)), vocab_size, _show_merges)
        tokenizer.save_pretrained(folder)
    show_line("")


def _shown(texts: Iterable[str]) -> Iterator[str]:
    """`texts` as they come; a line on stderr tells how much has been read."""
    read = 0
    for text in texts:
        yield text
        read, before = read + len(text), read
        if read // 1_000_000 > before // 1_000_000:
            show_line(f"{read // 1_000_000} million characters read")


def _show_merges(done: int, total: int) -> None:
    if done % 100 == 0:
        show_line(f"{done} of {total} merges learned")
