"""Accuracy on tasks: ln p as transformers finds it, with the same bits in any batch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from minigpt import GPTModel, GPTTokenizer
from minigpt.checkpoint import write_safetensors
from minigpt.config import GPTConfig
from minigpt.errors import CheckpointError, InputError
from minigpt.evaluation import tasks
from minigpt.evaluation.task_files import Choice, LastWord, read_lines
from minigpt.evaluation.tasks import Continuation, Score, choices, last_words, make_ending, score
from minigpt.tokenizer.bpe import byte_symbols
from minigpt.weights.table import tensor_shapes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tasks"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
N_POSITIONS = 64


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return GPTModel.from_pretrained(GOLDEN, threads=2)


@pytest.fixture(scope="module")
def tokenizer() -> GPTTokenizer:
    return GPTTokenizer.from_pretrained(GOLDEN)


@pytest.fixture(scope="module")
def words() -> list[LastWord]:
    return read_lines(str(GOLDEN / "words.jsonl"))


@pytest.fixture(scope="module")
def questions() -> list[Choice]:
    return read_lines(str(GOLDEN / "choices.jsonl"))


@pytest.fixture(scope="module")
def endings(model, tokenizer, words, questions) -> list[Continuation]:
    """Of both files, in order, as EXPECTED has them."""
    texts = [(word.where, word.context, word.word) for word in words]
    texts += [(each.where, each.context, choice) for each in questions for choice in each.choices]
    return [make_ending(tokenizer, model.config, *text) for text in texts]


def log_p(logits: np.ndarray) -> np.ndarray:
    """float64 [n, V]: ln of the softmax, as the textbook has it."""
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# ---- against transformers ----


def test_scores_are_transformers(model, endings) -> None:
    found = score(model, endings).scores
    expected = EXPECTED["words"] + EXPECTED["choices"]
    assert [(each.tokens, each.greedy) for each in found] == [(n, g) for _, n, g in expected]
    np.testing.assert_allclose([each.log_p for each in found], [p for p, _, _ in expected], 1e-5)


def test_last_words_are_transformers(model, tokenizer, words) -> None:
    found = last_words(model, tokenizer, words)
    right = [greedy for _, _, greedy in EXPECTED["words"]]
    assert (found.dtype, found.questions, found.accuracy) == ("f32", 8, sum(right) / 8)
    assert 0 < found.accuracy < 1
    assert math.isclose(found.standard_error, math.sqrt(found.accuracy * (1 - found.accuracy) / 8))
    assert math.isclose(found.tokens_per_s, found.tokens / found.seconds)


def test_choices_are_transformers(model, tokenizer, questions) -> None:
    """The three ways to choose, which differ here."""
    found = choices(model, tokenizer, questions)
    scores = iter(EXPECTED["choices"])
    right = np.zeros(3)
    for each in questions:
        sums, tokens, _ = zip(*(next(scores) for _ in each.choices), strict=True)
        sizes = [len(choice.encode()) for choice in each.choices]
        for way, divisors in enumerate(([1] * len(sums), tokens, sizes)):
            measure = [p / n for p, n in zip(sums, divisors, strict=True)]
            right[way] += measure.index(max(measure)) == each.gold
    accuracies = [found.accuracy, found.accuracy_per_token, found.accuracy_per_byte]
    assert accuracies == (right / len(questions)).tolist()
    assert len(set(accuracies)) == 3
    errors = [found.standard_error, found.standard_error_per_token, found.standard_error_per_byte]
    for p, error in zip(accuracies, errors, strict=True):
        assert math.isclose(error, math.sqrt(p * (1 - p) / len(questions)))


@pytest.mark.parametrize("gold", [0, 1, 2])
def test_each_way_to_choose_takes_another(gold: int) -> None:
    """-4 in sum, -3 for a token, -2 for a byte are the best; for a character, it would be -3."""
    question = Choice("", "", ("a", "bcd", "\u00e9\u00e9\u00e9"), gold)
    scores = [Score(-4.0, 1, False), Score(-9.0, 3, False), Score(-12.0, 2, False)]
    assert tasks._right(question, scores) == (gold == 0, gold == 1, gold == 2)


# ---- batches ----


@pytest.mark.parametrize(("room", "rows"), [(1, 5), (100, 3), (300, 16), (10_000, 500)])
def test_no_bit_depends_on_the_batch(model, endings, monkeypatch, room: int, rows: int) -> None:
    expected = score(model, endings).scores
    monkeypatch.setattr(tasks, "_TOKENS", room)
    monkeypatch.setattr(tasks, "_ROWS", rows)
    assert score(model, endings).scores == expected
    assert score(model, endings[::-1]).scores == expected[::-1]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_no_bit_depends_on_threads_and_an_ending_is_scored_as_a_whole_text(endings, dtype) -> None:
    """Contexts that are shared and endings that are cut are what one pass over each text gives."""
    one, two = (GPTModel.from_pretrained(GOLDEN, dtype=dtype, threads=n) for n in (1, 2))
    found = score(one, endings).scores
    assert score(two, endings).scores == found
    for ending, each in zip(endings, found, strict=True):
        logits = one(np.concatenate([ending.context, ending.ids[:-1]])).logits[0]
        logits = logits[-len(ending.ids) :]
        sums = log_p(logits)[np.arange(len(ending.ids)), ending.ids].sum()
        assert math.isclose(each.log_p, sums, rel_tol=1e-6)
        assert each.greedy == (logits.argmax(axis=1) == ending.ids).all()


def test_a_context_is_read_once(model, tokenizer, monkeypatch) -> None:
    """Four choices of one question: the context, then the choices without their last tokens."""
    calls: list[list[int]] = []
    advance = GPTModel.advance

    def recorded(model, state, rows, ids, every=False):
        calls.append([len(each) for each in ids])
        return advance(model, state, rows, ids, every)

    monkeypatch.setattr(GPTModel, "advance", recorded)
    question = Choice("", "q" * 20, ("x", "xy", "xyz", "zz"), 0)
    found = choices(model, tokenizer, [question])
    assert calls[1:] == [[20], [1, 2, 3, 2]]  # after the warm-up; every letter is a token
    assert found.tokens == 20 + 8


def test_a_batch_has_room_for_its_longest(monkeypatch) -> None:
    monkeypatch.setattr(tasks, "_TOKENS", 30)
    monkeypatch.setattr(tasks, "_ROWS", 4)
    lengths = [50, 14, 13, 12, 7, 3, 3, 3, 3, 3, 20]
    made = [Continuation(np.ones(length, np.int64), np.ones(1, np.int64)) for length in lengths]
    batches = [[each.length for each in batch] for batch in tasks._batches(made)]
    assert batches == [[50], [14, 13], [12, 7], [3, 3, 3, 3], [3], [20]]


def test_progress_goes_to_the_end(model, tokenizer, words, monkeypatch) -> None:
    monkeypatch.setattr(tasks, "_TOKENS", 100)
    told: list[tuple[int, int]] = []
    found = last_words(model, tokenizer, words, lambda *numbers: told.append(numbers))
    assert len(told) > 3
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (found.tokens, found.tokens)


# ---- tokens ----


def test_tokens_are_those_of_the_whole_text(model, tokenizer) -> None:
    found = make_ending(tokenizer, model.config, "", "say h", "hello the")
    assert found.context.tolist() == tokenizer.encode("say h")
    assert found.ids.tolist() == tokenizer.encode(" hello the")


def test_a_long_context_is_cut_from_the_left(model, tokenizer) -> None:
    context = "".join(chr(97 + i % 26) for i in range(200))
    found = make_ending(tokenizer, model.config, "", context, "xyz")
    assert found.ids.tolist() == tokenizer.encode(" xyz")
    assert found.length == N_POSITIONS
    whole = tokenizer.encode(context)
    assert found.context.tolist() == whole[len(whole) - len(found.context) :]


def test_an_ending_as_long_as_the_context(model, tokenizer) -> None:
    longest = "x" * (N_POSITIONS - 1)  # and the space
    found = last_words(model, tokenizer, [LastWord("", "abc", longest)])
    assert found.tokens == N_POSITIONS
    with pytest.raises(InputError, match=r"a, line 3: an ending of 65 tokens, .* context is 64"):
        last_words(model, tokenizer, [LastWord("a, line 3", "abc", longest + "x")])


@pytest.mark.parametrize("evaluated", [last_words, choices])
def test_no_questions(model, tokenizer, evaluated) -> None:
    with pytest.raises(InputError, match="questions: none"):
        evaluated(model, tokenizer, [])


def test_logits_that_are_no_numbers(model, tokenizer, words, monkeypatch) -> None:
    def advance(model, state, rows, ids, every=False):
        return np.full((len(rows), model.config.vocab_size), np.nan, np.float32)

    monkeypatch.setattr(GPTModel, "advance", advance)
    with pytest.raises(CheckpointError, match="logits"):
        last_words(model, tokenizer, words)


# ---- a model that knows something ----


@pytest.fixture(scope="module")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the alphabet: after each letter the next, after z a space, then a.

    Its layers do nothing; a letter's embedding is a direction of its own, and the head has the
    next letter in this direction.
    """
    folder = tmp_path_factory.mktemp("alphabet")
    V = 256
    data = {
        "model_type": "gpt2",
        "n_layer": 1,
        "n_head": 1,
        "n_embd": V,
        "n_inner": 1,
        "n_positions": 32,
        "vocab_size": V,
        "activation_function": "gelu",
        "tie_word_embeddings": False,
    }
    shapes = tensor_shapes(GPTConfig.from_dict(data, "config"))
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors["lm_head.weight"] = np.zeros((V, V), np.float32)
    tensors["wte.weight"][:] = np.eye(V)
    tensors["ln_f.weight"][:] = 1
    row = " abcdefghijklmnopqrstuvwxyz"
    for this, following in zip(row, row[1:] + row[:1], strict=True):
        tensors["lm_head.weight"][ord(following), ord(this)] = 1
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    # ids that are bytes, so that ord of an ASCII letter is its id
    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def test_who_knows_the_alphabet_says_it(alphabet: Path) -> None:
    model, tokenizer = GPTModel.from_pretrained(alphabet), GPTTokenizer.from_pretrained(alphabet)
    asked = [("xyz", "a"), ("xyz", "abcde"), ("xyz", "abcdf"), ("xyz", "b"), ("xy", "a")]
    found = last_words(model, tokenizer, [LastWord("", *each) for each in asked])
    assert (found.questions, found.accuracy) == (5, 2 / 5)


def test_who_knows_the_alphabet_chooses_it(alphabet: Path) -> None:
    model, tokenizer = GPTModel.from_pretrained(alphabet), GPTTokenizer.from_pretrained(alphabet)
    answers = ("abcdefgh", "hgfedcba", "q", "abd")
    asked = [Choice("", "Question: z\nAnswer: z", answers, gold) for gold in (0, 0, 0, 1)]
    found = choices(model, tokenizer, asked)
    assert (found.accuracy, found.accuracy_per_token, found.accuracy_per_byte) == (0.75,) * 3
