"""Task files: questions for a model, with the right answers, as JSON lines.

    {"context": "…", "continuation": "…"}            a passage and its last word
    {"query": "…", "choices": ["…", "…"], "gold": 1} a question, its answers, and the index of the
                                                     right one, counted from 0
    {"text": "…"}                                    a document, scored by perplexity

White space around the texts of the first two forms is stripped. A query that begins with
`Question:` is followed by a new line with `Answer:` unless it already ends in one. The other forms
are those in which authors and the Hugging Face hub publish their tasks, read as the
lm-evaluation-harness reads them: `_FORMS` at the end lists them. Other fields are ignored.

The model reads a context, a space and a continuation. Where a context is empty it reads the
continuation alone.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ..arguments import checked_file_name, is_integer
from ..errors import InputError, short_repr, warn
from ..texts import checked_text, json_objects, read_text

_MAX_LABELS_BYTES = 16 << 20  # of a file of labels


class Document(NamedTuple):
    """A text to score.

    where     its file and line, for messages
    text      as it is scored
    original  the text before a task's preprocessing, where it has one: the lm-evaluation-harness
              counts bytes and words of this one
    """

    where: str
    text: str
    original: str | None = None


class LastWord(NamedTuple):
    """A passage without its last word, and that word.

    where     its file and line, for messages
    context   the passage, which may be empty
    word      the text that follows it after a space
    examples  solved passages before this one, see `with_examples`
    """

    where: str
    context: str
    word: str
    examples: tuple[str, ...] = ()

    def pairs(self) -> list[tuple[str, str]]:
        """The one context and its continuation."""
        return [(_preceded(self.context, self.examples), self.word)]

    def solved(self) -> str:
        """The passage with its last word."""
        return _joined(self.context, self.word)


class Choice(NamedTuple):
    """A multiple-choice question.

    where     its file and line, for messages
    context   the question, which may be empty
    choices   the answers, each of which may follow the question after a space
    gold      the index of the right one
    examples  solved questions before this one, see `with_examples`
    """

    where: str
    context: str
    choices: tuple[str, ...]
    gold: int
    examples: tuple[str, ...] = ()

    def pairs(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        context = _preceded(self.context, self.examples)
        return [(context, choice) for choice in self.choices]

    def solved(self) -> str:
        """The question with its right answer."""
        return _joined(self.context, self.choices[self.gold])


class ContextChoice(NamedTuple):
    """A question whose choices are contexts: the probability of one continuation decides.

    WinoGrande's partial evaluation (Trinh and Le, 2018).

    where         its file and line, for messages
    contexts      the beginnings of the sentence, one for each choice
    continuation  the rest of the sentence, which follows each after a space
    gold          the index of the right context
    examples      solved questions before this one, see `with_examples`
    """

    where: str
    contexts: tuple[str, ...]
    continuation: str
    gold: int
    examples: tuple[str, ...] = ()

    def pairs(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        return [(_preceded(each, self.examples), self.continuation) for each in self.contexts]

    def solved(self) -> str:
        """The right sentence."""
        return _joined(self.contexts[self.gold], self.continuation)


Question: TypeAlias = LastWord | Choice | ContextChoice
TaskLines: TypeAlias = list[Document] | list[LastWord] | list[Choice] | list[ContextChoice]


def _joined(context: str, continuation: str) -> str:
    return f"{context} {continuation}" if context else continuation


def _preceded(context: str, examples: Sequence[str]) -> str:
    """A context after examples, with an empty line between them as in the harness."""
    return "".join(f"{example}\n\n" for example in examples) + context


def read_task_file(file: str | os.PathLike[str], last_word: bool | None = None) -> TaskLines:
    """The lines of a task file, at least one, all of one form.

    last_word  True to take the last word of each {"text": "…"} as a continuation (LAMBADA as it is
               published), False to take the texts as documents. Default: True for a file with
               "lambada" in its name

    Raises InputError, naming file and line, for a file that cannot be read, a line of no known form
    or of another form than the first, and a file without lines.
    """
    file = checked_file_name("file", file)
    lines = read_lines(file, last_word)
    if not lines:
        raise InputError(f"{file}: holds no lines; must hold at least one JSON object")
    return lines


def read_lines(file: str, last_word: bool | None) -> TaskLines:
    """`read_task_file` of a checked name; [] for a file without lines."""
    lines: list[Any] = []
    form: _Form | None = None
    labels: list[str] = []
    for where, value in json_objects(file):
        if form is None:
            form = _form_of(value, where)
            if form is _PIQA and "label" not in value:
                labels = _read_labels(file, where)
        if labels:
            value = {**value, "label": labels[len(lines)] if len(lines) < len(labels) else None}
        missing = [field for field in form.fields if field not in value]
        if missing:
            raise InputError(
                f'{where}: has no "{missing[0]}"; all lines must be of the first one\'s form, '
                f"with {_quoted(form.fields)}"
            )
        lines.append(form.read(value, where))
    if form is not _DOCUMENT:
        return lines
    if last_word is None and (last_word := _is_lambada(file)):
        warn(f"{file}: read as LAMBADA: the last word of each text is to be predicted")
    return [_last_word_of(document) for document in lines] if last_word else lines


def _is_lambada(file: str) -> bool:
    """Whether the name of a file says that it holds LAMBADA's passages."""
    return "lambada" in Path(file).name.lower()


