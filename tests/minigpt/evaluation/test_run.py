"""Evaluation of files: one call gives what the functions for each kind of file give."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from minigpt import GPTModel, GPTTokenizer
from minigpt.errors import InputError, MinigptWarning, SourceError
from minigpt.evaluation.perplexity import Perplexity, combined, compare, perplexity, scored_text
from minigpt.evaluation.run import average_accuracy, compare_on_file, evaluate_files
from minigpt.evaluation.task_files import read_task_file
from minigpt.evaluation.tasks import last_word_accuracy, multiple_choice

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tasks"
WORDS, CHOICES = str(GOLDEN / "words.jsonl"), str(GOLDEN / "choices.jsonl")
TEXT = "say hello then, and what the other one says\n" * 4


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return GPTModel.from_pretrained(GOLDEN, threads=1)


@pytest.fixture(scope="module")
def tokenizer() -> GPTTokenizer:
    return GPTTokenizer.from_pretrained(GOLDEN)


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    return str(tmp_path / "a.txt")


@pytest.fixture
def documents(tmp_path: Path) -> str:
    lines = [json.dumps({"text": part}) for part in (TEXT, "hello the other")]
    (tmp_path / "d.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(tmp_path / "d.jsonl")


def untimed(result: object) -> dict[str, object]:
    """The fields of a result that do not depend on the clock."""
    fields = asdict(result)  # type: ignore[call-overload]
    return {name: fields[name] for name in fields if name not in ("seconds", "tokens_per_s")}


def test_a_byte_order_mark_is_not_scored(model, text, tmp_path) -> None:
    marked = str(tmp_path / "marked.txt")
    Path(marked).write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    plain, scored = (result for _, result in evaluate_files(model, [text, marked], window=20))
    assert untimed(scored) == untimed(plain)
    plain, scored = (compare_on_file(model, model, file, window=20) for file in (text, marked))
    assert untimed(scored) == untimed(plain)


def test_each_file_has_the_result_of_its_kind(model, tokenizer, text, documents) -> None:
    results = evaluate_files(model, [text, WORDS, documents, CHOICES], window=20, stride=10)
    assert [file for file, _ in results] == [text, WORDS, documents, CHOICES]
    texts = []
    for part in (TEXT, TEXT, "hello the other"):
        ids = tokenizer.encode(part, return_tensors="np")[0]
        scored = scored_text(tokenizer, model.config, part, ids)  # without the first token
        words = len(re.split(r"\s+", scored.decode()))
        texts.append(perplexity(model, ids, len(scored), 20, 10, words=words))
    expected = [
        texts[0],
        last_word_accuracy(model, tokenizer, read_task_file(WORDS)),
        combined(texts[1:]),
        multiple_choice(model, tokenizer, read_task_file(CHOICES)),
    ]
    assert [untimed(result) for _, result in results] == list(map(untimed, expected))


def test_a_source_is_loaded_with_dtype_and_tokenizer(tokenizer, text) -> None:
    loaded = GPTModel.from_pretrained(GOLDEN, dtype="bf16", threads=1)
    (expected,) = evaluate_files(loaded, [text])
    (result,) = evaluate_files(str(GOLDEN), [text], dtype="bf16", threads=1, tokenizer=tokenizer)
    assert untimed(result.result) == untimed(expected.result)
    assert result.result.dtype == "bf16"


def test_a_dash_is_standard_input(model, text, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    (found,) = evaluate_files(model, ["-"])
    (expected,) = evaluate_files(model, [text])
    assert found.file == "-"
    assert untimed(found.result) == untimed(expected.result)


def test_progress_names_each_file_and_counts_to_its_total(text, documents) -> None:
    calls: list[tuple[str | None, int, int]] = []
    results = evaluate_files(
        str(GOLDEN), [documents, text], threads=1, progress=lambda *call: calls.append(call)
    )
    assert calls[0] == (None, 0, 0)
    for file, result in results:
        counts = [(done, total) for name, done, total in calls if name == file]
        assert counts[0] == (0, 0)
        assert [done for done, _ in counts[1:]] == list(range(1, result.tokens + 1))
        assert {total for _, total in counts[1:]} == {result.tokens}


def test_compare_on_file_is_compare(model, tokenizer, text) -> None:
    narrow = GPTModel.from_pretrained(GOLDEN, dtype="int4", threads=1)
    expected = untimed(compare(model, narrow, tokenizer.encode(TEXT), 20, 10))
    assert expected["kl_mean"] > 0  # type: ignore[operator]
    for a, b in ((model, narrow), (str(GOLDEN), GOLDEN)):
        found = compare_on_file(a, b, text, dtype_b="int4", threads=1, window=20, stride=10)
        assert untimed(found) == expected


def test_wrong_files_are_named_before_a_model_is_loaded(text, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(GPTModel, "from_pretrained", None)  # must not be called
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "short.jsonl").write_bytes(b'{"text": "a"}\n{"text": ""}')
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        evaluate_files(str(GOLDEN), [text, str(tmp_path / "none.txt")])
    for name, message in (
        ("empty.txt", "empty.txt: empty; a text needs at least 2 tokens"),
        ("short.jsonl", "short.jsonl, line 1: 1 token; a text needs"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_files(str(GOLDEN), str(tmp_path / name))
    with pytest.raises(InputError, match=r"empty.txt: empty; a text needs"):
        compare_on_file(str(GOLDEN), str(GOLDEN), str(tmp_path / "empty.txt"))


def test_a_bad_or_empty_file_leaves_the_others_their_results(model, text, tmp_path) -> None:
    (expected,) = evaluate_files(model, text)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    (tmp_path / "bad.jsonl").write_bytes(b"{}")
    (tmp_path / "long.jsonl").write_text(
        json.dumps({"context": "a", "continuation": "x" * 100}), encoding="utf-8"
    )
    for name in ("empty.txt", "empty.jsonl"):
        with pytest.warns(MinigptWarning, match=f"{name}: nothing in it can be scored"):
            (found,) = evaluate_files(model, [str(tmp_path / name), text])
        assert untimed(found.result) == untimed(expected.result)
        with pytest.raises(InputError, match=name):
            evaluate_files(model, str(tmp_path / name))
    errors = []
    for name in ("bad.jsonl", "long.jsonl", "none.txt"):
        files = [str(tmp_path / name), text]
        (found,) = evaluate_files(model, files, on_error=lambda *call: errors.append(call))
        assert untimed(found.result) == untimed(expected.result)
        assert errors[-1][0] == files[0]
        assert evaluate_files(model, files[0], on_error=lambda *call: None) == []
    assert [str(error).split("; ")[0].rpartition(": ")[2] for _, error in errors] == [
        "is of no known form",
        "a continuation of 101 tokens, where this model's context is 64",
        "No such file or directory",
    ]
    with pytest.raises(InputError, match="window 65"):  # this concerns no file
        evaluate_files(model, [text], window=65, on_error=lambda *call: None)


def test_short_texts_are_counted(model, tmp_path) -> None:
    (tmp_path / "d.jsonl").write_text(
        "\n".join(json.dumps({"text": part}) for part in (TEXT, "", "a", TEXT)), encoding="utf-8"
    )
    with pytest.warns(MinigptWarning, match=r"d.jsonl: 2 of 4 texts are empty or of one token"):
        (found,) = evaluate_files(model, str(tmp_path / "d.jsonl"))
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8", newline="")
    (expected,) = evaluate_files(model, str(tmp_path / "a.txt"))
    assert found.result.tokens == 2 * expected.result.tokens


def test_a_text_of_one_token_is_scored_after_the_start_token(tmp_path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "m")
    config = json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"bos_token_id": 265}))
    (tmp_path / "a.txt").write_bytes(b"a")
    (found,) = evaluate_files(tmp_path / "m", tmp_path / "a.txt", threads=1)
    assert (found.result.tokens, found.result.bytes) == (1, 1)


def test_limit_takes_the_first_lines(model, tokenizer, documents, text) -> None:
    results = evaluate_files(model, [documents, WORDS, CHOICES, text], limit=1)
    tokens = results[3].result.tokens  # a text is one document, and the first of `documents`
    assert results[0].result.tokens == tokens
    assert [results[n].result.questions for n in (1, 2)] == [1, 1]
    first = multiple_choice(model, tokenizer, read_task_file(CHOICES)[:1])
    assert results[2].result.accuracy == first.accuracy


def test_output_has_a_line_for_each_question_and_document(model, documents, text, tmp_path) -> None:
    path = tmp_path / "items.jsonl"
    files = [WORDS, CHOICES, documents]
    words, choices, texts = (result for _, result in evaluate_files(model, files, output=path))
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [item["item"].rpartition(", line ")[0] for item in items] == (
        [WORDS] * words.questions + [CHOICES] * choices.questions + [documents] * 2
    )
    asked, items = items[: words.questions], items[words.questions :]
    assert sum(item["right"] for item in asked) / len(asked) == words.accuracy
    mean = sum(item["log_p"][0] for item in asked) / len(asked)
    assert math.isclose(math.exp(-mean), words.perplexity)
    asked, items = items[: choices.questions], items[choices.questions :]
    for name, accuracy in (
        ("chosen", choices.accuracy),
        ("chosen_per_token", choices.accuracy_per_token),
        ("chosen_per_byte", choices.accuracy_per_byte),
        ("chosen_per_character", choices.accuracy_per_character),
    ):
        assert sum(item[name] == item["gold"] for item in asked) / len(asked) == accuracy
    best = [item["log_p"].index(max(item["log_p"])) for item in asked]
    assert best == [item["chosen"] for item in asked]
    assert sum(item["tokens"] for item in items) == texts.tokens
    assert sum(item["bytes"] for item in items) == texts.bytes


def test_output_stays_as_it_was_where_the_evaluation_fails(model, text, tmp_path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="window 65"):
        evaluate_files(model, text, window=65, output=path)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir() if "tmp" in each.name] == []


def test_examples_change_what_is_asked(model, tokenizer) -> None:
    """With the questions of the file itself, and with those of another."""
    plain, own, other = (
        evaluate_files(model, CHOICES, **options)[0].result
        for options in ({}, {"shots": 1}, {"shots": 1, "examples": CHOICES, "seed": 3})
    )
    assert (plain.shots, own.shots, other.shots) == (0, 1, 1)
    assert plain.tokens < own.tokens != other.tokens


@pytest.mark.parametrize(
    ("message", "name", "options"),
    [
        ("limit 0: must be an integer from 1", "limit", {"limit": 0}),
        ("shots -1: must be an integer from 0 to 1000", "shots", {"shots": -1}),
        ("seed -1: must be an integer from 0", "seed", {"seed": -1}),
        ("shots 16: there are 16 examples; must be at most 15", "shots", {"shots": 16}),
        ("examples: are for one file", "examples", {"examples": CHOICES, "files": [CHOICES] * 2}),
        ("last_word 1: must be True or False", "last_word", {"last_word": 1}),
        ("examples of another form|are of another form", None, {"examples": WORDS, "shots": 1}),
        ("on_error 5: must be a function", "on_error", {"on_error": 5}),
        ("output 5: must be a file name", "output", {"output": 5}),
    ],
)
def test_wrong_options_of_questions(model, message, name, options) -> None:
    with pytest.raises(InputError, match=message) as caught:
        evaluate_files(model, **({"files": CHOICES} | options))
    assert caught.value.argument in (name, None)


def test_the_average_gives_each_file_the_same_weight(model, text) -> None:
    results = evaluate_files(model, [WORDS, text, CHOICES])
    words, _, choices = (each.result for each in results)
    average = average_accuracy(results)
    assert average.files == 2
    assert average.accuracy == (words.accuracy + choices.accuracy) / 2
    error = math.hypot(words.standard_error, choices.standard_error) / 2
    assert math.isclose(average.standard_error, error)
    assert average_accuracy(results[1:2]) is None
    assert average_accuracy(evaluate_files(model, WORDS, limit=1)).standard_error is None


def test_rolling_counts_the_bytes_of_the_page(tmp_path) -> None:
    """WikiText's, before it is detokenized, as in the harness; other windows count what is read."""
    page = "say , hello ; the other ( one ) says"
    (tmp_path / "w.jsonl").write_text(json.dumps({"page": page}), encoding="utf-8")
    (rolling,) = evaluate_files(str(GOLDEN), tmp_path / "w.jsonl", rolling=True, threads=1)
    (sliding,) = evaluate_files(str(GOLDEN), tmp_path / "w.jsonl", threads=1)
    assert isinstance(rolling.result, Perplexity)
    assert (rolling.result.method, rolling.result.bytes, rolling.result.words) == (
        "rolling", len(page), len(page.split()),
    )  # fmt: skip
    assert sliding.result.bytes < rolling.result.bytes
    assert rolling.result.nats_per_token == sliding.result.nats_per_token


