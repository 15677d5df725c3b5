"""What can go wrong. Every message is one line: where, what, and what would be right."""

from __future__ import annotations


class MinigptError(Exception):
    """The parent of every error that a caller can make or meet."""


class SourceError(MinigptError):
    """A model source is absent, unreadable, or holds what we do not run."""


class CheckpointError(SourceError):
    """A file of weights or its index is damaged, or its tensors do not fit the config."""


class ConfigError(SourceError):
    """config.json is damaged, out of range, or asks for another architecture."""


class TokenizerError(SourceError):
    """The vocabulary, merges or tokenizer.json is damaged or of another kind."""


class InputError(MinigptError, ValueError):
    """An argument is wrong: ids, targets, an option out of its range, a prompt too long."""


def short_repr(value: object) -> str:
    """A value as a message may show it: quoted, on one line, not too long, whatever it is."""
    try:
        text = " ".join(line.strip() for line in repr(value).splitlines())
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"<{type(value).__name__} too long to show>"
    return text if len(text) <= 100 else text[:90] + "…" + text[-1]