def with_examples(
    questions: Sequence[Question],
    pool: Sequence[Question],
    shots: int,
    seed: int,
    same_file: bool,
) -> list[Question]:
    """The questions, each with `shots` solved ones of `pool` before it.

    same_file  whether the pool holds the questions; each is then left out of its own examples

    Examples are drawn as the lm-evaluation-harness draws them: without replacement for each
    question, by one generator of random numbers, in the order of the questions.
    """
    if len(pool) < shots + same_file:
        raise InputError(
            f"shots {shots}: there are {len(pool)} examples; must be at most "
            f"{len(pool) - same_file}",
            "shots",
        )
    contents = [each._replace(where="") for each in pool]
    rng = random.Random(seed)
    result: list[Question] = []
    for question in questions:
        if same_file:
            own = question._replace(where="")
            drawn = [each for each in rng.sample(contents, shots + 1) if each != own][:shots]
            if len(drawn) < shots:  # copies of the question were drawn
                others = [each for each in contents if each != own]
                if len(others) < shots:
                    raise InputError(f"{question.where}: has only {len(others)} other examples")
                drawn = rng.sample(others, shots)
        else:
            drawn = rng.sample(contents, shots)
        result.append(question._replace(examples=tuple(each.solved() for each in drawn)))
    return result


# ---- the forms ----


def _last_word(value: dict[str, Any], where: str) -> LastWord:
    context = checked_text(value["context"], '"context"', where).strip()
    return LastWord(where, context, _stripped(value["continuation"], '"continuation"', where))


def _choice(value: dict[str, Any], where: str) -> Choice:
    query = checked_text(value["query"], '"query"', where).strip()
    choices = _list_of_texts(value["choices"], '"choices"', where)
    answers = tuple(_stripped(choice, f"choice {n}", where) for n, choice in enumerate(choices))
    gold = value["gold"]
    if not (is_integer(gold) and 0 <= gold < len(choices)):
        raise _wrong_gold(
            "gold", gold, f"the number of a choice, from 0 to {len(choices) - 1}", where
        )
    if query.startswith("Question:") and not query.endswith("Answer:"):
        query += "\nAnswer:"
    return Choice(where, query, answers, int(gold))


def _winogrande(value: dict[str, Any], where: str) -> ContextChoice:
    """The sentence up to `_` with each option in its place; the rest is the continuation."""
    sentence = checked_text(value["sentence"], '"sentence"', where)
    before, blank, after = sentence.partition("_")
    if not blank or not after.strip():
        raise InputError(f'{where}: its "sentence" must have text after a blank, "_"')
    options = [_some_text(value[name], f'"{name}"', where) for name in ("option1", "option2")]
    answer = str(value["answer"])
    if answer not in ("1", "2"):
        raise _wrong_gold("answer", value["answer"], '"1" or "2"', where)
    contexts = tuple(before + option for option in options)
    return ContextChoice(where, contexts, after.strip(), int(answer) - 1)