@pytest.mark.parametrize("files", [None, 5, [5], [b"x"], b"x", "", [], ["a", None], iter(["a"])])
def test_wrong_kinds_of_files(files, monkeypatch) -> None:
    monkeypatch.setattr(GPTModel, "from_pretrained", None)  # must not be called
    with pytest.raises(InputError, match=r"^files.*(must be a file name|at least one)"):
        evaluate_files(str(GOLDEN), files)
    if files != ["a", None]:
        with pytest.raises(InputError, match=r"^file .*: must be a file name"):
            compare_on_file(str(GOLDEN), str(GOLDEN), files)


def test_a_file_is_a_name_or_a_path(model, text) -> None:
    (expected,) = evaluate_files(model, [text])
    for files in (text, Path(text), [Path(text)], (text,)):
        (found,) = evaluate_files(model, files)
        assert found.file == text
        assert untimed(found.result) == untimed(expected.result)
    assert compare_on_file(model, model, Path(text)).kl_max == 0


@pytest.mark.parametrize("options", [{"tokenizer": 0}, {"tokenizer": ""}, {"progress": 5}])
def test_wrong_options_are_not_the_defaults(text, monkeypatch, options) -> None:
    monkeypatch.setattr(GPTModel, "from_pretrained", None)  # must not be called
    with pytest.raises(InputError, match=f"^{next(iter(options))} .*: must be a"):
        evaluate_files(str(GOLDEN), [text], **options)


