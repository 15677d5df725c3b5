"""The lm-evaluation-harness: what it gives with transformers, and minigpt as a model of its own.

golden/harness holds a recorded run of the harness. Tests that need lm_eval itself are skipped where
it is not installed: it is too large for the extra `test`.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigpt import GPTModel, GPTTokenizer
from minigpt.errors import InputError, MinigptError
from minigpt.evaluation import harness
from minigpt.evaluation.harness import (
    MinigptLM,
    generate_until,
    log_likelihoods,
    rolling_log_likelihoods,
)
from minigpt.evaluation.perplexity import Perplexity, perplexity
from minigpt.evaluation.run import evaluate_files
from minigpt.evaluation.task_files import read_task_file
from minigpt.evaluation.tasks import LastWordAccuracy, MultipleChoiceAccuracy

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden"
EXPECTED = json.loads((GOLDEN / "harness" / "expected.json").read_text(encoding="utf-8"))
CHOICES = ["arc", "hellaswag", "openbookqa", "piqa", "winogrande"]
needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm_eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of golden/tasks, with <|endoftext|> as the token that begins and ends a text."""
    folder = tmp_path_factory.mktemp("started") / "model"
    shutil.copytree(GOLDEN / "tasks", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"bos_token_id": 265, "eos_token_id": 265}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> GPTModel:
    return GPTModel.from_pretrained(folder, threads=1)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> GPTTokenizer:
    return GPTTokenizer.from_pretrained(folder)


def file_of(task: str) -> str:
    return str(GOLDEN / "harness" / f"{task}.jsonl")


def items_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- `minigpt eval` gives what the harness gives ----


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("task", CHOICES)
def test_choices_equal_the_harness(model, tmp_path, task: str, shots: int) -> None:
    expected = EXPECTED[f"{task}_shots" if shots else task]
    output = tmp_path / "items.jsonl"
    ((_, found),) = evaluate_files(model, file_of(task), shots=shots, output=output)
    assert isinstance(found, MultipleChoiceAccuracy)
    assert (found.accuracy, found.standard_error) == (expected["acc"], expected["acc_stderr"])
    if task != "winogrande":
        assert found.accuracy_per_character == expected["acc_norm"]
        assert found.standard_error_per_character == expected["acc_norm_stderr"]
    for item, log_p in zip(items_of(output), expected["log_p"], strict=True):
        np.testing.assert_allclose(item["log_p"], log_p, 1e-5)


def test_last_words_equal_the_harness(model, tmp_path) -> None:
    output, expected = tmp_path / "items.jsonl", EXPECTED["lambada"]
    ((_, found),) = evaluate_files(model, file_of("lambada"), last_word=True, output=output)
    assert isinstance(found, LastWordAccuracy)
    assert (found.accuracy, found.standard_error) == (expected["acc"], expected["acc_stderr"])
    assert math.isclose(found.perplexity, expected["perplexity"], rel_tol=1e-4)
    found_log_p = [item["log_p"] for item in items_of(output)]
    np.testing.assert_allclose(found_log_p, expected["log_p"], 1e-5)


def test_rolling_perplexity_equals_the_harness(model) -> None:
    """Of WikiText, most of whose pages are longer than the context here."""
    expected = EXPECTED["wikitext"]
    ((_, found),) = evaluate_files(model, file_of("wikitext"), rolling=True)
    assert isinstance(found, Perplexity)
    assert math.isclose(found.bits_per_byte, expected["bits_per_byte"], rel_tol=1e-6)
    assert math.isclose(found.byte_perplexity, expected["byte_perplexity"], rel_tol=1e-5)
    assert math.isclose(found.word_perplexity, expected["word_perplexity"], rel_tol=1e-5)


# ---- the model's answers to the harness ----


@pytest.mark.parametrize("task", [*CHOICES, "lambada"])
def test_log_likelihoods_are_those_of_eval(model, tokenizer, tmp_path, task: str) -> None:
    """To the last digit."""
    output = tmp_path / "items.jsonl"
    evaluate_files(model, file_of(task), output=output, last_word=True)
    questions = read_task_file(file_of(task), last_word=True)
    pairs = [
        (context, f" {text}" if context else text)
        for question in questions
        for context, text in question.pairs()  # type: ignore[union-attr]
    ]
    expected = [log_p for item in items_of(output) for log_p in item["log_p"]]
    assert [each.log_p for each in log_likelihoods(model, tokenizer, pairs)] == expected


