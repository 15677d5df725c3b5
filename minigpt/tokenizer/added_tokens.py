"""Added tokens in a text, found in the order of the tokenizers library.

A text is searched from left to right. Of the added tokens that begin leftmost the longest is taken,
and the search goes on behind it. Tokens with `normalized: false` are found first, in the whole
text; the others in each stretch between these.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from .vocabulary import AddedToken

_SPACE = r"\s"
_WORD_CHARACTER = r"\w"  # a letter, a digit, or an underscore


class AddedTokens:
    """The added tokens of a vocabulary, prepared for the search."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        tokens = list(tokens)
        self.any_plain = any(not token.special for token in tokens)
        self._spans_space = any(
            token.lstrip or token.rstrip or re.search(_SPACE, token.content) for token in tokens
        )
        self._passes = [
            _Pass(token for token in tokens if token.normalized is normalized)
            for normalized in (False, True)
        ]

    def may_hold_space(self, allow_special: bool) -> bool:
        """Whether `split` may find a token where there is white space in the text."""
        return self._spans_space and (allow_special or self.any_plain)

    def split(self, text: str, allow_special: bool) -> Iterator[str | AddedToken]:
        """Yield the added tokens in `text` and the stretches of text between them, none empty.

        allow_special  False to leave special tokens in the stretches. Even so, no other token is
                       found where a special one is, as in the tokenizers library with
                       `encode_special_tokens`
        """
        if not (allow_special or self.any_plain):
            return iter([text] if text else [])
        segments: Iterator[str | AddedToken] = iter([text])
        for each in self._passes:
            segments = each.split(segments, allow_special)
        return segments


class _Pass:
    """The tokens of one pass over a text.

    Time and memory do not grow with the product of their number and the text's length: a set holds
    the tokens, and a dict the lengths of those that begin with the same two characters.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = {token.content: token for token in tokens}
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for content in self._tokens:
            lengths[content[:2]].add(len(content))
        self._lengths = {start: sorted(each, reverse=True) for start, each in lengths.items()}
        first = "".join(sorted({content[0] for content in self._tokens}))
        self._first = re.compile(f"[{re.escape(first)}]") if first else None

    def split(
        self, segments: Iterable[str | AddedToken], allow_special: bool
    ) -> Iterator[str | AddedToken]:
        """Yield the segments, each stretch of text split at the tokens in it."""
        for segment in segments:
            if isinstance(segment, str):
                yield from self._split(segment, allow_special)
            else:
                yield segment

    def _split(self, text: str, allow_special: bool) -> Iterator[str | AddedToken]:
        done = 0  # what is before it has been yielded
        for start, token in self._found(text):
            end = start + len(token.content)
            if token.special and not allow_special:
                continue
            if token.single_word and _touches_word(text, start, end):
                continue
            if token.lstrip:
                while start > done and _matches(_SPACE, text, start - 1):
                    start -= 1
            if token.rstrip:
                while _matches(_SPACE, text, end):
                    end += 1
            if token.lstrip and done >= end:
                continue  # white space that the token before has taken
            if done < start:
                yield text[done:start]
            yield token
            done = end
        if done < len(text):
            yield text[done:]

    def _found(self, text: str) -> Iterator[tuple[int, AddedToken]]:
        """Yield (offset, token) of the tokens in `text` that do not overlap."""
        end = 0
        while self._first is not None and (match := self._first.search(text, end)):
            start = match.start()
            token = self._token_at(text, start)
            if token is not None:
                yield start, token
            end = start + (1 if token is None else len(token.content))

    def _token_at(self, text: str, start: int) -> AddedToken | None:
        """The longest token that begins at `text[start]`."""
        for key in (text[start : start + 2], text[start]):
            for length in self._lengths.get(key, ()):
                token = self._tokens.get(text[start : start + length])
                if token is not None:
                    return token
        return None


def _touches_word(text: str, start: int, end: int) -> bool:
    before = start > 0 and _matches(_WORD_CHARACTER, text, start - 1)
    return before or _matches(_WORD_CHARACTER, text, end)


def _matches(pattern: str, text: str, offset: int) -> bool:
    """Whether there is a character `text[offset]`, and it matches by `regex`'s Unicode classes."""
    import regex  # here, as it is slow to load and few vocabularies need it

    return regex.match(pattern, text, pos=offset) is not None
