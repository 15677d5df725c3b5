"""The vocabulary of a tokenizer: its tokens, merges and added tokens."""

from __future__ import annotations

from dataclasses import dataclass

from .bpe import Merges

END_OF_TEXT = "<|endoftext|>"
NO_ID = -1


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in the text as a whole, before pre-tokenization.

    content      its text
    id           its id
    special      a control token: matched only on request, and skipped in decoding
    single_word  matched only where no letter, digit or underscore is next to it
    lstrip       includes the white space before it
    rstrip       includes the white space after it
    normalized   searched after the others, in the text between them
    """

    content: str
    id: int
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary. The ids run from 0 to `len(tokens) - 1`, each of one token.

    tokens            id → token: an added one as its text, any other in byte symbols
    byte_ids          byte → id of the token that is this byte, NO_ID where there is none
    merges            see `bpe.Merges`
    added             {content: AddedToken}
    stored_size       number of ids that the files give; those from here on belong to special tokens
                      that they name without an id
    eos_id            id of the end-of-text token, None if there is none
    add_prefix_space  whether a text that begins without a space is encoded as if with one
    files             {name: content} of the files it was read from, to write them back unchanged
    """

    tokens: list[str]
    byte_ids: list[int]
    merges: Merges
    added: dict[str, AddedToken]
    stored_size: int
    eos_id: int | None
    add_prefix_space: bool
    files: dict[str, bytes]
