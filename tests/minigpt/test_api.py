"""GPTModel as an application uses it: what it takes, what it refuses, and from how many threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import minigpt
from minigpt import GPTModel, MinigptError
from minigpt.errors import InputError, SourceError, short_repr

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
FOLDER = GOLDEN / "gelu-new"
ENDLESS = 10**5000  # Python refuses to write it in decimals
NO_OPTIONS = [True, b"2", -ENDLESS, np.zeros((30, 30)), "a\nb" * 99, object(), [[ENDLESS]]]


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return GPTModel.from_pretrained(FOLDER, threads=2)


def refused(error: type[MinigptError], call: Callable[[], object]) -> None:
    """The call ends in that error, whose message is one line, and not a long one."""
    with pytest.raises(error) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_the_public_names_are_there() -> None:
    assert set(minigpt.__all__) <= set(dir(minigpt))
    assert all(getattr(minigpt, name).__module__.startswith("minigpt.") for name in minigpt.__all__)
    with pytest.raises(AttributeError, match="GPTodel"):
        minigpt.GPTodel  # noqa: B018


# ---- arguments ----


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2, 3],
        (np.int8(1), 2, np.uint64(3)),
        np.array([1, 2, 3], ">i2"),
        np.array([1, 9, 2, 9, 3, 9], np.uint64)[::2],
        np.broadcast_to(np.array([1, 2, 3], np.uint8), (1, 3)),
    ],
    ids=["list", "scalars", "big-endian", "strided", "read-only"],
)
def test_integers_of_every_kind_are_the_same_ids(model: GPTModel, ids: object) -> None:
    expected = model(np.array([[1, 2, 3]])).logits
    assert expected.shape == (1, 3, model.config.vocab_size)
    assert model(ids).logits.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "ids",
    [[], [[1], [1, 2]], [1.0], [True], np.zeros((1, 1, 1), int), "1", None, [-1], [ENDLESS]],
    ids=short_repr,
)
def test_what_are_no_ids(model: GPTModel, ids: object) -> None:
    refused(InputError, lambda: model(ids))


@pytest.mark.parametrize("value", NO_OPTIONS, ids=short_repr)
@pytest.mark.parametrize(
    "name",
    ["max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "eos_token_id"],
)
def test_an_option_of_any_nonsense_is_told_in_a_line(
    model: GPTModel, name: str, value: object
) -> None:
    refused(InputError, lambda: model.generate([1], **{name: value}))
    refused(InputError, lambda: model.stream([1], **{name: value}))


@pytest.mark.parametrize("value", [*NO_OPTIONS, 0, -1, 257, 1.0, np.nan], ids=short_repr)
def test_what_is_no_number_of_threads(value: object) -> None:
    refused(InputError, lambda: GPTModel.from_pretrained(FOLDER, threads=value))


@pytest.mark.parametrize("value", [*NO_OPTIONS, None, "f8", "F32"], ids=short_repr)
def test_what_is_no_dtype(model: GPTModel, value: object, tmp_path: Path) -> None:
    refused(InputError, lambda: GPTModel.from_pretrained(FOLDER, dtype=value))
    refused(InputError, lambda: model.save_pretrained(tmp_path, dtype=value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value", [None, "", b"x", 3, ENDLESS, ["x"], "x\0", __file__], ids=short_repr
)
def test_what_is_no_folder(model: GPTModel, value: object) -> None:
    refused(SourceError, lambda: GPTModel.from_pretrained(value))
    refused(MinigptError, lambda: model.save_pretrained(value))


def test_threads_that_the_system_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(InputError, match=r"^threads 200: can't start.*; take fewer"):
        GPTModel.from_pretrained(FOLDER, threads=200)


def test_weights_that_do_not_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_weights(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("minigpt.api.load_weights", load_weights)
    with pytest.raises(SourceError, match="memory"):
        GPTModel.from_pretrained(FOLDER)


# ---- saving ----


@pytest.mark.parametrize("name", ["gelu-new", "unscaled-inverse-untied", "mup"])
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = GPTModel.from_pretrained(GOLDEN / name, dtype="f32", threads=1)
    model.save_pretrained(tmp_path / "new" / "folder")
    saved = GPTModel.from_pretrained(tmp_path / "new" / "folder", threads=1)
    assert (saved.config, saved.dtype) == (model.config, "f32")
    assert saved([1, 2, 3]).logits.tobytes() == model([1, 2, 3]).logits.tobytes()


def test_the_tokenizer_files_are_saved_along(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    (tmp_path / "merges.txt").write_bytes(b"h e\r\n")
    GPTModel.from_pretrained(tmp_path, threads=1).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "merges.txt").read_bytes() == b"h e\r\n"
    assert not (tmp_path / "saved" / "vocab.json").exists()


# ---- threads ----


def test_two_models_at_once_and_each_in_many_ways_at_once(model: GPTModel) -> None:
    models = [model, GPTModel.from_pretrained(FOLDER, threads=3)]
    expected = model.generate([1, 2], max_new_tokens=30, eos_token_id=None)
    logits = model(expected).logits.tobytes()
    wrong: list[str] = []

    def ask(model: GPTModel) -> None:
        for _ in range(3):
            options = {"max_new_tokens": 30, "eos_token_id": None}
            if model.generate([1, 2], **options).tolist() != expected.tolist():
                wrong.append("generate")
            if [1, 2, *model.stream([1, 2], **options)] != expected[0].tolist():
                wrong.append("stream")
            if model(expected).logits.tobytes() != logits:
                wrong.append("logits")

    threads = [threading.Thread(target=ask, args=(one,)) for one in models for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_models_and_streams_that_are_dropped_leave_no_threads() -> None:
    before = set(threading.enumerate())
    for close in (True, False):
        tokens = GPTModel.from_pretrained(FOLDER, threads=3).stream([1], max_new_tokens=9)
        next(tokens)
        workers = set(threading.enumerate()) - before
        assert workers
        if close:
            tokens.close()
        del tokens
        for worker in workers:
            worker.join(10)
        assert not any(worker.is_alive() for worker in workers)


def test_the_process_can_end_while_a_thread_generates() -> None:
    program = f"""
