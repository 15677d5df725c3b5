"""Text to token ids and back: byte-level BPE, in Python and compiled.

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
