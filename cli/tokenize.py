"""`minigpt tokenize`: print the ids of a text, or the text of ids."""

from __future__ import annotations

import json

import click

from ..errors import InputError
from .terminal import Text, end_line, model_option, read_text, tokenizer_option, write


@click.command(
    short_help="Print the token ids of a text, or the text of ids.",
    epilog='Example: minigpt tokenize "Once upon a time"',
)
@click.argument("text", required=False, type=Text(may_be_empty=True))
@model_option
@tokenizer_option
@click.option("--decode", is_flag=True, help="Decode TEXT, ids separated by spaces or commas.")
@click.option(
    "--special",
    is_flag=True,
    help="Encode special tokens such as <|endoftext|> as such, and print them when decoding.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text and ids.")
def tokenize(
    text: str | None, source: str, tokenizer: str | None, decode: bool, special: bool, as_json: bool
) -> None:
    """Print the token ids of TEXT, or of standard input if TEXT is - or absent."""
    content = read_text(text, "TEXT")

    from .. import GPTTokenizer

    chosen = GPTTokenizer.from_pretrained(tokenizer or source)
    if decode:
        ids = _parse_ids(content, chosen.vocab_size)
        content = chosen.decode(ids, skip_special_tokens=not special)
    else:
        ids = chosen.encode(content, allow_special=special)
    if as_json:
        write(json.dumps({"text": content, "ids": ids, "tokens": len(ids)}) + "\n")
    elif decode:
        write(content)
        end_line()
    else:
        write(" ".join(map(str, ids)) + "\n")


def _parse_ids(text: str, vocab_size: int) -> list[int]:
    """The ids in "1, 2 3" or "[1, 2, 3]"; raises InputError for other texts and other ids."""
    from ..arguments import checked_ids

    numbers = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    for number in numbers:
        if not (number.isascii() and number.isdigit() and len(number) <= 18):
            raise InputError(
                f"ids: {number[:40]!r} is not a token id; they are numbers such as 15496"
            )
    ids: list[int] = checked_ids([int(number) for number in numbers], vocab_size).tolist()
    return ids
