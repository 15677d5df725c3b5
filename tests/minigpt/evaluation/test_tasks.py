"""Accuracy on tasks: ln p equals that of transformers, and is bit-equal in any batch."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from minigpt import GPTModel, GPTTokenizer
from minigpt.checkpoint import write_safetensors
from minigpt.config import GPTConfig
from minigpt.errors import CheckpointError, InputError, MinigptWarning
from minigpt.evaluation import tasks
from minigpt.evaluation.task_files import Choice, ContextChoice, LastWord, read_task_file
from minigpt.evaluation.tasks import (
    Continuation,
    Score,
    last_word_accuracy,
    make_continuation,
    multiple_choice,
    score,
)
from minigpt.model.engine import Engine
from minigpt.tokenizer.bpe import byte_symbols
from minigpt.weights.table import tensor_shapes

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tasks"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
N_POSITIONS = 64
END = 265  # <|endoftext|> of the tokenizer; the model's config does not name it


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return GPTModel.from_pretrained(GOLDEN, threads=2)


@pytest.fixture(scope="module")
def tokenizer() -> GPTTokenizer:
    return GPTTokenizer.from_pretrained(GOLDEN)


@pytest.fixture(scope="module")
def words() -> list[LastWord]:
    return read_task_file(str(GOLDEN / "words.jsonl"))


@pytest.fixture(scope="module")
def questions() -> list[Choice]:
    return read_task_file(str(GOLDEN / "choices.jsonl"))


@pytest.fixture(scope="module")
def continuations(model, tokenizer, words, questions) -> list[Continuation]:
    """The continuations of both files, in the order of EXPECTED."""
    texts = [(word.where, word.context, word.word) for word in words]
    texts += [(each.where, each.context, choice) for each in questions for choice in each.choices]
    return [make_continuation(tokenizer, model.config, *text) for text in texts]


def log_p(logits: np.ndarray) -> np.ndarray:
    """float64 [n, V]: ln of the softmax, by its definition."""
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# ---- against transformers ----


def test_scores_equal_those_of_transformers(model, continuations) -> None:
    result = score(model, continuations).scores
    expected = EXPECTED["words"] + EXPECTED["choices"]
    assert [(each.tokens, each.greedy) for each in result] == [(n, g) for _, n, g in expected]
    np.testing.assert_allclose([each.log_p for each in result], [p for p, _, _ in expected], 1e-5)


def test_last_word_accuracy_equals_that_of_transformers(model, tokenizer, words) -> None:
    result = last_word_accuracy(model, tokenizer, words)
    right = [greedy for _, _, greedy in EXPECTED["words"]]
    assert (result.dtype, result.questions, result.accuracy) == ("f32", 8, sum(right) / 8)
    assert 0 < result.accuracy < 1
    assert math.isclose(
        result.standard_error, math.sqrt(result.accuracy * (1 - result.accuracy) / 7)
    )
    mean = sum(log_p for log_p, _, _ in EXPECTED["words"]) / 8
    assert math.isclose(result.perplexity, math.exp(-mean), rel_tol=1e-4)
    assert math.isclose(result.tokens_per_s, result.tokens / result.seconds)


def test_multiple_choice_accuracy_equals_that_of_transformers(model, tokenizer, questions) -> None:
    """By all four ways to choose, of which three have accuracies that differ here."""
    result = multiple_choice(model, tokenizer, questions)
    scores = iter(EXPECTED["choices"])
    right = np.zeros(4)
    for each in questions:
        sums, tokens, _ = zip(*(next(scores) for _ in each.choices), strict=True)
        sizes = [len(choice.encode()) for choice in each.choices]
        characters = [len(choice) for choice in each.choices]
        for way, divisors in enumerate(([1] * len(sums), tokens, sizes, characters)):
            measure = [p / n for p, n in zip(sums, divisors, strict=True)]
            right[way] += measure.index(max(measure)) == each.gold
    accuracies = [
        result.accuracy,
        result.accuracy_per_token,
        result.accuracy_per_byte,
        result.accuracy_per_character,
    ]
    assert accuracies == (right / len(questions)).tolist()
    assert len(set(accuracies)) == 3
    errors = [
        result.standard_error,
        result.standard_error_per_token,
        result.standard_error_per_byte,
        result.standard_error_per_character,
    ]
    for p, error in zip(accuracies, errors, strict=True):
        assert math.isclose(error, math.sqrt(p * (1 - p) / (len(questions) - 1)))


def test_the_ways_to_choose_differ() -> None:
    """The best are -4 by sum, -3 per token and per character, -2 per byte."""
    question = Choice("", "", ("a", "bcd", "\u00e9\u00e9\u00e9"), 0)
    scores = [Score(-4.0, 1, False), Score(-9.0, 3, False), Score(-12.0, 2, False)]
    assert tasks.chosen_by(question, scores) == (0, 1, 2, 1)


def test_one_question_has_no_standard_error(model, tokenizer, words, questions) -> None:
    assert last_word_accuracy(model, tokenizer, words[:1]).standard_error is None
    assert multiple_choice(model, tokenizer, questions[:1]).standard_error_per_byte is None


# ---- without a context ----


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> GPTModel:
    """The same model with the token <|endoftext|> as the one that begins a text."""
    folder = tmp_path_factory.mktemp("started")
    shutil.copy(GOLDEN / "model.safetensors", folder)
    config = json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": END}))
    return GPTModel.from_pretrained(folder, threads=1)


def test_a_choice_without_a_context_follows_the_start_token(started, tokenizer) -> None:
    """Without a space before it; the choice is the one that is more probable by hand."""
    texts = ("hello the", "the hello", "a")
    sums = []
    for text in texts:
        ids = [END, *tokenizer.encode(text)]
        sums.append(log_p(started(ids).logits[0])[np.arange(len(ids) - 1), ids[1:]].sum())
    for gold in range(3):
        result = multiple_choice(started, tokenizer, [Choice("", "", texts, gold)])
        assert result.accuracy == (sums.index(max(sums)) == gold)
    made = [make_continuation(tokenizer, started.config, "", "", text) for text in texts]
    np.testing.assert_allclose([each.log_p for each in score(started, made).scores], sums, 1e-5)


def test_a_text_that_begins_with_the_start_token_does_not_get_another(started, tokenizer) -> None:
    made = make_continuation(tokenizer, started.config, "", "", "<|endoftext|>a", True)
    assert (made.context.tolist(), made.ids.tolist()) == ([END], tokenizer.encode("a"))
    made = make_continuation(tokenizer, started.config, "", "", "<|endoftext|>a")
    assert len(made.ids) > 5  # plain text


def test_without_a_start_token_the_first_token_is_the_context(model, tokenizer) -> None:
    made = make_continuation(tokenizer, model.config, "", "", "hello the")
    assert made.context.tolist() == tokenizer.encode("hello")
    assert made.ids.tolist() == tokenizer.encode(" the")


def test_questions_that_leave_nothing_to_score_are_counted(model, tokenizer) -> None:
    asked = [LastWord("a, line 1", "say", "hello"), LastWord("a, line 2", "", "hello")]
    with pytest.warns(MinigptWarning, match="a, line 1: 1 of 2 questions left out"):
        result = last_word_accuracy(model, tokenizer, asked)
    assert result.questions == 1
    with pytest.raises(InputError, match="a, line 2: no question can be scored"):
        last_word_accuracy(model, tokenizer, asked[1:])


def test_white_space_after_a_context_belongs_to_the_continuation(model, tokenizer) -> None:
    """As in the harness: the context's own tokens are those without it."""
    made = make_continuation(tokenizer, model.config, "", "say ", "hello")
    assert made.context.tolist() == tokenizer.encode("say")
    assert tokenizer.decode(made.ids) == "  hello"


