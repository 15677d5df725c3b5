"""`minigpt tokenize`: shows the ids of a text, or the text of ids."""

from __future__ import annotations

import json

import click

from ..errors import InputError
from .terminal import Text, end_line, model_option, read_text, write


@click.command(
    short_help="Print the token ids of a text, or the text of ids.",
    epilog='Example: minigpt tokenize "Once upon a time"',
)
@click.argument("text", required=False, type=Text(may_be_empty=True))
@model_option
@click.option("--decode", is_flag=True, help="TEXT holds ids, apart by spaces or commas: decode.")
@click.option(
    "--special",
    is_flag=True,
    help="Read special tokens such as <|endoftext|> as tokens, and show them when decoding.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text and ids.")
def tokenize(text: str | None, source: str, decode: bool, special: bool, as_json: bool) -> None:
    """Prints the token ids of TEXT, or of standard input where TEXT is - or absent."""
    given = read_text(text, "TEXT")

    from .. import GPTTokenizer

    tokenizer = GPTTokenizer.from_pretrained(source)
    if decode:
        ids = _parse_ids(given)
        given = tokenizer.decode(ids, skip_special_tokens=not special)
    else:
        ids = tokenizer.encode(given, allow_special=special)
    if as_json:
        write(json.dumps({"text": given, "ids": ids, "tokens": len(ids)}) + "\n")
    elif decode:
        write(given)
        end_line()
    else:
        write(" ".join(map(str, ids)) + "\n")


def _parse_ids(text: str) -> list[int]:
    """The ids in "1, 2 3" or "[1, 2, 3]"; raises InputError for what is not a number."""
    words = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) <= 18):
            raise InputError(
                f"ids: {word[:40]!r} is not a token id; they are numbers such as 15496"
            )
    return [int(word) for word in words]
