"""Tokens and their ids, collected from the files of a tokenizer and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from ..errors import TokenizerError


class TokenIds:
    """The tokens that were read so far, each with an id of its own.

    of      {token: id}
    tokens  {id: token}
    """

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self.tokens: dict[int, str] = {}

    def add(self, ids: Mapping[str, Any], where: Path) -> None:
        """Add tokens; `ids` is {token: id}, as a file `where` has it.

        Raises TokenizerError for an empty token, for an id that is not an integer from 0 on or that
        another token has, and for a token that has another id.
        """
        for token, token_id in ids.items():
            if not token:
                raise TokenizerError(f"{where}: token '' must be a text, not empty")
            if type(token_id) is not int or token_id < 0:
                raise TokenizerError(
                    f"{where}: token {brief(token)} has the id {brief(token_id)}: "
                    "it must be an integer from 0 on"
                )
            if self.of.setdefault(token, token_id) != token_id:
                raise TokenizerError(
                    f"{where}: token {brief(token)} has the id {brief(token_id)}, "
                    f"but elsewhere {self.of[token]}"
                )
            if self.tokens.setdefault(token_id, token) != token:
                raise TokenizerError(
                    f"{where}: token {brief(token)} has the id {brief(token_id)}, which is that of "
                    f"{brief(self.tokens[token_id])}: each token must have its own"
                )

    def add_next(self, token: str) -> None:
        """Give `token` the id after the last; all ids must have been checked by `check`."""
        self.of[token] = len(self.tokens)
        self.tokens[self.of[token]] = token

    def check(self, where: Path) -> None:
        """Raises TokenizerError unless the ids are 0 to n - 1, n ≥ 1."""
        count, last = len(self.tokens), max(self.tokens, default=None)
        if last is None:
            raise TokenizerError(f"{where}: holds no tokens")
        if last != count - 1:
            raise TokenizerError(
                f"{where}: token {brief(self.tokens[last])} has the id {brief(last)}: "
                f"the ids of {count} tokens must be 0 to {count - 1}"
            )

    def in_order(self, where: Path) -> list[str]:
        """The tokens by id; raises TokenizerError for one that is no text of characters."""
        tokens = [self.tokens[token_id] for token_id in range(len(self.tokens))]
        try:
            "".join(tokens).encode("utf-8")
        except UnicodeEncodeError as error:
            surrogate = error.object[error.start]
            token = next(token for token in tokens if surrogate in token)
            raise TokenizerError(
                f"{where}: token {token[:40]!a} holds a lone surrogate, which is no character"
            ) from None
        return tokens