import threading
from minigpt import GPTModel
model = GPTModel.from_pretrained({str(FOLDER)!r}, threads=2)
tokens = model.stream([1], max_new_tokens=200)
next(tokens)
def forever():
    while True:
        model([1, 2, 3])
threading.Thread(target=forever, daemon=True).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# ---- loss and gradients ----


def test_the_loss_is_that_of_the_logits(model: GPTModel) -> None:
    """The mean over the targets that count; a list does, and so does one sequence."""
    ids = np.arange(24).reshape(2, 12)
    targets = (ids * 7 + 1) % model.config.vocab_size
    targets[1, 5:] = -100
    loss, grads = model.loss_and_grad(ids, targets)
    logits = model(ids).logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = targets != -100
    picked = np.take_along_axis(log_p, np.where(counted, targets, 0)[..., None], -1)[..., 0]
    assert loss == pytest.approx(-picked[counted].mean(), rel=1e-6)
    assert isinstance(loss, float)
    again, _ = model.loss_and_grad(ids.tolist(), targets.tolist())
    assert again == loss
    one, _ = model.loss_and_grad(ids[0], targets[0])
    assert one == pytest.approx(-picked[0].mean(), rel=1e-6)
    assert all(np.isfinite(grad).all() for grad in grads.values())


def test_gradients_are_the_callers_to_keep(model: GPTModel) -> None:
    ids = np.arange(8)[None]
    _, first = model.loss_and_grad(ids, ids)
    kept = {name: grad.copy() for name, grad in first.items()}
    _, second = model.loss_and_grad(ids, ids)
    for name, grad in first.items():
        np.testing.assert_array_equal(grad, kept[name])
        np.testing.assert_array_equal(second[name], kept[name])
        assert grad is not second[name]
        grad[:] = 0


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_gradient_of_whole_numbers_is_that_at_what_they_stand_for(
    tmp_path: Path, dtype: str
) -> None:
    whole = GPTModel.from_pretrained(FOLDER, dtype=dtype)
    whole.save_pretrained(tmp_path)
    ids = np.arange(16).reshape(2, 8)
    loss, grads = whole.loss_and_grad(ids, ids + 1)
    expected_loss, expected = GPTModel.from_pretrained(tmp_path).loss_and_grad(ids, ids + 1)
    assert loss == expected_loss
    for name, grad in expected.items():
        np.testing.assert_array_equal(grads[name], grad)


def test_bfloat16_products_give_nearly_the_gradient(model: GPTModel) -> None:
    ids = np.arange(16).reshape(2, 8)
    _, grads = GPTModel.from_pretrained(FOLDER, dtype="bf16").loss_and_grad(ids, ids + 1)
    _, exact = model.loss_and_grad(ids, ids + 1)
    for name, grad in exact.items():
        assert abs(grads[name] - grad).max() < 0.05 * abs(grad).max(), name


@pytest.mark.parametrize(
    "targets",
    [
        None,
        "text",
        [[1.5] * 3],
        [[True] * 3],
        [[1, 2]],
        [[1, 2, 3]] * 2,
        [[1, 2], [3]],
        [[-100] * 3],
        [[-1, 0, 0]],
        [[0, 0, 10**6]],
        [[0, 0, ENDLESS]],
        np.zeros((1, 3, 1), np.int64),
    ],
)
def test_targets_that_are_none_are_refused(model: GPTModel, targets: object) -> None:
    refused(InputError, lambda: model.loss_and_grad([[1, 2, 3]], targets))


def test_ids_are_checked_as_everywhere(model: GPTModel) -> None:
    for ids in ([[]], [[-1]], [[model.config.vocab_size]], [[0] * (model.config.n_positions + 1)]):
        refused(InputError, lambda ids=ids: model.loss_and_grad(ids, ids))
