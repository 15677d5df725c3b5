"""Text to token ids and back: byte-level BPE, in Python and compiled.

tokenizer.py     GPTTokenizer: encode and decode
bpe.py           the algorithm, in Python; compiled.py: the same by kernels/bpe/, for long texts
added_tokens.py  tokens that are found in a text as a whole
vocabulary.py    tokens, merges and added tokens; files.py: their files
parsing.py       the files, parsed and checked, with tokenizer_json.py, special_tokens.py,
                 token_ids.py and json_fields.py
training.py      a vocabulary learned from texts
disk_cache.py    parsed vocabularies, stored for the next process

`from minigpt.tokenizer import GPTTokenizer` imports the class when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tokenizer import GPTTokenizer, StreamDecoder

__all__ = ["GPTTokenizer", "StreamDecoder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import tokenizer

    return getattr(tokenizer, name)
