"""Perplexity and divergence: each token is scored once, from the right context, as in NumPy.

The model gelu-new has no token that begins a text; `started` is the same with one.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from minigpt import GPTModel, GPTTokenizer
from minigpt.errors import CheckpointError, InputError
from minigpt.evaluation import perplexity as perplexity_module
from minigpt.evaluation.perplexity import (
    Windows,
    combined,
    common_ids,
    compare,
    count_words,
    perplexity,
    scored_text,
)
from minigpt.model.engine import Engine
from minigpt.tokenizer.bpe import byte_symbols

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
V = 257  # of gelu-new, whose n_positions are 300
START = 256


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return GPTModel.from_pretrained(GOLDEN / "gelu-new", threads=2)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> GPTModel:
    folder = tmp_path_factory.mktemp("started")
    shutil.copy(GOLDEN / "gelu-new" / "model.safetensors", folder)
    config = json.loads((GOLDEN / "gelu-new" / "config.json").read_text(encoding="utf-8"))
    config |= {"bos_token_id": START, "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return GPTModel.from_pretrained(folder, threads=1)


@pytest.fixture(scope="module")
def narrow() -> GPTModel:
    return GPTModel.from_pretrained(GOLDEN / "gelu-new", dtype="bf16", threads=1)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(3).integers(0, V, 250)


def log_p(logits: np.ndarray) -> np.ndarray:
    """float64 [n, V]: ln of the softmax, by its definition."""
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def log_p_of(model: GPTModel, ids: np.ndarray) -> np.ndarray:
    """log_p after every token but the last, of a text that fits the context."""
    return log_p(model(ids).logits[0])[:-1]


def contexts(length: int, window: int, stride: int) -> list[range]:
    """The tokens that each token after the first is predicted from."""
    found = []
    for t in range(1, length):
        windows_before = max(0, math.ceil((t - window) / stride))
        found.append(range(windows_before * stride, t))
    return found


# ---- perplexity ----


@pytest.mark.parametrize("length", [2, 3, 129, 130, 250])
def test_perplexity_of_a_text_within_the_window_is_its_formula(model, ids, length) -> None:
    text = ids[:length]
    nats = -log_p_of(model, text)[np.arange(length - 1), text[1:]]
    found = perplexity(model, text, 1000)
    assert (found.dtype, found.tokens, found.bytes) == ("f32", length - 1, 1000)
    assert (found.window, found.stride) == (300, 150)
    assert math.isclose(found.nats_per_token, nats.mean(), rel_tol=1e-6)
    assert math.isclose(found.perplexity, np.exp(nats.mean()), rel_tol=1e-6)
    assert math.isclose(found.bits_per_byte, nats.sum() / np.log(2) / 1000, rel_tol=1e-6)
    assert found.seconds > 0
    assert math.isclose(found.tokens_per_s, found.tokens / found.seconds)


@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 60])
@pytest.mark.parametrize("stride", [1, 5, 8, 15, 16])
def test_each_token_is_predicted_from_the_context_of_its_window(model, ids, length, stride) -> None:
    nats = [
        -log_p(model(ids[context]).logits[0])[-1, ids[context.stop]]
        for context in contexts(length, 16, stride)
    ]
    found = perplexity(model, ids[:length], 1, window=16, stride=stride)
    assert (found.tokens, found.window, found.stride) == (length - 1, 16, stride)
    assert math.isclose(found.nats_per_token, np.mean(nats), rel_tol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 60, 299, 300])
def test_the_first_token_follows_the_start_token(model, started, ids, length) -> None:
    """A text as long as the context fits one window: only its last token is not read."""
    sequence = np.concatenate([[START], ids, ids])[: length + 1]
    logits = model(sequence[:-1]).logits[0]
    nats = -log_p(logits)[np.arange(length), sequence[1:]]
    found = perplexity(started, sequence[1:], 1000)
    assert found.tokens == length
    assert math.isclose(found.nats_per_token, nats.mean(), rel_tol=1e-6)
    assert math.isclose(found.bits_per_byte, nats.sum() / np.log(2) / 1000, rel_tol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(16, 5), (16, 16), (1, 1)])
def test_windows_begin_with_the_start_token(started, ids, window, stride) -> None:
    sequence = np.concatenate([[START], ids[:50]])
    nats = [
        -log_p(started(sequence[context]).logits[0])[-1, sequence[context.stop]]
        for context in contexts(51, window, stride)
    ]
    found = perplexity(started, ids[:50], 1, window=window, stride=stride)
    assert found.tokens == 50
    assert math.isclose(found.nats_per_token, np.mean(nats), rel_tol=1e-6)


def test_an_empty_text_is_an_error(started) -> None:
    with pytest.raises(InputError, match="ids: empty; a text needs at least 1 token"):
        perplexity(started, [], 1)


def test_bytes_and_bits_are_of_the_same_tokens(tmp_path: Path, model, started) -> None:
    """Without a start token the bytes of the first token do not count, even half a character."""
    bpe = tokenizer(tmp_path / "t", ["h e"])
    for text, rest in (("hex", b"x"), ("\u00e9a", b"\xa9a"), ("x", b""), ("", b"")):
        ids = bpe.encode(text, return_tensors="np")[0]
        assert scored_text(bpe, model.config, text, ids) == rest
        assert scored_text(bpe, started.config, text, ids) == text.encode()


# ---- rolling windows ----


def harness_windows(length: int, window: int) -> list[tuple[range, range]]:
    """(tokens read, tokens predicted) by the harness's rule, counted from the first of the text.

    Token −1 is the start token. The first window predicts as many as fit; each further one the
    next `window` tokens, and is filled with earlier ones on the left.
    """
    found = [(range(-1, min(window, length) - 1), range(min(window, length)))]
    while (done := found[-1][1].stop) < length:
        end = min(done + window, length)
        found.append((range(end - window - 1, end - 1), range(done, end)))
    return found


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 60])
def test_rolling_windows_are_those_of_the_harness(started, ids, length) -> None:
    sequence = np.concatenate([[START], ids[:length]])
    windows = harness_windows(length, 16)
    read = [range(begin, end) for begin, _, end in Windows("rolling", 16, 16).of(length)]
    assert read == [range(each.start + 1, each.stop + 1) for each, _ in windows]
    nats = 0.0
    for each, predicted in windows:
        logits = log_p(started(sequence[each.start + 1 : each.stop + 1]).logits[0])
        targets = sequence[predicted.start + 1 : predicted.stop + 1]
        nats -= logits[-len(targets) :][np.arange(len(targets)), targets].sum()
    found = perplexity(started, ids[:length], 100, 16, words=7, rolling=True)
    assert (found.method, found.window, found.stride, found.words) == ("rolling", 16, 16, 7)
    assert math.isclose(found.nats_per_token * length, nats, rel_tol=1e-6)
    assert math.isclose(found.word_perplexity, np.exp(nats / 7), rel_tol=1e-5)
    assert math.isclose(found.byte_perplexity, np.exp(nats / 100), rel_tol=1e-5)


def test_without_a_start_token_rolling_windows_begin_after_the_first(model, started, ids) -> None:
    text = ids[:40]
    plain = perplexity(model, np.concatenate([[START], text]), 9, 16, rolling=True)
    expected = perplexity(started, text, 9, 16, rolling=True)
    assert (plain.tokens, plain.nats_per_token) == (expected.tokens, expected.nats_per_token)


@pytest.mark.parametrize("text", ["", " ", "a", "a b", " a\n\nb ", "a\u00a0b\u2003c"])
def test_words_are_counted_as_the_harness_does(text: str) -> None:
    assert count_words(text) == len(re.split(r"\s+", text))


def test_a_word_perplexity_that_overflows_is_none(model, ids) -> None:
    found = perplexity(model, ids, 1000, words=1)
    assert found.nats_per_token * found.tokens > 710
    assert found.word_perplexity is None
    assert perplexity(model, ids, 1000).word_perplexity is None


def test_contexts_have_the_documented_sizes() -> None:
    sizes = [len(context) for context in contexts(60, 16, 5)]
    assert sizes[:16] == list(range(1, 17))
    assert set(sizes[16:]) == set(range(16 - 5 + 1, 17))
    assert {len(context) for context in contexts(60, 16, 1)[15:]} == {16}


def test_context_is_read_without_logits_and_the_rest_in_chunks(
    model, monkeypatch: pytest.MonkeyPatch, ids
) -> None:
    """A chunk has at most MAX_LOGITS tokens, which bounds the memory."""
    monkeypatch.setattr(perplexity_module, "MAX_LOGITS", 40)
    calls: list[tuple[int, int, bool]] = []
    forward = Engine.forward

    def recorded(engine, cache, slots, ids, last=1):
        calls.append((int(cache.lengths[0]), len(ids[0]), last is None))
        return forward(engine, cache, slots, ids, last)

    monkeypatch.setattr(Engine, "forward", recorded)
    perplexity(model, ids[:201], 1, window=100, stride=70)
    assert calls[1:] == [  # after the warm-up
        (0, 40, True), (40, 40, True), (80, 20, True),
        (0, 30, False), (30, 40, True), (70, 30, True),
        (0, 30, False), (30, 30, True),
    ]  # fmt: skip


def test_the_default_stride_is_half_the_window(model, ids) -> None:
    assert perplexity(model, ids, 1, window=33).stride == 16
    assert perplexity(model, ids[:9], 1, window=1).stride == 1


def test_progress_increases_to_the_total(model, ids) -> None:
    calls: list[tuple[int, int]] = []
    perplexity(model, ids, 1, 100, 50, lambda done, total: calls.append((done, total)))
    done = [number for number, _ in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (249, 249)


@pytest.mark.parametrize(
    "ids", [[1, 2, 3], (np.int8(1), 2, 3), np.array([1, 9, 2, 9, 3], np.uint64)[::2]]
)
def test_ids_may_be_a_list_a_tuple_or_an_array(model, ids) -> None:
    expected = perplexity(model, np.array([1, 2, 3]), 1).perplexity
    assert perplexity(model, ids, 1).perplexity == expected


def test_combined_perplexity_weighs_texts_by_their_tokens(model, ids) -> None:
    parts = [perplexity(model, ids[:30], 50), perplexity(model, ids[30:130], 150)]
    total = combined(parts)
    nats = sum(part.tokens * part.nats_per_token for part in parts)
    assert (total.tokens, total.bytes) == (29 + 99, 200)
    assert math.isclose(total.perplexity, math.exp(nats / 128))
    assert math.isclose(total.bits_per_byte, nats / math.log(2) / 200)
    assert math.isclose(total.tokens_per_s, 128 / sum(part.seconds for part in parts))


@pytest.mark.parametrize(
    ("word", "wrong"),
    [
        ("empty; a text needs at least 2 tokens", {"ids": []}),
        ("1 token; a text needs at least 2 tokens", {"ids": [5]}),
        ("257", {"ids": [5, 257]}),
        ("-1", {"ids": [5, -1]}),
        ("ids", {"ids": [0.5, 1.0]}),
        ("ids", {"ids": [[1, 2], [3]]}),
        ("ids", {"ids": np.ones((2, 2), int)}),
        ("ids", {"ids": [5, 10**30]}),
        ("ids", {"ids": [True, False]}),
        ("ids", {"ids": "text"}),
        ("text_bytes", {"text_bytes": 0}),
        ("window", {"window": 0}),
        ("window 301: must be an integer from 1 to 300", {"window": 301}),
        ("window", {"window": 1.0}),
        ("stride", {"stride": 0}),
        ("stride 17: must be an integer from 1 to 16", {"window": 16, "stride": 17}),
        ("stride", {"stride": True}),
        ("text_bytes", {"text_bytes": 10**400}),
        ("words 0: must be an integer from 1", {"words": 0}),
        ("rolling 1: must be True or False", {"rolling": 1}),
        ("stride: rolling windows have none", {"rolling": True, "stride": 4}),
        ("model 5: must be a GPTModel", {"model": 5}),
        ("progress 5: must be a function or None", {"progress": 5}),
    ],
)
def test_wrong_arguments_raise_input_error(model, word: str, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=word) as caught:
        perplexity(**({"model": model, "ids": [1, 2, 3], "text_bytes": 3} | wrong))
    assert "\n" not in str(caught.value)


def test_compare_takes_two_models(model) -> None:
    for a, b, name in ((None, model, "a"), (model, None, "b"), (model, "folder", "b")):
        with pytest.raises(InputError, match=f"^{name} .*: must be a GPTModel"):
            compare(a, b, [1, 2, 3])
    with pytest.raises(InputError, match=r"^progress 0: must be a function or None"):
        compare(model, model, [1, 2, 3], progress=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_raise_checkpoint_error(
    model, value, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(engine, cache, slots, ids, last=1):
        logits = np.zeros((len(ids[0]), V), np.float32)
        logits[-1, 7] = value
        return logits

    monkeypatch.setattr(Engine, "forward", forward)
    with pytest.raises(CheckpointError, match="logits"):
        perplexity(model, [1, 2, 3], 3)
    with pytest.raises(CheckpointError, match="logits"):
        compare(model, model, [1, 2, 3])


@pytest.mark.parametrize(("size", "nats"), [(300, 300), (1000, None), (1e38, None)])
def test_logits_of_any_size_overflow_only_in_the_result(
    model, size, nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A perplexity that overflows float64 is an error; nothing overflows before."""

    def forward(engine, cache, slots, ids, last=1):
        logits = np.full((len(ids[0]), V), -size, np.float32)
        logits[:, 7] = 0
        return logits

    monkeypatch.setattr(Engine, "forward", forward)
    if nats:
        assert perplexity(model, [1, 2, 3], 3).nats_per_token == nats
    else:
        with pytest.raises(CheckpointError, match=r"perplexity: overflows at .* nats per token"):
            perplexity(model, [1, 2, 3], 3)


