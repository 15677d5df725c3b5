"""GPTModel and the package as applications use them: arguments, errors, threads."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from constant_model import constant_model
from tiny_tokenizer import byte_tokenizer

import minigpt
from minigpt import GPTModel, MinigptError, Scheduler, TextStream
from minigpt.errors import CheckpointError, InputError, SourceError, short_repr
from minigpt.generation.sampler import SamplingParams
from minigpt.tokenizer.files import read_vocabulary
from minigpt.tokenizer.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
FOLDER = GOLDEN / "gelu-new"
ENDLESS = 10**5000  # Python refuses to write it in decimals
NOT_OPTIONS = [True, b"2", -ENDLESS, np.zeros((30, 30)), "a\nb" * 99, object(), [[ENDLESS]]]


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return GPTModel.from_pretrained(FOLDER, threads=2)


def refused(error: type[MinigptError], call: Callable[[], object]) -> None:
    """The call raises that error, with a message of one short line."""
    with pytest.raises(error) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


# ---- the package ----


@pytest.mark.parametrize("name", minigpt.__all__)
def test_a_public_name_is_documented_with_its_errors(name: str) -> None:
    """Its docstring, or those of its methods, say which errors it raises."""
    public = getattr(minigpt, name)
    assert public.__module__.startswith("minigpt.")
    assert public.__doc__
    assert len(public.__doc__.splitlines()[0]) <= 100
    if name == "TrainingConfig" or (isinstance(public, type) and issubclass(public, Exception)):
        return  # a plain dataclass, which `train` checks, and the errors themselves
    methods = [public]
    if isinstance(public, type):
        methods += [member for member in vars(public).values() if inspect.isroutine(member)]
    assert any("Raises" in (method.__doc__ or "") for method in methods)


def test_the_public_names_are_one_list() -> None:
    """What type checkers read, what is imported when first used, and dir(minigpt)."""
    tree = ast.parse(Path(minigpt.__file__).read_text(encoding="utf-8"))
    for_type_checkers = {
        alias.asname: f".{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
        if alias.asname
    }
    assert for_type_checkers == minigpt._MODULES
    assert set(dir(minigpt)) == {*minigpt.__all__, "__version__"}
    with pytest.raises(AttributeError, match="GPTodel"):
        minigpt.GPTodel  # noqa: B018


def test_importing_the_package_loads_neither_numba_nor_numpy() -> None:
    program = (
        "import sys, minigpt; minigpt.MinigptError; dir(minigpt)\n"
        "print({'numba', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "function", [GPTModel.generate, GPTModel.stream, Scheduler.add, TextStream]
)
def test_the_options_of_a_generation_are_the_same_everywhere(function: Callable) -> None:
    """Names and defaults are those of SamplingParams."""
    expected = {field.name: field.default for field in fields(SamplingParams)}
    if function is TextStream:
        del expected["vocab_size"]  # the tokenizer's
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in expected} == expected
    keywords = {name for name, each in parameters.items() if each.kind == each.KEYWORD_ONLY}
    assert keywords == set(expected) - {"max_new_tokens"}


def test_help_documents_every_option() -> None:
    documented = re.findall(r"^(\w+)  +\S", inspect.getdoc(GPTModel.generate), re.MULTILINE)
    assert documented == [*inspect.signature(GPTModel.generate).parameters][1:]


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
def test_wrong_ids_are_input_errors(model: GPTModel, ids: object) -> None:
    refused(InputError, lambda: model(ids))


@pytest.mark.parametrize("value", NOT_OPTIONS, ids=short_repr)
@pytest.mark.parametrize(
    "name",
    ["max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "eos_token_id"],
)
def test_a_wrong_option_is_an_error_of_one_line(model: GPTModel, name: str, value: object) -> None:
    refused(InputError, lambda: model.generate([1], **{name: value}))
    refused(InputError, lambda: model.stream([1], **{name: value}))


@pytest.mark.parametrize("value", [*NOT_OPTIONS, 0, -1, 257, 1.0, np.nan], ids=short_repr)
def test_a_wrong_number_of_threads(value: object) -> None:
    refused(InputError, lambda: GPTModel.from_pretrained(FOLDER, threads=value))


@pytest.mark.parametrize("value", [*NOT_OPTIONS, None, "f8", "F32"], ids=short_repr)
def test_a_wrong_dtype(model: GPTModel, value: object, tmp_path: Path) -> None:
    refused(InputError, lambda: GPTModel.from_pretrained(FOLDER, dtype=value))
    refused(InputError, lambda: model.save_pretrained(tmp_path, dtype=value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value", [None, "", b"x", 3, ENDLESS, ["x"], "x\0", __file__], ids=short_repr
)
def test_a_wrong_folder(model: GPTModel, value: object) -> None:
    refused(SourceError, lambda: GPTModel.from_pretrained(value))
    refused(MinigptError, lambda: model.save_pretrained(value))


def test_threads_that_the_system_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", start)
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


def test_two_models_at_once_and_each_by_several_threads(model: GPTModel) -> None:
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


def test_dropped_models_and_streams_leave_no_threads() -> None:
    for close in (True, False):
        model = GPTModel.from_pretrained(FOLDER, threads=3)
        workers = list(model.engine._team._workers)
        tokens = model.stream([1], max_new_tokens=9)
        next(tokens)
        del model
        assert all(worker.ended.locked() for worker in workers)
        if close:
            tokens.close()
        del tokens
        assert all(worker.ended.acquire(timeout=10) for worker in workers)


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
    """The mean over the targets that are not ignored; lists and one sequence are taken, too."""
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


def test_gradients_belong_to_the_caller(model: GPTModel) -> None:
    ids = np.arange(8)[None]
    _, first = model.loss_and_grad(ids, ids)
    copies = {name: grad.copy() for name, grad in first.items()}
    _, second = model.loss_and_grad(ids, ids)
    for name, grad in first.items():
        np.testing.assert_array_equal(grad, copies[name])
        np.testing.assert_array_equal(second[name], copies[name])
        assert grad is not second[name]
        grad[:] = 0


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_gradient_of_quantized_weights_is_that_at_their_dequantized_values(
    tmp_path: Path, dtype: str
) -> None:
    quantized = GPTModel.from_pretrained(FOLDER, dtype=dtype)
    quantized.save_pretrained(tmp_path)
    ids = np.arange(16).reshape(2, 8)
    loss, grads = quantized.loss_and_grad(ids, ids + 1)
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
def test_wrong_targets_are_input_errors(model: GPTModel, targets: object) -> None:
    refused(InputError, lambda: model.loss_and_grad([[1, 2, 3]], targets))


def test_ids_of_loss_and_grad_are_checked_as_everywhere(model: GPTModel) -> None:
    for ids in ([[]], [[-1]], [[model.config.vocab_size]], [[0] * (model.config.n_positions + 1)]):
        refused(InputError, lambda ids=ids: model.loss_and_grad(ids, ids))


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    broken = GPTModel.from_pretrained(constant_model(tmp_path / "m", [0.0, np.nan, 0.0]), threads=1)
    refused(CheckpointError, lambda: broken.loss_and_grad([[1, 2]], [[2, 0]]))


# ---- the vocabulary that is generated ----

PADDED = np.r_[np.full(257, -30.0), np.zeros(7)]  # padding is zero, and the logits are negative
PADDED[65] = -20


def test_a_padded_vocabulary_is_generated_up_to_the_tokenizers_size(tmp_path: Path) -> None:
    folder = constant_model(tmp_path / "m", PADDED, eos_token_id=256)
    tokenizer = byte_tokenizer(folder)
    model = GPTModel.from_pretrained(folder, threads=1)
    ids = tokenizer.encode("hi", return_tensors="np")
    assert model.sampled_vocab_size == 257
    assert tokenizer.decode(model.generate(ids, 4)[0]) == "hiAAAA"
    assert list(model.stream(ids, 2)) == [65, 65]
    assert model(ids).logits.shape == (1, 2, 264)
    scheduler = Scheduler(model)
    request = scheduler.add([72], 1)
    scheduler.step()
    assert request.token_ids == [65]
    # an explicit size, and an end beyond the tokenizer's
    assert list(model.stream(ids, 2, vocab_size=264)) == [257, 257]
    assert list(model.stream(ids, 2, eos_token_id=[256, 260])) == [260]


def test_without_a_tokenizer_that_can_be_read_all_ids_are_generated(tmp_path: Path) -> None:
    folder = constant_model(tmp_path / "m", PADDED)
    assert list(GPTModel.from_pretrained(folder, threads=1).stream([1], 1)) == [257]
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    assert list(GPTModel.from_pretrained(folder, threads=1).stream([1], 1)) == [257]


def test_the_tokenizer_is_read_once_and_only_to_generate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = constant_model(tmp_path / "m", PADDED)
    byte_tokenizer(folder)
    calls: list[Path] = []

    def read(source: Path) -> Vocabulary:
        calls.append(source)
        return read_vocabulary(source)

    monkeypatch.setattr("minigpt.api.read_vocabulary", read)
    model = GPTModel.from_pretrained(folder, threads=1)
    model([1])
    list(model.stream([1], 1, vocab_size=9))
    assert calls == []
    for _ in range(2):
        model.generate([[1], [2]], 2)
    assert calls == [folder]


# ---- copies ----


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_the_weights(model: GPTModel, copied: Callable[[GPTModel], GPTModel]) -> None:
    twin = copied(model)
    assert twin is not model
    assert twin.engine is model.engine
    assert (twin.config, twin.dtype, twin.source) == (model.config, model.dtype, model.source)
    assert twin.generate([1, 2], 5).tolist() == model.generate([1, 2], 5).tolist()
    assert twin.loss_and_grad([1, 2], [2, 3])[0] == model.loss_and_grad([1, 2], [2, 3])[0]


@pytest.mark.parametrize("dtype", ["f32", "int8"])
def test_a_pickle_loads_the_source_again(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER.parent)
    model = GPTModel.from_pretrained(FOLDER.name, dtype, threads=1)
    data = pickle.dumps(model)
    assert len(data) < 1000
    monkeypatch.chdir(tmp_path)
    read = pickle.loads(data)
    assert (read.dtype, read.engine.threads) == (dtype, 1)
    assert read([1, 2, 3]).logits.tobytes() == model([1, 2, 3]).logits.tobytes()


def test_a_pickle_whose_source_is_gone_is_one_line(tmp_path: Path) -> None:
    folder = constant_model(tmp_path / "m", [0.0, 1.0])
    data = pickle.dumps(GPTModel.from_pretrained(folder, threads=1))
    folder.rename(tmp_path / "other")
    refused(SourceError, lambda: pickle.loads(data))