def test_contexts_to_choose_from_share_a_continuation(started, tokenizer) -> None:
    """ln p of the rest of the sentence after each option, by hand."""
    question = ContextChoice("", ("say hello", "say a"), "the law", 0)
    sums = []
    for context in question.contexts:
        before, ids = tokenizer.encode(context), tokenizer.encode(f"{context} the law")
        logits = log_p(started(ids).logits[0])
        rest = np.arange(len(before), len(ids))
        sums.append(logits[rest - 1, np.array(ids)[rest]].sum())
    result = multiple_choice(started, tokenizer, [question])
    assert result.accuracy == (sums[0] > sums[1])
    assert multiple_choice(started, tokenizer, [question._replace(gold=1)]).accuracy == (
        sums[1] > sums[0]
    )


# ---- batches ----


@pytest.mark.parametrize(("capacity", "max_logits"), [(1, 5), (100, 3), (300, 16), (10_000, 500)])
def test_scores_are_bit_equal_in_any_batch(
    model, continuations, monkeypatch, capacity: int, max_logits: int
) -> None:
    expected = score(model, continuations).scores
    monkeypatch.setattr(tasks, "_CACHE_TOKENS", capacity)
    monkeypatch.setattr(tasks, "MAX_LOGITS", max_logits)
    assert score(model, continuations).scores == expected
    assert score(model, continuations[::-1]).scores == expected[::-1]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_scores_are_bit_equal_for_any_threads_and_those_of_one_pass(continuations, dtype) -> None:
    """Shared contexts and continuations cut into chunks give the scores of a plain forward."""
    one, two = (GPTModel.from_pretrained(GOLDEN, dtype=dtype, threads=n) for n in (1, 2))
    result = score(one, continuations).scores
    assert score(two, continuations).scores == result
    for continuation, each in zip(continuations, result, strict=True):
        logits = one(np.concatenate([continuation.context, continuation.ids[:-1]])).logits[0]
        logits = logits[-len(continuation.ids) :]
        sums = log_p(logits)[np.arange(len(continuation.ids)), continuation.ids].sum()
        assert math.isclose(each.log_p, sums, rel_tol=1e-6)
        assert each.greedy == (logits.argmax(axis=1) == continuation.ids).all()


