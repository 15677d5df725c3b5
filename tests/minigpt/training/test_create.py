"""New runs: from files in one call, with defaults from presets, and nothing left on failure."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from constant_model import constant_model
from tiny_run import CONFIG, ReferenceLearner, create, result, resume, stopping_after
from tiny_tokenizer import byte_tokenizer

from minigpt import GPTConfig
from minigpt.errors import CheckpointError, InputError, MinigptWarning, SourceError
from minigpt.tokenizer.training import train_tokenizer
from minigpt.training import create as creating
from minigpt.training import train as training
from minigpt.training.config import RunConfig, TrainingConfig
from minigpt.training.create import InitialModel, create_run, train, write_run
from minigpt.training.presets import Preset
from minigpt.training.run_folder import open_run
from minigpt.training.schedule import Plan
from minigpt.training.throughput import estimated_steps
from minigpt.training.token_file import read_tokens

pytestmark = pytest.mark.usefixtures("fast")
TINY = Preset(2, 2, 8, TrainingConfig(context=8, batch_size=4, lr=0.02, eval_every=4))
CHOSEN = TrainingConfig(steps=12, dtype="f32")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of tiny_run.TEXTS; runs train with the learner in plain NumPy."""
    for module in (creating, training):
        monkeypatch.setattr(module, "compiled_learner", ReferenceLearner)
    paths = [tmp_path / f"{n}.txt" for n in range(len(tiny_run.TEXTS))]
    for path, text in zip(paths, tiny_run.TEXTS, strict=True):
        path.write_text(text)
    return paths


def test_one_call_starts_a_run_and_one_resumes_it(
    files: list[Path], tmp_path: Path, expected: Any
) -> None:
    """With the bits of a run that was created part by part."""
    (tmp_path / "validation.txt").write_text(tiny_run.VALIDATION[0])
    state = train(
        tmp_path / "run", files, validation_texts=tmp_path / "validation.txt",
        tokenizer=tiny_run.tokenizer(tmp_path / "tokenizer"), preset=TINY,
        config=replace(CHOSEN, steps=None), steps=12, stop=stopping_after(10),
    )  # fmt: skip
    assert state.step == 5
    assert train(tmp_path / "run", steps=7).step == 7
    assert train(tmp_path / "run").step == 12
    assert result(tmp_path / "run") == expected


def test_a_run_from_one_file_and_the_source_of_a_tokenizer(
    files: list[Path], tmp_path: Path
) -> None:
    tiny_run.tokenizer(tmp_path / "tokenizer")
    config = create_run(
        tmp_path / "run", str(files[0]), tokenizer=tmp_path / "tokenizer", preset=TINY,
        config=CHOSEN,
    )  # fmt: skip
    assert (config.context, config.batch_size, config.steps) == (8, 4, 12)
    assert resume(tmp_path / "run").step == 12


def test_wrong_limits_leave_no_folder(files: list[Path], tmp_path: Path) -> None:
    for options, message in (
        ({"steps": 0}, "steps 0: must be an integer from 1"),
        ({"minutes": 0}, "minutes 0: must be a number above 0"),
        ({"patience": 0}, "patience 0: must be an integer from 1"),
        ({"threads": -1}, "threads -1: must be an integer from 1"),
    ):
        with pytest.raises(InputError, match=message):
            train(tmp_path / "run", files, **options)  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [{"preset": "tiny"}, {"config": CONFIG}, {"validation_texts": "a.txt"}]
)
def test_resuming_takes_no_options_of_a_new_run(run: Path, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"^{name}: only a new run takes it"):
        train(run, **options)