# ---- compare ----


def test_a_model_does_not_diverge_from_itself(model, ids) -> None:
    found = compare(model, GPTModel.from_pretrained(GOLDEN / "gelu-new", threads=1), ids, 100)
    alone = perplexity(model, ids, 1, 100)
    assert (found.kl_mean, found.kl_p99, found.kl_max, found.top1_agreement) == (0, 0, 0, 1)
    assert found.perplexity_a == found.perplexity_b == alone.perplexity
    assert found.perplexity_change_percent == 0
    assert (found.window, found.stride, found.tokens) == (100, 50, 249)


def test_divergence_is_its_formula(model, narrow, ids) -> None:
    a, b = log_p_of(model, ids), log_p_of(narrow, ids)
    kl = (np.exp(a) * (a - b)).sum(axis=1)
    assert kl.max() > 1e-5  # else the test would prove nothing
    found = compare(model, narrow, ids)
    assert (found.dtype_a, found.dtype_b) == ("f32", "bf16")
    assert math.isclose(found.kl_mean, kl.mean(), rel_tol=1e-2, abs_tol=1e-7)
    assert math.isclose(found.kl_p99, np.percentile(kl, 99), rel_tol=1e-2, abs_tol=1e-7)
    assert math.isclose(found.kl_max, kl.max(), rel_tol=1e-2, abs_tol=1e-7)
    assert found.top1_agreement == (a.argmax(axis=1) == b.argmax(axis=1)).mean()