def test_a_shared_context_is_read_once(model, tokenizer, monkeypatch) -> None:
    """Four choices of a question: first the context, then the choices without their last tokens."""
    calls: list[list[int]] = []
    forward = Engine.forward

    def recorded(engine, cache, slots, ids, last=1):
        calls.append([len(each) for each in ids])
        return forward(engine, cache, slots, ids, last)

    monkeypatch.setattr(Engine, "forward", recorded)
    question = Choice("", "q" * 20, ("x", "xy", "xyz", "zz"), 0)
    result = multiple_choice(model, tokenizer, [question])
    assert calls[1:] == [[20], [1, 2, 3, 2]]  # after the warm-up; every letter is a token
    assert result.tokens == 20 + 8


def test_batches_fit_the_cache(monkeypatch) -> None:
    monkeypatch.setattr(tasks, "_CACHE_TOKENS", 30)
    monkeypatch.setattr(tasks, "MAX_LOGITS", 4)
    lengths = [50, 14, 13, 12, 7, 3, 3, 3, 3, 3, 20]
    made = [Continuation(np.ones(length, np.int64), np.ones(1, np.int64)) for length in lengths]
    batches = [[each.length for each in batch] for batch in tasks._batches(made)]
    assert batches == [[50], [14, 13], [12, 7], [3, 3, 3, 3], [3], [20]]


def test_progress_increases_to_the_total(model, tokenizer, words, monkeypatch) -> None:
    monkeypatch.setattr(tasks, "_CACHE_TOKENS", 100)
    calls: list[tuple[int, int]] = []
    result = last_word_accuracy(model, tokenizer, words, lambda *numbers: calls.append(numbers))
    assert len(calls) > 3
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (result.tokens, result.tokens)