def test_minutes_set_the_number_of_steps(files: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer": tiny_run.tokenizer(tmp_path / "t"), "preset": TINY}
    open_end = replace(CHOSEN, steps=None)
    unlimited = create_run(tmp_path / "a", files, **options, config=open_end).steps
    limited = create_run(tmp_path / "b", files, **options, config=open_end, minutes=1e-4).steps
    assert 1 <= limited < unlimited
    given = create_run(tmp_path / "c", files, **options, config=CHOSEN, minutes=1e-4).steps
    assert given == 12
    plans = {name: open_run(tmp_path / name).state.plan for name in "abc"}
    assert plans == {"a": None, "b": Plan(limited, 0.0), "c": None}
    assert open_run(tmp_path / "b").run.config.max_steps == unlimited


def test_timing_leaves_the_weights_as_they_are(files: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer": tiny_run.tokenizer(tmp_path / "t"), "preset": TINY}
    for name, minutes in (("a", None), ("b", 1.0)):
        config = replace(CHOSEN, steps=None)
        create_run(tmp_path / name, files, **options, config=config, minutes=minutes)
    a, b = (tmp_path / name / "model.safetensors" for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()


def test_the_presets_hyperparameters_are_defaults(files: list[Path], tmp_path: Path) -> None:
    config = create_run(
        tmp_path / "run", files, tokenizer=tiny_run.tokenizer(tmp_path / "t"), preset="tiny",
        config=TrainingConfig(batch_size=3, dtype="f32"),
    )  # fmt: skip
    assert (config.context, config.batch_size, config.lr) == (128, 3, 3e-3)
    model = GPTConfig.from_source(tmp_path / "run")
    assert (model.n_layer, model.n_head, model.n_embd, model.n_positions) == (4, 4, 128, 128)


def test_fine_tuning_starts_from_the_weights_of_a_model(run: Path, files: list[Path]) -> None:
    """With the model's tokenizer, its context, and one epoch."""
    resume(run)
    fine = run.parent / "fine"
    config = create_run(fine, files, model=run, config=TrainingConfig(dtype="f32"))
    assert (config.context, config.batch_size, config.lr) == (8, 16, 5e-5)
    assert config.steps == 4  # 466 training tokens in steps of 128
    assert (fine / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert (fine / "vocab.json").read_bytes() == (run / "vocab.json").read_bytes()


def test_the_models_own_end_stands_between_texts(files: list[Path], tmp_path: Path) -> None:
    source = constant_model(tmp_path / "m", np.zeros(262), eos_token_id=[260, 46])
    byte_tokenizer(source)
    (source / "generation_config.json").write_bytes(b'{"eos_token_id": [261, 46], "top_k": 5}')
    (source / "chat_template.jinja").write_bytes(b"{{ messages }}")
    config = TrainingConfig(dtype="f32", context=8)
    with pytest.warns(MinigptWarning, match="with token 261, its tokenizer with .*, 256;"):
        create_run(tmp_path / "run", files, model=source, config=config)
    assert read_tokens(tmp_path / "run" / "text.tokens")[-1] == 261  # beyond the tokenizer's 257
    assert GPTConfig.from_source(tmp_path / "run").eos_token_ids == (261, 46)
    for name in ("generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "run" / name).read_bytes() == (source / name).read_bytes()
    assert train(tmp_path / "run", steps=1).step == 1


def test_all_files_of_the_models_tokenizer_are_kept(files: list[Path], tmp_path: Path) -> None:
    """Those, too, that this package does not read beside another."""
    source = constant_model(tmp_path / "m", np.zeros(262), eos_token_id=261)
    train_tokenizer(tiny_run.TEXTS, 262).save_pretrained(source)
    names = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    assert names < {path.name for path in source.iterdir()}
    config = TrainingConfig(dtype="f32", context=8)
    create_run(tmp_path / "run", files, model=source, config=config)
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (source / name).read_bytes()
    other = tiny_run.tokenizer(tmp_path / "other")
    with pytest.warns(MinigptWarning, match="with token 261"):
        create_run(tmp_path / "run2", files, model=source, tokenizer=other, config=config)
    assert not (tmp_path / "run2" / "tokenizer.json").exists()


def test_a_special_token_beyond_the_model_is_an_error_before_there_is_a_run(
    files: list[Path], tmp_path: Path
) -> None:
    """Special tokens without an id in the files get the next free ones, which a model may lack."""
    config = TrainingConfig(dtype="f32", context=8)
    source = constant_model(tmp_path / "m", np.zeros(256))
    byte_tokenizer(source)
    vocabulary = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    del vocabulary["<|endoftext|>"]
    (source / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    names: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    names["additional_special_tokens"] = ["<|user|>"]
    (source / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    with pytest.raises(InputError, match=r"special token 256 .* the model knows 256"):
        create_run(tmp_path / "run", files, model=source, config=config)
    constant_model(source, np.zeros(256), eos_token_id=46)
    with pytest.warns(MinigptWarning, match="with token 46"):
        create_run(tmp_path / "run", files, model=source, config=config)
    files[0].write_text("<|user|> at the cat")
    with (
        pytest.warns(MinigptWarning),
        pytest.raises(InputError, match=r"special token 257 .* the model knows 256"),
    ):
        create_run(tmp_path / "b", files, model=source, config=config, allow_special=True)
    assert not (tmp_path / "b").exists()


def test_a_model_without_an_end_gets_the_tokenizers(files: list[Path], tmp_path: Path) -> None:
    source = constant_model(tmp_path / "m", np.zeros(262))
    byte_tokenizer(source)
    config = TrainingConfig(dtype="f32", context=8)
    create_run(tmp_path / "run", files, model=source, config=config)
    model = GPTConfig.from_source(tmp_path / "run")
    assert (model.eos_token_ids, model.start_token_id) == ((256,), 256)


# ---- errors ----


def test_a_folder_that_holds_a_run_is_named_first(run: Path) -> None:
    with pytest.raises(InputError, match="holds a training run; `minigpt train --resume"):
        create_run(run, "nowhere.txt")
    (run.parent / "other").mkdir()
    (run.parent / "other" / "mine").write_text("text")
    with pytest.raises(CheckpointError, match="already exists"):
        create(run.parent / "other")


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("texts: none", {"texts": []}),
        ("texts: int; must be a file name or a list of file names", {"texts": 7}),
        ("texts None: must be a file name", {"texts": ["0.txt", None]}),
        ("validation_texts: none", {"validation_texts": []}),
        ("config: dict; must be a TrainingConfig", {"config": {"lr": 1}}),
        ("threads 0: must be an integer from 1", {"threads": 0}),
        ("nowhere.txt: cannot be read", {"texts": "nowhere.txt"}),
        ("nowhere.txt: cannot be read", {"validation_texts": "nowhere.txt"}),
        ("preset 'huge': must be one of tiny, small", {"preset": "huge"}),
        ("preset 4: must be a name or a Preset", {"preset": 4}),
        ("n_embd 8 is not a multiple of n_head 3", {"preset": replace(TINY, n_head=3)}),
        ("preset: give either preset or model", {"preset": "tiny", "model": "nowhere"}),
        ("minutes 0: must be a number above 0", {"minutes": 0}),
        ("config: dict; must be a TrainingConfig", {"config": {}}),
        ("config: int; must be a TrainingConfig", {"config": 0}),
        ("preset '': must be one of tiny", {"preset": ""}),
        ("preset: its training is 5; must be", {"preset": replace(TINY, training=5)}),
        ("progress 5: must be a function or None", {"progress": 5}),
        ("min_lr 1: must be at most lr, 0.02", {"config": TrainingConfig(min_lr=1)}),
        (
            "min_lr 1: must be at most lr, 5e-05",
            {"config": TrainingConfig(min_lr=1), "model": "nowhere", "preset": None},
        ),
        ("epochs 1e\\+18: are .* steps", {"config": TrainingConfig(epochs=1e18, dtype="f32")}),
        ("texts b'a': must be a file name", {"texts": [b"a"]}),
        ("seed -1: must be an integer from 0", {"config": TrainingConfig(seed=-1)}),
    ],
)
def test_an_argument_that_is_wrong(
    files: list[Path], tmp_path: Path, message: str, options: dict[str, Any]
) -> None:
    tokenizer = tiny_run.tokenizer(tmp_path / "tokenizer")
    arguments = {"texts": files, "tokenizer": tokenizer, "preset": TINY, **options}
    with pytest.raises(InputError, match=message):
        create_run(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("message", "config"),
    [
        (
            "context 9: must be an integer from 1 to 8, the model's context",
            replace(CONFIG, context=9),
        ),
        ("batch_size 4.0: must be an integer from 1 to 1000000", replace(CONFIG, batch_size=4.0)),
        ("batch_size 1000000000: must be an", replace(CONFIG, batch_size=10**9)),
        ("context 16777217: must be an integer", replace(CONFIG, context=2**24 + 1)),
        ("min_lr 0.03: must be at most lr, 0.02", replace(CONFIG, min_lr=0.03)),
        ("lr 0: must be a number above 0", replace(CONFIG, lr=0)),
        ("lr nan: must be a number", replace(CONFIG, lr=float("nan"))),
        ("beta_2 1.0: must be a number from 0 to below 1", replace(CONFIG, beta_2=1.0)),
        ("steps 0: must be an integer from 1$", replace(CONFIG, steps=0)),
        ("decay 'step': must be one of cosine, linear", replace(CONFIG, decay="step")),
        ("dtype 'f16': must be one of f32, bf16", replace(CONFIG, dtype="f16")),
        ("recompute 1: must be True or False", replace(CONFIG, recompute=1)),
        ("seed True: must be an integer from 0", replace(CONFIG, seed=True)),
        ("epochs 2: give either epochs or steps", replace(CONFIG, epochs=2)),
        ("seed 9007199254740992: must be an integer from 0 to", replace(CONFIG, seed=2**53)),
    ],
)
def test_a_hyperparameter_out_of_its_range(
    tmp_path: Path, message: str, config: TrainingConfig
) -> None:
    with pytest.raises(InputError, match=message):
        create(tmp_path / "run", config)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize("tokenizer", ["", 0, False])
def test_a_wrong_tokenizer_is_not_the_default(
    files: list[Path], tmp_path: Path, tokenizer: Any
) -> None:
    with pytest.raises(SourceError, match="a model source is"):
        create_run(tmp_path / "run", files, tokenizer=tokenizer, preset=TINY)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("stop 5: must be a function or None", {"stop": 5}),
        ("report 'x': must be a function or None", {"report": "x"}),
        ("config: dict; must be a TrainingConfig", {"config": {}, "steps": 3}),
        ("config: str; must be a TrainingConfig", {"config": "x", "steps": 3}),
        (r"steps <int too long to print>: must be an integer from 1 to", {"steps": 10**5000}),
    ],
)
def test_a_wrong_argument_is_reported_before_a_run_is_created(
    files: list[Path], tmp_path: Path, message: str, options: dict[str, Any]
) -> None:
    tokenizer = tiny_run.tokenizer(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", files, tokenizer=tokenizer, preset=TINY, **options)
    assert not (tmp_path / "run").exists()


def test_an_endless_time_has_as_many_steps_as_a_file_can_hold() -> None:
    class Learner:
        """A learner that takes no time."""

        tensors = {"wte.weight": np.zeros((9, 1))}  # noqa: RUF012  (not changed)

        def zero_grad(self) -> None: ...
        def backward(self, *_: object) -> float:
            return 0.0

        def step(self, *_: object) -> float:
            return 0.0

    steps = estimated_steps(Learner(), RunConfig(), sys.float_info.max)  # type: ignore[arg-type]
    assert steps == 2**53 - 1


def test_a_text_shorter_than_a_sequence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="context 8: the text has 4 tokens"):
        create(tmp_path / "run", texts=["cats"])
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    tokenizer = tiny_run.tokenizer(tmp_path / "tokenizer")
    config = GPTConfig.from_dict(
        {"n_layer": 1, "n_head": 1, "n_embd": 4, "n_positions": 8, "vocab_size": 9}, "config"
    )
    with pytest.raises(InputError, match="has 258 tokens, and the model knows 9"):
        write_run(tmp_path / "run", ["a"], None, tokenizer, InitialModel(config, {}, CONFIG))


def test_texts_are_cut_at_end_of_text_tokens_or_a_warning_given(
    files: list[Path], tmp_path: Path
) -> None:
    tokenizer = tiny_run.tokenizer(tmp_path / "tokenizer")
    mark = "<|endoftext|>"
    (tmp_path / "a.txt").write_text(mark.join(file.read_text() for file in files) + f"{mark}\n")
    options: dict[str, Any] = {"tokenizer": tokenizer, "preset": TINY, "config": CHOSEN}
    create_run(tmp_path / "two", files, **options)
    create_run(tmp_path / "one", tmp_path / "a.txt", **options, allow_special=True)
    with pytest.warns(MinigptWarning, match=r"a\.txt: holds <\|endoftext\|> as plain text"):
        create_run(tmp_path / "plain", tmp_path / "a.txt", **options)
    one, two, plain = (
        read_tokens(tmp_path / name / "text.tokens").tolist() for name in ("one", "two", "plain")
    )
    assert one == two
    assert plain.count(tokenizer.eos_token_id) == 1