def test_rolling_log_likelihoods_equal_the_harness(model, tokenizer) -> None:
    pages = read_task_file(file_of("wikitext"))
    texts = [page.text for page in pages]  # type: ignore[union-attr]
    found = rolling_log_likelihoods(model, tokenizer, texts)
    np.testing.assert_allclose(found, [log_p for (log_p,) in EXPECTED["wikitext"]["log_p"]], 1e-6)
    long = max(texts, key=len)
    ids = tokenizer.encode(long)
    assert len(ids) > 2 * model.config.n_positions
    expected = perplexity(model, ids, 1, rolling=True)
    (log_p,) = rolling_log_likelihoods(model, tokenizer, [long])
    assert math.isclose(-log_p, expected.nats_per_token * len(ids), rel_tol=1e-12)


def test_an_empty_text_has_the_log_likelihood_zero(model, tokenizer) -> None:
    first, empty = rolling_log_likelihoods(model, tokenizer, ["a", ""])
    assert first < 0 == empty
    assert rolling_log_likelihoods(model, tokenizer, [""]) == [0]
    without = GPTModel.from_pretrained(GOLDEN / "tasks", threads=1)  # a start token
    assert rolling_log_likelihoods(without, tokenizer, ["a"]) == [0]


def test_texts_equal_the_harness(model, tokenizer) -> None:
    """Up to a stop string, and of contexts that are truncated on the left."""
    requests = [(context, options) for context, options, _ in EXPECTED["generate"]]
    expected = [text for _, _, text in EXPECTED["generate"]]
    assert generate_until(model, tokenizer, requests) == expected
    assert generate_until(model, tokenizer, requests[::-1]) == expected[::-1]


def test_options_of_generation(model, tokenizer) -> None:
    def text(**options: Any) -> str:
        calls: list[None] = []
        (found,) = generate_until(
            model, tokenizer, [("hello", options)], seed=3, done=lambda: calls.append(None)
        )
        assert len(calls) == 1
        return found

    greedy = text(max_gen_toks=8)
    assert text(max_new_tokens=8, do_sample=False, temperature=1.0) == greedy
    assert text(max_gen_toks=8, until=None, temperature=0) == greedy
    assert text(max_gen_toks=8, do_sample=True, temperature=1.0, top_k=1) == greedy
    sampled = text(max_gen_toks=8, do_sample=True, temperature=9.0)
    assert sampled != greedy
    assert sampled == text(max_gen_toks=8, temperature=9.0)
    assert text(max_gen_toks=8, until=greedy[2:4]) == greedy.split(greedy[2:4])[0]
    assert text(max_gen_toks=8, until=["", "\x00\x00"]) == greedy
    assert text(max_gen_toks=0) == ""
    for options, message in (
        ({}, "max_gen_toks 256: must be an integer from 0 to 63, below the model's context"),
        ({"max_gen_toks": 4, "num_beams": 2}, "num_beams=2: is no option of generation"),
        ({"max_gen_toks": 4, "until": [5]}, "until .*: must be a string or a list of strings"),
        ({"max_gen_toks": 4, "top_p": 2.0}, "top_p 2.0"),
    ):
        with pytest.raises(InputError, match=message):
            text(**options)


def test_a_continuation_without_a_token_is_an_error(model, tokenizer) -> None:
    with pytest.raises(InputError, match="request 1: '' has no token to score"):
        log_likelihoods(model, tokenizer, [("a", " b"), ("", "")])


# ---- the model class ----


def test_without_lm_eval_there_is_one_plain_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(harness, "_missing", ImportError("No module named 'lm_eval'"))
    line = r"lm_eval cannot be imported \(No module named 'lm_eval'\); install it with pip install"
    with pytest.raises(MinigptError, match=line):
        MinigptLM()
    with pytest.raises(SystemExit) as caught:
        harness.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("Error: lm_eval cannot be imported")


@needs_lm_eval
def test_the_harness_knows_the_model(folder: Path) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("minigpt") is MinigptLM
    with pytest.raises(InputError, match="model_args: revision is none of pretrained, dtype"):
        MinigptLM(str(folder), revision="main")


@needs_lm_eval
@pytest.mark.slow
def test_the_command_line_of_the_harness(folder: Path, tmp_path: Path) -> None:
    """A task of files, in a process of its own: the accuracy is that of eval."""
    task = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": file_of("piqa")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (tmp_path / "words.yaml").write_text(json.dumps(task), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable, "-m", "minigpt.evaluation.harness", "--model", "minigpt",
            "--model_args", f"pretrained={folder},dtype=f32,threads=1",
            "--tasks", "words", "--include_path", tmp_path, "--output_path", tmp_path / "out",
        ],
        check=False, capture_output=True, cwd=ROOT, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text(encoding="utf-8"))["results"]["words"]
    expected = EXPECTED["piqa"]
    for name in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr"):
        assert found[f"{name},none"] == expected[name]