# ---- tokens ----


def test_context_and_word_are_tokenized_together(model, tokenizer) -> None:
    result = make_continuation(tokenizer, model.config, "", "say h", "hello the")
    assert result.context.tolist() == tokenizer.encode("say h")
    assert result.ids.tolist() == tokenizer.encode(" hello the")


def test_a_long_context_is_truncated_on_the_left(model, tokenizer) -> None:
    context = "".join(chr(97 + i % 26) for i in range(200))
    result = make_continuation(tokenizer, model.config, "", context, "xyz")
    assert result.ids.tolist() == tokenizer.encode(" xyz")
    assert result.length == N_POSITIONS
    ids = tokenizer.encode(context)
    assert result.context.tolist() == ids[len(ids) - len(result.context) :]


def test_a_word_may_be_as_long_as_the_context(model, tokenizer) -> None:
    longest = "x" * (N_POSITIONS - 1)  # and the space
    result = last_word_accuracy(model, tokenizer, [LastWord("", "abc", longest)])
    assert result.tokens == N_POSITIONS
    with pytest.raises(
        InputError, match=r"a, line 3: a continuation of 65 tokens, .* context is 64"
    ):
        last_word_accuracy(model, tokenizer, [LastWord("a, line 3", "abc", longest + "x")])


@pytest.mark.parametrize("evaluated", [last_word_accuracy, multiple_choice])
def test_no_questions_is_an_error(model, tokenizer, evaluated) -> None:
    with pytest.raises(InputError, match="questions: none"):
        evaluated(model, tokenizer, [])


@pytest.mark.parametrize("questions", [None, 5, b"x", "x", [5], {}])
@pytest.mark.parametrize("evaluated", [last_word_accuracy, multiple_choice])
def test_questions_of_another_kind_are_an_error(model, tokenizer, evaluated, questions) -> None:
    with pytest.raises(InputError, match=r"^questions .*: must be a list of (LastWord|Choice)"):
        evaluated(model, tokenizer, questions)
    with pytest.raises(InputError, match=r"^model None: must be a GPTModel"):
        evaluated(None, tokenizer, [])
    with pytest.raises(InputError, match=r"^tokenizer 5: must be a GPTTokenizer"):
        evaluated(model, 5, [])


def test_logits_that_are_not_finite_raise_checkpoint_error(
    model, tokenizer, words, monkeypatch
) -> None:
    def forward(engine, cache, slots, ids, last=1):
        return np.full((len(slots), engine.config.vocab_size), np.nan, np.float32)

    monkeypatch.setattr(Engine, "forward", forward)
    with pytest.raises(CheckpointError, match="logits"):
        last_word_accuracy(model, tokenizer, words)


# ---- a model with known answers ----


@pytest.fixture(scope="module")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that predicts the alphabet: after each letter the next, after z a space, then a.

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


def test_the_alphabet_model_writes_the_alphabet(alphabet: Path) -> None:
    model, tokenizer = GPTModel.from_pretrained(alphabet), GPTTokenizer.from_pretrained(alphabet)
    asked = [("xyz", "a"), ("xyz", "abcde"), ("xyz", "abcdf"), ("xyz", "b"), ("xy", "a")]
    result = last_word_accuracy(model, tokenizer, [LastWord("", *each) for each in asked])
    assert (result.questions, result.accuracy) == (5, 2 / 5)


def test_the_alphabet_model_chooses_the_alphabet(alphabet: Path) -> None:
    model, tokenizer = GPTModel.from_pretrained(alphabet), GPTTokenizer.from_pretrained(alphabet)
    answers = ("abcdefgh", "hgfedcba", "q", "abd")
    asked = [Choice("", "Question: z\nAnswer: z", answers, gold) for gold in (0, 0, 0, 1)]
    result = multiple_choice(model, tokenizer, asked)
    assert (result.accuracy, result.accuracy_per_token, result.accuracy_per_byte) == (0.75,) * 3