def test_a_text_longer_than_the_limit_is_an_error(model, tmp_path) -> None:
    with (tmp_path / "long.txt").open("wb") as file:
        file.truncate((64 << 20) + 1)  # sparse
    with pytest.raises(InputError, match="longer than 67108864 bytes"):
        evaluate_files(model, [str(tmp_path / "long.txt")])


def test_a_missing_source_is_a_source_error(text, tmp_path) -> None:
    with pytest.raises(SourceError, match="none"):
        evaluate_files(tmp_path / "none", [text])


# ---- a file is the same to both commands, and special tokens in it are noticed ----


def test_compare_scores_each_text_of_a_file_as_evaluation_does(model, documents) -> None:
    found = compare_on_file(model, model, documents, window=20, stride=10)
    ((_, expected),) = evaluate_files(model, documents, window=20, stride=10)
    assert found.tokens == expected.tokens
    assert found.perplexity_a == pytest.approx(expected.perplexity, rel=1e-12)
    assert (found.kl_max, found.top1_agreement) == (0, 1)


@pytest.mark.parametrize("name", ["a.ndjson", "a.json"])
def test_json_by_another_name(model, documents, name: str) -> None:
    lines = Path(documents).read_text(encoding="utf-8").splitlines()
    content = f"[{', '.join(lines)}]" if name == "a.json" else "\n".join(lines)
    other = Path(documents).with_name(name)
    other.write_text(content, encoding="utf-8")
    (expected, found) = (result for _, result in evaluate_files(model, [documents, str(other)]))
    assert untimed(found) == untimed(expected)


