"""`minigpt train-tokenizer`: train a vocabulary on texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from .terminal import NewPath, files_argument, show_line

# Those of tokenizer/training.py, which is too slow to import for --help.
MIN_VOCAB_SIZE, MAX_VOCAB_SIZE = 257, 0x110000


@click.command(
    "train-tokenizer",
    short_help="Train a vocabulary on texts.",
    epilog="Example: minigpt train-tokenizer books/*.txt --vocab-size 8192 --out vocabulary",
)
@files_argument("sources", "TEXT...", required=True)
@click.option(
    "--vocab-size",
    type=click.IntRange(MIN_VOCAB_SIZE, MAX_VOCAB_SIZE),
    required=True,
    help="Number of tokens: the 256 bytes, one for each merge, and <|endoftext|>.",
)
@click.option(
    "--out",
    type=NewPath(),
    required=True,
    metavar="FOLDER",
    help="New folder for the vocabulary.",
)
@click.option(
    "--special",
    is_flag=True,
    help="Cut the texts at each <|endoftext|>, its own token, without a warning.",
)
def train_tokenizer(sources: tuple[str, ...], vocab_size: int, out: Path, special: bool) -> None:
    """Train a byte-level BPE vocabulary of GPT-2's kind on all TEXTs.

    A TEXT is a file of plain text, a .jsonl, .ndjson or .json file of objects with a "text", or -
    for standard input. Their order does not matter. They are cut at each <|endoftext|>.

    FOLDER appears once it is complete. It holds vocab.json and merges.txt, tokenizer.json and
    tokenizer_config.json, for minigpt, transformers and the tokenizers library.
    """
    from ..checkpoint.atomic import creating_folder
    from ..texts import documents
    from ..tokenizer.training import train_tokenizer

    with creating_folder(out) as folder:
        texts = _counted(documents(sources))
        tokenizer = train_tokenizer(texts, vocab_size, _show_merges, special)
        tokenizer.save_pretrained(folder)
    show_line("")


def _counted(texts: Iterable[str]) -> Iterator[str]:
    """Yield `texts`, and show on stderr how many characters have been read."""
    read = 0
    for text in texts:
        yield text
        read, before = read + len(text), read
        if read // 1_000_000 > before // 1_000_000:
            show_line(f"{read // 1_000_000} million characters read")


def _show_merges(done: int, total: int) -> None:
    if done % 100 == 0:
        show_line(f"{done} of {total} merges learned")
