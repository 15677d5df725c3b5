"""Task files: questions for a model, with the right answers, as JSON lines of one of three forms.

    {"text": "…"}                                    a document, scored by perplexity
    {"context": "…", "continuation": "…"}            a passage and its last word (LAMBADA)
    {"query": "…", "choices": ["…", "…"], "gold": 1} a question, its answers, and the index of the
                                                     right one, counted from 0 (PIQA, ARC)

Other fields are ignored. White space around a text is stripped, except in documents. The model
reads the context, a space and the continuation; or the query, a space and a choice. A query that
begins with `Question:` is followed by a new line with `Answer:` unless it already ends in one, as
the lm-evaluation-harness asks PIQA and ARC.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ..arguments import checked_file_name, is_integer
from ..errors import InputError, short_repr
from ..texts import checked_text, json_objects


class Document(NamedTuple):
    """A text to score.

    where  its file and line, for messages
    text   unchanged
    """

    where: str
    text: str


class LastWord(NamedTuple):
    """A passage without its last word, and that word.

    where    its file and line, for messages
    context  the passage
    word     the text that follows it after a space
    """

    where: str
    context: str
    word: str


class Choice(NamedTuple):
    """A multiple-choice question.

    where    its file and line, for messages
    context  the question
    choices  the answers, each of which may follow the question after a space
    gold     the index of the right one
    """

    where: str
    context: str
    choices: tuple[str, ...]
    gold: int


TaskLines = list[Document] | list[LastWord] | list[Choice]


def read_task_file(file: str | os.PathLike[str]) -> TaskLines:
    """The lines of a task file, at least one, all of one form.

    Raises InputError, naming file and line, for a file that cannot be read, a line of no known form
    or of another form than the first, and a file without lines.
    """
    file = checked_file_name("file", file)
    lines: list[Any] = []
    fields: tuple[str, ...] = ()
    for where, value in json_objects(file):
        fields = fields or _fields_of_form(value, where)
        missing = [field for field in fields if field not in value]
        if missing:
            raise InputError(
                f'{where}: has no "{missing[0]}"; all lines must be of the first one\'s form, '
                f"with {_quoted(fields)}"
            )
        lines.append(_FORMS[fields](value, where))
    if not lines:
        raise InputError(f"{file}: holds no lines; must hold at least one JSON object")
    return lines


def _fields_of_form(value: dict[str, Any], where: str) -> tuple[str, ...]:
    """The fields of the first form that an object has all fields of."""
    for fields in _FORMS:
        if all(field in value for field in fields):
            return fields
    forms = "; or ".join(map(_quoted, _FORMS))
    raise InputError(f"{where}: is of no known form; must have {forms}")


def _quoted(fields: tuple[str, ...]) -> str:
    return ", ".join(f'"{field}"' for field in fields)


def _document(value: dict[str, Any], where: str) -> Document:
    return Document(where, checked_text(value["text"], '"text"', where))


def _last_word(value: dict[str, Any], where: str) -> LastWord:
    context = _stripped(value["context"], '"context"', where)
    return LastWord(where, context, _stripped(value["continuation"], '"continuation"', where))


def _choice(value: dict[str, Any], where: str) -> Choice:
    query = _stripped(value["query"], '"query"', where)
    choices, gold = value["choices"], value["gold"]
    if not (isinstance(choices, list) and len(choices) >= 2):
        raise InputError(f'{where}: must have "choices" that are a list of two texts or more')
    if not (is_integer(gold) and 0 <= gold < len(choices)):
        raise InputError(
            f'{where}: its "gold" is {short_repr(gold)}; must be the number of a choice, '
            f"from 0 to {len(choices) - 1}"
        )
    answers = tuple(_stripped(choice, f"choice {n}", where) for n, choice in enumerate(choices))
    if query.startswith("Question:") and not query.endswith("Answer:"):
        query += "\nAnswer:"
    return Choice(where, query, answers, int(gold))


def _stripped(value: Any, field: str, where: str) -> str:
    """The text of a field without the white space around it; raises InputError if none is left."""
    text = checked_text(value, field, where).strip()
    if not text:
        raise InputError(f"{where}: its {field} is empty; must have at least one word")
    return text


# The fields of each form → the reader of a line. The first form that fits an object is taken.
_FORMS: dict[tuple[str, ...], Callable[[dict[str, Any], str], Document | LastWord | Choice]] = {
    ("context", "continuation"): _last_word,
    ("query", "choices", "gold"): _choice,
    ("text",): _document,
}
