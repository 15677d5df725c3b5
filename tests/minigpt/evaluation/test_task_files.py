"""Task files: each form is read, and errors name file and line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from minigpt.errors import InputError, MinigptWarning
from minigpt.evaluation.task_files import (
    Choice,
    ContextChoice,
    Document,
    LastWord,
    read_task_file,
    with_examples,
)

WORD = {"context": "The cat sat on the", "continuation": "mat"}
CHOICE = {"query": "Question: Which?", "choices": ["this", "that"], "gold": 1}


def write(folder: Path, *lines: Any) -> str:
    """A task file of these lines: bytes as they are, others as JSON."""
    path = folder / "task.jsonl"
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(data))
    return str(path)


def test_last_words_are_stripped(tmp_path: Path) -> None:
    other = {"continuation": " two\nwords\n", "context": "\n\nSome  text \n", "id": 7}
    name = write(tmp_path, WORD, b"", other)
    assert read_task_file(name) == [
        LastWord(f"{name}, line 1", "The cat sat on the", "mat"),
        LastWord(f"{name}, line 3", "Some  text", "two\nwords"),
    ]


def test_questions_get_an_answer_line(tmp_path: Path) -> None:
    """Only a query that begins with Question: and does not end in Answer: gets one."""
    plain = {
        "query": "He opened ",
        "choices": [" a door ", "the sea", "\u00e9"],
        "gold": 0,
        "text": 1,
    }
    asked = {**CHOICE, "query": "Question: Which?\nAnswer:"}
    name = write(tmp_path, CHOICE, plain, asked)
    assert read_task_file(name) == [
        Choice(f"{name}, line 1", "Question: Which?\nAnswer:", ("this", "that"), 1),
        Choice(f"{name}, line 2", "He opened", ("a door", "the sea", "\u00e9"), 0),
        Choice(f"{name}, line 3", "Question: Which?\nAnswer:", ("this", "that"), 1),
    ]


def test_documents_are_unchanged(tmp_path: Path) -> None:
    name = write(tmp_path, {"text": " a\n"}, {"text": "b\u2028c"})
    lines = [Document(f"{name}, line 1", " a\n"), Document(f"{name}, line 2", "b\u2028c")]
    assert read_task_file(name) == lines


def test_contexts_and_queries_may_be_empty(tmp_path: Path) -> None:
    name = write(tmp_path, CHOICE | {"query": " "})
    assert read_task_file(name) == [Choice(f"{name}, line 1", "", ("this", "that"), 1)]
    name = write(tmp_path, WORD | {"context": ""})
    assert read_task_file(name) == [LastWord(f"{name}, line 1", "", "mat")]


# ---- the forms in which tasks are published, with the harness's prompts ----

QUESTION = {"stem": "Why?", "choices": [{"text": "a b", "label": "A"}, {"text": "c", "label": "B"}]}
HUB_CHOICES = {"text": ["a b", "c", " d"], "label": ["1", "2", "3"]}
PIQA = {"goal": "dry \n", "sol1": " a towel", "sol2": "water"}
HELLASWAG = {
    "activity_label": "Roof",
    "ctx_a": "[header] A man [step] sits.",
    "ctx_b": "he Then",
    "endings": [" slides [substeps] off", "eats [title] it", "x"],
    "label": 1,
}


@pytest.mark.parametrize(
    ("line", "context", "choices", "gold"),
    [
        (
            {"id": "Mercury_1", "question": QUESTION, "answerKey": "B"},
            "Question: Why?\nAnswer:", ("a b", "c"), 1,
        ),
        (
            {"question": "Why?", "choices": HUB_CHOICES, "answerKey": "3"},
            "Question: Why?\nAnswer:", ("a b", "c", " d"), 2,
        ),
        ({"id": "7-980", "question": QUESTION, "answerKey": "A"}, "Why?", ("a b", "c"), 0),
        (
            {"question_stem": "The sun is", "choices": HUB_CHOICES, "answerKey": " 2"},
            "The sun is", ("a b", "c", " d"), 1,
        ),
        (PIQA | {"label": 1}, "Question: dry \n\nAnswer:", (" a towel", "water"), 1),
        (PIQA | {"label": "0"}, "Question: dry \n\nAnswer:", (" a towel", "water"), 0),
        (HELLASWAG, "Roof: A man sits. He then", ("slides off", "eats. it", "x"), 1),
        (
            HELLASWAG | {"label": "2"},
            "Roof: A man sits. He then", ("slides off", "eats. it", "x"), 2,
        ),
        ({"sentence_good": "he sits", "sentence_bad": "he sit"}, "", ("he sits", "he sit"), 0),
    ],
)  # fmt: skip
def test_published_forms_of_questions(
    tmp_path: Path, line: dict[str, Any], context: str, choices: tuple[str, ...], gold: int
) -> None:
    name = write(tmp_path, line)
    assert read_task_file(name) == [Choice(f"{name}, line 1", context, choices, gold)]


def test_winogrande_has_a_context_for_each_option(tmp_path: Path) -> None:
    line = {"sentence": "Ann saw Eve because _ was near. ", "option1": "Ann", "option2": "Eve"}
    name = write(tmp_path, line | {"answer": "2"}, line | {"answer": 1})
    contexts = ("Ann saw Eve because Ann", "Ann saw Eve because Eve")
    assert read_task_file(name) == [
        ContextChoice(f"{name}, line 1", contexts, "was near.", 1),
        ContextChoice(f"{name}, line 2", contexts, "was near.", 0),
    ]
    assert read_task_file(name)[0].pairs() == [(each, "was near.") for each in contexts]


def test_piqa_labels_may_be_in_the_file_beside(tmp_path: Path) -> None:
    name = write(tmp_path, PIQA, PIQA)
    assert_refused(name, 1, r'has no "label", and there is no file .*task-labels\.lst')
    labels = tmp_path / "task-labels.lst"
    labels.write_text("1\n0\n", encoding="utf-8")
    assert [line.gold for line in read_task_file(name)] == [1, 0]  # type: ignore[union-attr]
    labels.write_text("1\n", encoding="utf-8")
    assert_refused(name, 2, 'its "label" is None')


def test_last_words_of_texts(tmp_path: Path) -> None:
    """LAMBADA as it is published; what its lines split into is read the same."""
    lines = [{"text": "out ran the  dog\n"}, {"text": "said \u201cyes\u201d"}, {"text": "word"}]
    split = [
        {"context": "out ran the", "continuation": "dog"},
        {"context": "said", "continuation": "\u201cyes\u201d"},
        {"context": "", "continuation": "word"},
    ]
    expected = read_task_file(write(tmp_path, *split))
    name = write(tmp_path, *lines)
    assert read_task_file(name, last_word=True) == expected
    assert isinstance(read_task_file(name)[0], Document)
    assert_refused(write(tmp_path, {"text": " "}), 1, 'its "text" is empty', last_word=True)


def test_a_file_named_lambada_has_last_words(tmp_path: Path) -> None:
    name = str(Path(write(tmp_path, {"text": "the dog"})).rename(tmp_path / "Lambada_test.jsonl"))
    with pytest.warns(MinigptWarning, match="read as LAMBADA"):
        assert read_task_file(name) == [LastWord(f"{name}, line 1", "the", "dog")]
    assert read_task_file(name, last_word=False) == [Document(f"{name}, line 1", "the dog")]


def test_wikitext_pages_are_detokenized(tmp_path: Path) -> None:
    """A page as WikiText has it; the expected text is that of the harness."""
    page = " = A = \n The ' low @-@ end ' car ( of 1 @,@ 200 kg ) is the boy 's ; it 's N more . \n"
    text = " = A =\nThe 'low-end' car (of 1,200 kg) is the boy's; it's 1 more.\n"
    name = write(tmp_path, {"page": page})
    assert read_task_file(name) == [Document(f"{name}, line 1", text, page)]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ('its "answerKey" is \'C\'; must be one of A, B', {"question": QUESTION, "answerKey": "C"}),
        ('must have a text as its "question"', {"question": {}, "answerKey": "A"}),
        ('"choices" that are a list of two', {"question": "a", "answerKey": "A"}),
        ('"choices" that are a list of two', {"question": "a", "choices": [1], "answerKey": "A"}),
        (
            "as many labels as texts",
            {"question": "a", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"},
        ),
        ('its "label" is -1; must be the number of a choice, from 0 to 1', PIQA | {"label": -1}),
        ('its "label" is \'\'', HELLASWAG | {"label": ""}),
        ('its "label" is True', HELLASWAG | {"label": True}),
        ("its ending 0 is empty", HELLASWAG | {"endings": ["[title]", "a"]}),
        ("its \"sol1\" is empty", PIQA | {"sol1": "", "label": 0}),
        (
            'text after a blank, "_"',
            {"sentence": "a b.", "option1": "a", "option2": "b", "answer": "1"},
        ),
        (
            'its "answer" is \'\'; must be "1" or "2"',
            {"sentence": "_ b.", "option1": "a", "option2": "b", "answer": ""},
        ),
    ],
)  # fmt: skip
def test_wrong_lines_of_published_forms_are_named(tmp_path: Path, message: str, line: Any) -> None:
    assert_refused(write(tmp_path, line), 1, message)


# ---- examples ----


def choices(count: int) -> list[Choice]:
    return [Choice(f"line {n}", f"q{n}", ("a", f"b{n}"), n % 2) for n in range(count)]


def test_examples_are_drawn_as_the_harness_draws_them() -> None:
    """One generator for all questions; without the question itself, from its own file."""
    own, other = choices(6), choices(9)
    rng, solved = random.Random(5), [each.solved() for each in other]
    expected = [tuple(rng.sample(solved, 2)) for _ in own]
    found = with_examples(own, other, 2, seed=5, same_file=False)
    assert [each.examples for each in found] == expected

    rng = random.Random(5)
    expected = [
        tuple(each.solved() for each in rng.sample(own, 3) if each != question)[:2]
        for question in own
    ]
    found = with_examples(own, own, 2, seed=5, same_file=True)
    assert [each.examples for each in found] == expected


def test_examples_stand_before_the_context() -> None:
    (found,) = with_examples(choices(1), [Choice("", "q", ("a", "b"), 1)], 1, 0, same_file=False)
    assert found.pairs() == [("q b\n\nq0", "a"), ("q b\n\nq0", "b0")]
    word = LastWord("", "the", "dog", ("out ran the dog",))
    assert word.pairs() == [("out ran the dog\n\nthe", "dog")]
    assert ContextChoice("", ("he", "she"), "sat.", 1).solved() == "she sat."
    assert Choice("", "", ("he", "she"), 1).solved() == "she"


def test_a_question_is_no_example_of_itself_even_where_it_is_repeated() -> None:
    repeated = [choices(1)[0]] * 4 + choices(3)[1:]
    for question in with_examples(repeated, repeated, 2, seed=0, same_file=True):
        assert question.examples and question.solved() not in question.examples


def test_too_few_examples_are_an_error() -> None:
    with pytest.raises(InputError, match="shots 3: there are 3 examples; must be at most 2") as e:
        with_examples(choices(3), choices(3), 3, 0, same_file=True)
    assert e.value.argument == "shots"
    with pytest.raises(InputError, match="line 0: has only 0 other examples"):
        with_examples([choices(1)[0]] * 3, [choices(1)[0]] * 3, 1, 0, same_file=True)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("must be a JSON object", b"[]"),
        ("is not JSON", b'{"context": "a"'),
        ("is not JSON that can be read", b"[" * 100_000),
        ("not UTF-8", b'{"context": "\xff", "continuation": "a"}'),
        ('has no "continuation"; all lines must be of the first', {"context": "a"}),
        ('has no "context"', CHOICE),
        ('has no "context"', {}),
        ('a text as its "context"', WORD | {"context": None}),
        ('a text as its "continuation"', WORD | {"continuation": ["mat"]}),
        ('its "continuation" is empty', WORD | {"continuation": " \n"}),
        ("half of a character", b'{"context": "\\ud800", "continuation": "a"}'),
    ],
)
def test_wrong_last_word_lines_are_named(tmp_path: Path, message: str, line: Any) -> None:
    assert_refused(write(tmp_path, WORD, b"", line), 3, message)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ('a text as its "query"', {"query": 3}),
        ('"choices" that are a list of two texts or more', {"choices": "this"}),
        ('"choices" that are a list of two texts or more', {"choices": ["this"]}),
        ("a text as its choice 1", {"choices": ["this", None]}),
        ("its choice 0 is empty", {"choices": [" ", "that"]}),
        ("its choice 1 has '\\\\udc00', half of a character", {"choices": ["this", "\udc00"]}),
        ('its "gold" is 2; must be the number of a choice, from 0 to 1', {"gold": 2}),
        ('its "gold" is -1', {"gold": -1}),
        ('its "gold" is True', {"gold": True}),
        ('its "gold" is 1.0', {"gold": 1.0}),
        ("its \"gold\" is 'B'", {"gold": "B"}),
        ('its "gold" is ', {"gold": 10**4000}),
    ],
)
def test_wrong_multiple_choice_lines_are_named(
    tmp_path: Path, message: str, change: dict[str, Any]
) -> None:
    assert_refused(write(tmp_path, CHOICE, CHOICE | change), 2, message)


def test_an_unknown_form_is_named(tmp_path: Path) -> None:
    forms = '"context", "continuation"; or "query", "choices", "gold"; or "sentence", '
    assert_refused(write(tmp_path, {"question": "a"}), 1, f"is of no known form; must have {forms}")


def test_a_file_without_lines_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task\.jsonl: holds no lines"):
        read_task_file(write(tmp_path, b"\n \n"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read|is a folder"):
            read_task_file(str(path))


@pytest.mark.parametrize("file", [None, 5, b"a.jsonl", ["a.jsonl"], ""])
def test_a_file_is_a_name_or_a_path(tmp_path: Path, file: Any) -> None:
    with pytest.raises(InputError, match=r"^file .*: must be a file name"):
        read_task_file(file)
    path = Path(write(tmp_path, CHOICE))
    assert read_task_file(path) == read_task_file(str(path))


def assert_refused(name: str, line: int, message: str, last_word: bool | None = None) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_task_file(name, last_word)
    assert str(caught.value).startswith(f"{name}, line {line}: ")
    assert "\n" not in str(caught.value)
