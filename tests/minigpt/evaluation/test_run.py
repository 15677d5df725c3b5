"""Evaluation of files: one call gives what the functions for each kind of file give."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from minigpt import GPTModel, GPTTokenizer
from minigpt.errors import InputError, SourceError
from minigpt.evaluation.perplexity import combined, compare, perplexity
from minigpt.evaluation.run import compare_on_file, evaluate_files
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
    texts = [
        perplexity(model, tokenizer.encode(part), len(part), 20, 10)
        for part in (TEXT, TEXT, "hello the other")
    ]
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
    (tmp_path / "short.jsonl").write_bytes(b'{"text": "hello hello"}\n{"text": "a"}')
    for name, message in (
        ("none.txt", "none.txt: cannot be read"),
        ("empty.txt", "empty.txt: empty; a text needs at least 2 tokens"),
        ("short.jsonl", "short.jsonl, line 2: 1 token; a text needs"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_files(str(GOLDEN), [text, str(tmp_path / name)])
    with pytest.raises(InputError, match=r"empty.txt: empty; a text needs"):
        compare_on_file(str(GOLDEN), str(GOLDEN), str(tmp_path / "empty.txt"))


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
