"""Exceptions and warnings, each of one line: where, what is wrong, and what would be right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .kernels import events


class MinigptError(Exception):
    """The base class of every error that a caller can cause or meet.

    The message can be printed on one line: in the names of files, characters that no terminal
    shows, such as a newline or a lone surrogate, are escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class SourceError(MinigptError):
    """A model source is missing, unreadable, or of an unsupported kind."""


class CheckpointError(SourceError):
    """A weight file or its index is damaged, its tensors do not fit the config, or its weights
    give logits that are not finite."""


class ConfigError(SourceError):
    """config.json is damaged, has a value out of range, or describes another architecture."""


class TokenizerError(SourceError):
    """A vocabulary, merges file or tokenizer.json is damaged or of an unsupported kind."""


class InputError(MinigptError, ValueError):
    """An argument is wrong: ids, targets, an option out of its range, a prompt that is too long.

    argument  the name of the argument that is out of its range; None for an error in what a file
              or a text contains. The command line exits with code 2 where it is one of its options
    """

    def __init__(self, message: str, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


class MinigptWarning(UserWarning):
    """The call goes on, but its result may not be what was meant.

    In Python the module `warnings` shows or ignores them; the command line writes each as a line,
    `Warning: …`, to stderr.
    """


_shown_by: ContextVar[Callable[[str], None] | None] = ContextVar("shown_by", default=None)


def warn(message: str) -> None:
    """Issue a MinigptWarning of one line, or pass the line to the function that shows them here."""
    line, show = printable(message), _shown_by.get()
    if show is None:
        warnings.warn(line, MinigptWarning, stacklevel=3)
    else:
        show(line)


events.on_unsaved = warn


@contextmanager
def warnings_shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Pass warnings of this thread to `show` in this block, whatever the module's filters are."""
    token = _shown_by.set(show)
    try:
        yield
    finally:
        _shown_by.reset(token)


def printable(text: str) -> str:
    """`text` with escapes in place of the characters that cannot be printed."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short_repr(value: object) -> str:
    """The repr of any value on one line of at most 100 characters, for messages."""
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"<{type(value).__name__} too long to print>"
    return text if len(text) <= 100 else text[:90] + "…" + text[-1]
