"""Task files: what a model is asked, and what is right. Lines of JSON, all of one form:

    {"text": "…"}                                              a document, to be predicted
    {"context": "…", "continuation": "…"}                      a passage and its last word (LAMBADA)
    {"query": "…", "choices": ["…", "…"], "gold": 1}           a question and answers, of which
                                                               number `gold`, counted from 0, is
                                                               right (PIQA, ARC)

Other fields may stand beside them. White space around a text is dropped, except in documents.
What a model reads is the context, a space, and the continuation; or the query, a space and a
choice, in between a new line with `Answer:` where the query begins with `Question:`, as those of
PIQA and ARC do, and has none yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..arguments import is_integer
from ..errors import InputError, short_repr
from ..texts import checked_text, objects


class Document(NamedTuple):
    """A text to be predicted; `where` names its file and line."""

    where: str
    text: str


class LastWord(NamedTuple):
    """A context, and the word that follows it after a space."""

    where: str
    context: str
    word: str


class Choice(NamedTuple):
    """A context, what may follow it after a space, and which of these is right, from 0."""

    where: str
    context: str
    choices: tuple[str, ...]
    gold: int


Lines = list[Document] | list[LastWord] | list[Choice]


def read_lines(file: str) -> Lines:
    """What a file of JSON lines holds, at least one, and all of one kind.

    Raises InputError, with the file and the line, for what is not as told above.
    """
    lines: list[Any] = []
    fields: tuple[str, ...] = ()
    for where, value in objects(file):
        fields = fields or _fields(value, where)
        missing = [field for field in fields if field not in value]
        if missing:
            raise InputError(
                f'{where}: has no "{missing[0]}"; all lines must be of the first one\'s form, '
                f"with {_named(fields)}"
            )
        lines.append(_FORMS[fields](value, where))
    if not lines:
        raise InputError(f"{file}: holds no lines; must hold at least one JSON object")
    return lines


def _fields(value: dict[str, Any], where: str) -> tuple[str, ...]:
    """Which of the forms an object is of: its fields."""
    for fields in _FORMS:
        if all(field in value for field in fields):
            return fields
    forms = "; or ".join(map(_named, _FORMS))
    raise InputError(f"{where}: is of no known form; must have {forms}")


def _named(fields: tuple[str, ...]) -> str:
    return ", ".join(f'"{field}"' for field in fields)


def _document(value: dict[str, Any], where: str) -> Document:
    return Document(where, checked_text(value["text"], '"text"', where))


def _last_word(value: dict[str, Any], where: str) -> LastWord:
    context = _trimmed(value["context"], '"context"', where)
    return LastWord(where, context, _trimmed(value["continuation"], '"continuation"', where))


def _choice(value: dict[str, Any], where: str) -> Choice:
    query, choices, gold = (
        _trimmed(value["query"], '"query"', where),
        value["choices"],
        value["gold"],
    )
    if not (isinstance(choices, list) and len(choices) >= 2):
        raise InputError(f'{where}: must have "choices" that are a list of two texts or more')
    if not (is_integer(gold) and 0 <= gold < len(choices)):
        raise InputError(
            f'{where}: its "gold" is {short_repr(gold)}; must be the number of a choice, '
            f"from 0 to {len(choices) - 1}"
        )
    answers = tuple(_trimmed(choice, f"choice {n}", where) for n, choice in enumerate(choices))
    asks = query.startswith("Question:") and not query.endswith("Answer:")
    between = "\nAnswer:" if asks else ""
    return Choice(where, query + between, answers, gold)


def _trimmed(value: Any, field: str, where: str) -> str:
    """A text without the white space around it; there must be more than that."""
    text = checked_text(value, field, where).strip()
    if not text:
        raise InputError(f"{where}: its {field} is empty; must have a word at least")
    return text


_FORMS: dict[tuple[str, ...], Callable[[dict[str, Any], str], Any]] = {
    ("context", "continuation"): _last_word,
    ("query", "choices", "gold"): _choice,
    ("text",): _document,
}