def test_special_tokens_in_texts_end_them_or_are_warned_of(model, tmp_path) -> None:
    (tmp_path / "a.txt").write_text(f"{TEXT}<|endoftext|>hello the other<|endoftext|>\n")
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in (TEXT, "hello the other"))
    )
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")
    ((_, right),) = evaluate_files(model, b)
    with pytest.warns(MinigptWarning, match=r"a\.txt: holds <\|endoftext\|> as plain") as caught:
        ((_, plain), _) = evaluate_files(model, [a, a])
    assert len(caught) == 1  # of all files together
    ((_, special),) = evaluate_files(model, a, allow_special=True)
    assert untimed(special) == untimed(right) != untimed(plain)
    with pytest.warns(MinigptWarning, match=r"a\.txt: holds <\|endoftext\|>"):
        compare_on_file(model, model, a)
    assert compare_on_file(model, model, a, allow_special=True).tokens == right.tokens


def test_a_text_of_special_tokens_alone_leaves_nothing_to_score(model, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>\n")
    with pytest.raises(InputError, match=r"a\.txt: empty; a text needs"):
        evaluate_files(model, tmp_path / "a.txt", allow_special=True)
    with pytest.raises(InputError, match=r"a\.txt: empty; a text needs"):
        compare_on_file(model, model, tmp_path / "a.txt", allow_special=True)


def test_special_tokens_in_questions_are_warned_of(model, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"context": "hello<|endoftext|>", "continuation": "the"}')
    with pytest.warns(MinigptWarning, match=r"a\.jsonl, line 1: holds <\|endoftext\|>"):
        evaluate_files(model, str(tmp_path / "a.jsonl"))


def test_texts_too_short_to_compare_are_left_out(model, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "hello the other"}')
    with pytest.warns(MinigptWarning, match="1 of 2 texts are empty"):
        compare_on_file(model, model, str(tmp_path / "a.jsonl"))