def test_compare_and_perplexity_agree(model, narrow, ids) -> None:
    calls: list[tuple[int, int]] = []
    found = compare(model, narrow, ids, 60, 20, lambda *numbers: calls.append(numbers))
    a, b = (perplexity(each, ids, 1, 60, 20).perplexity for each in (model, narrow))
    assert math.isclose(found.perplexity_a, a)
    assert math.isclose(found.perplexity_b, b)
    assert math.isclose(found.perplexity_change_percent, 100 * (b / a - 1), abs_tol=1e-9)
    assert calls[-1] == (249, 249)


def test_compare_scores_the_first_token_where_both_models_have_a_start_token(
    model, started, ids
) -> None:
    both, one = compare(started, started, ids[:20]), compare(model, started, ids[:20])
    assert (both.tokens, one.tokens, compare(started, model, ids[:20]).tokens) == (20, 19, 19)
    assert both.perplexity_a == perplexity(started, ids[:20], 1).perplexity
    assert one.perplexity_b == perplexity(model, ids[:20], 1).perplexity
    assert compare(started, started, ids[:1]).tokens == 1


def test_models_of_other_sizes_are_compared_within_the_shorter_context(ids) -> None:
    """The contexts are 219 and 256; swapping the models swaps the results."""
    names = ("cerebras", "silu-f16")
    a, b = (GPTModel.from_pretrained(GOLDEN / name, threads=1) for name in names)
    text = ids[:219] % 97
    one, other = compare(a, b, text), compare(b, a, text)
    assert one.window == other.window == 219
    assert one.perplexity_a == other.perplexity_b
    assert one.top1_agreement == other.top1_agreement < 1
    p, q = log_p_of(a, text), log_p_of(b, text)
    assert math.isclose(one.kl_mean, (np.exp(p) * (p - q)).sum(axis=1).mean(), rel_tol=1e-5)
    assert math.isclose(other.kl_mean, (np.exp(q) * (q - p)).sum(axis=1).mean(), rel_tol=1e-5)