def _hellaswag(value: dict[str, Any], where: str) -> Choice:
    """The harness's preprocessing: marks of WikiHow's articles are taken out."""
    beginning, end, label = (
        checked_text(value[name], f'"{name}"', where)
        for name in ("ctx_a", "ctx_b", "activity_label")
    )
    query = _without_marks(f"{label}: {beginning} {end.capitalize()}")
    endings = _list_of_texts(value["endings"], '"endings"', where)
    choices = tuple(
        _some_text(_without_marks(checked_text(ending, f"ending {n}", where)), f"ending {n}", where)
        for n, ending in enumerate(endings)
    )
    return Choice(where, query, choices, _index("label", value["label"], len(choices), where))


def _without_marks(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _piqa(value: dict[str, Any], where: str) -> Choice:
    goal = checked_text(value["goal"], '"goal"', where)
    choices = tuple(_some_text(value[name], f'"{name}"', where) for name in ("sol1", "sol2"))
    gold = _index("label", value["label"], len(choices), where)
    return Choice(where, f"Question: {goal}\nAnswer:", choices, gold)


def _arc(value: dict[str, Any], where: str) -> Choice:
    """ARC and OpenBookQA: the authors' files, where the question is an object, and the hub's.

    The authors of both use one form. OpenBookQA's ids are two numbers, such as 7-980, and ARC's
    begin with the name of an exam; the harness writes `Question:` and `Answer:` around ARC's alone.
    """
    question: Any = value["question"]
    choices: Any = value.get("choices")
    is_arc = True
    if isinstance(question, dict):
        is_arc = re.fullmatch(r"[0-9]+-[0-9]+", str(value.get("id"))) is None
        question, choices = question.get("stem"), question.get("choices")
    stem = checked_text(question, '"question"', where)
    context = f"Question: {stem}\nAnswer:" if is_arc else stem
    return _lettered(context, choices, value["answerKey"], where)


def _openbookqa(value: dict[str, Any], where: str) -> Choice:
    stem = checked_text(value["question_stem"], '"question_stem"', where)
    return _lettered(stem, value["choices"], value["answerKey"], where)


def _lettered(context: str, choices: Any, key: Any, where: str) -> Choice:
    """A question with choices [{"text": …, "label": …}, …] or {"text": […], "label": […]}."""
    if isinstance(choices, dict):
        texts, labels = choices.get("text"), choices.get("label")
    elif isinstance(choices, list) and all(isinstance(each, dict) for each in choices):
        texts, labels = ([each.get(name) for each in choices] for name in ("text", "label"))
    else:
        texts = labels = None
    answers = tuple(
        _some_text(text, f"choice {n}", where)
        for n, text in enumerate(_list_of_texts(texts, '"choices"', where))
    )
    if not (isinstance(labels, list) and len(labels) == len(answers)):
        raise InputError(f'{where}: must have as many labels as texts in its "choices"')
    key = str(key).strip()
    if key not in labels:
        raise _wrong_gold("answerKey", key, "one of " + ", ".join(map(str, labels)), where)
    return Choice(where, context, answers, labels.index(key))


def _blimp(value: dict[str, Any], where: str) -> Choice:
    names = ("sentence_good", "sentence_bad")
    return Choice(where, "", tuple(_some_text(value[n], f'"{n}"', where) for n in names), 0)


def _document(value: dict[str, Any], where: str) -> Document:
    return Document(where, checked_text(value["text"], '"text"', where))


def _last_word_of(document: Document) -> LastWord:
    """A text without its last word, and that word: what follows the last space."""
    context, _, word = document.text.strip().rpartition(" ")
    return LastWord(document.where, context.strip(), _stripped(word, '"text"', document.where))


def _wikitext(value: dict[str, Any], where: str) -> Document:
    page = checked_text(value["page"], '"page"', where)
    return Document(where, _detokenized(page), page)


# WikiText is published with spaces between its words and marks. These are the replacements by which
# the harness makes a text of it, in its order.
_REPLACEMENTS: tuple[tuple[str, str], ...] = (
    (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), (" : ", ": "), (" ; ", "; "),
    (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
)  # fmt: skip
_INSIDE = ((r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"), ('"', '"'), ("'", "'"))
_MORE_REPLACEMENTS: tuple[tuple[str, str], ...] = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \u00b0 ", "\u00b0"), (" \n", "\n"),
    ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip


def _detokenized(page: str) -> str:
    page = page.replace("s '", "s'")
    page = re.sub("/' [0-9]/", "/'[0-9]/", page)  # the harness's slip, kept
    for old, new in _REPLACEMENTS:
        page = page.replace(old, new)
    for left, right in _INSIDE:  # white space inside of brackets and quotation marks
        inside = rf"[^{right}]*?"
        page = re.sub(rf"({left})\s*({inside})\s*({right})", r"\1\2\3", page)
    for old, new in _MORE_REPLACEMENTS:
        page = page.replace(old, new)
    return page


# ---- fields ----


def _stripped(value: Any, field: str, where: str) -> str:
    """The text of a field without the white space around it; raises InputError if none is left."""
    return _some_text(value, field, where).strip()


def _some_text(value: Any, field: str, where: str) -> str:
    """The text of a field, unchanged; raises InputError if it is white space alone."""
    text = checked_text(value, field, where)
    if not text.strip():
        raise InputError(f"{where}: its {field} is empty; must have at least one word")
    return text


def _list_of_texts(value: Any, field: str, where: str) -> list[Any]:
    if not (isinstance(value, list) and len(value) >= 2):
        raise InputError(f"{where}: must have {field} that are a list of two texts or more")
    return value


def _index(name: str, value: Any, count: int, where: str) -> int:
    """The index of a choice, as an integer or as its digits; raises InputError."""
    text = str(value) if is_integer(value) else value
    if isinstance(text, str) and text in map(str, range(count)):
        return int(text)
    raise _wrong_gold(name, value, f"the number of a choice, from 0 to {count - 1}", where)


def _wrong_gold(name: str, value: Any, right: str, where: str) -> InputError:
    return InputError(f'{where}: its "{name}" is {short_repr(value)}; must be {right}')


def _read_labels(file: str, where: str) -> list[str]:
    """PIQA's labels, a line each, in the file that its authors publish beside the questions."""
    path = Path(file)
    name = str(path.with_name(f"{path.stem}-labels.lst"))
    if not Path(name).is_file():
        raise InputError(f'{where}: has no "label", and there is no file {name} with the labels')
    return read_text(name, _MAX_LABELS_BYTES).split()


class _Form(NamedTuple):
    """The fields of a form, and the reader of a line."""

    fields: tuple[str, ...]
    read: Callable[[dict[str, Any], str], Document | Question]


_PIQA = _Form(("goal", "sol1", "sol2", "label"), _piqa)
_DOCUMENT = _Form(("text",), _document)
# The first form that fits an object is taken; a PIQA line may lack its label.
_FORMS = (
    _Form(("context", "continuation"), _last_word),  # LAMBADA as llm-foundry has it
    _Form(("query", "choices", "gold"), _choice),  # the tasks of llm-foundry
    _Form(("sentence", "option1", "option2", "answer"), _winogrande),
    _Form(("ctx_a", "ctx_b", "activity_label", "endings", "label"), _hellaswag),
    _PIQA,
    _Form(("question", "answerKey"), _arc),  # and OpenBookQA
    _Form(("question_stem", "choices", "answerKey"), _openbookqa),
    _Form(("sentence_good", "sentence_bad"), _blimp),
    _Form(("page",), _wikitext),
    _DOCUMENT,
)


def _form_of(value: dict[str, Any], where: str) -> _Form:
    """The first form that an object has all fields of."""
    for form in _FORMS:
        fields = form.fields[:-1] if form is _PIQA else form.fields
        if all(field in value for field in fields):
            return form
    forms = "; or ".join(_quoted(form.fields) for form in _FORMS)
    raise InputError(f"{where}: is of no known form; must have {forms}")


def _quoted(fields: tuple[str, ...]) -> str:
    return ", ".join(f'"{field}"' for field in fields)