def test_models_of_other_vocabularies_raise_input_error(model) -> None:
    other = GPTModel.from_pretrained(GOLDEN / "cerebras", threads=1)
    with pytest.raises(InputError, match="257 and 97"):
        compare(model, other, [1, 2, 3])


def test_wrong_arguments_of_compare_raise_input_error(model) -> None:
    with pytest.raises(InputError, match="1 token"):
        compare(model, model, [1])
    with pytest.raises(InputError, match="window"):
        compare(model, model, [1, 2], window=301)


# ---- tokenizers ----


def tokenizer(folder: Path, merges: list[str]) -> GPTTokenizer:
    """A tokenizer of the 256 bytes and these merges."""
    folder.mkdir()
    tokens = [*byte_symbols(), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    return GPTTokenizer.from_pretrained(folder)


def test_common_ids_names_the_first_token_that_differs(tmp_path: Path) -> None:
    a, b = tokenizer(tmp_path / "a", ["h e"]), tokenizer(tmp_path / "b", ["h e", "x y"])
    assert common_ids(a, b, "he x") == a.encode("he x")
    with pytest.raises(InputError, match="from token 2 on"):
        common_ids(a, b, "he xy")
    with pytest.raises(InputError, match="from token 1 on"):
        common_ids(tokenizer(tmp_path / "c", ["h e", "he l"]), a, "xhel")
