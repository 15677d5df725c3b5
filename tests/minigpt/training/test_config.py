"""Hyperparameters: the presets' are those of the published models, and open ones get defaults."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from minigpt.errors import InputError
from minigpt.training.config import TrainingConfig, checked_config, complete_config, with_defaults
from minigpt.training.presets import FINE_TUNING, PRESETS, new_config
from minigpt.weights.table import parameter_count

# Parameters of the checkpoints that Cerebras published.
PARAMETERS = {
    "111M": 111_050_496,
    "256M": 255_977_024,
    "590M": 590_310_912,
    "1.3B": 1_315_723_264,
    "2.7B": 2_651_553_280,
    "6.7B": 6_658_404_352,
    "13B": 12_853_386_240,
}
# (steps, warmup steps) of the configurations in Cerebras' Model Zoo. 13B used two batch sizes.
STEPS = {
    "111M": (9037, 1525),
    "256M": (9468, 693),
    "590M": (21836, 693),
    "1.3B": (24334, 346),
    "2.7B": (49041, 346),
    "6.7B": (62522, 176),
}


BASE = TrainingConfig(context=100, batch_size=10, dtype="f32")


def parameters(name: str, vocab_size: int = 50257) -> int:
    preset = PRESETS[name]
    assert preset.training.context
    return parameter_count(new_config(preset, preset.training.context, vocab_size, None))


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_parameters_of_the_published_models(name: str) -> None:
    assert parameters(name) == PARAMETERS[name]


@pytest.mark.parametrize("name", STEPS)
def test_presets_train_for_the_steps_of_the_published_models(name: str) -> None:
    config = complete_config(PRESETS[name].training, 400_000_000_000, parameters(name))
    steps, warmup_steps = STEPS[name]
    assert config.steps == pytest.approx(steps, rel=0.005)
    assert config.warmup_steps == pytest.approx(warmup_steps, abs=2)
    assert config.min_lr == pytest.approx(config.lr / 10)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 1.3), ("small", 5.8), ("medium", 15.9)])
def test_small_presets_have_few_parameters(name: str, millions: float) -> None:
    assert parameters(name, 4096) == pytest.approx(millions * 1e6, rel=0.03)


def test_open_hyperparameters_get_defaults() -> None:
    config = complete_config(BASE, 1_000_000, 10_000)
    assert (config.validation_tokens, config.steps) == (10_000, 200)  # 20 tokens per parameter
    assert (config.warmup_steps, config.eval_every, config.save_every) == (40, 4, 4)
    assert (config.lr, config.min_lr, config.decay, config.eps) == (1e-3, 1e-4, "cosine", 1e-8)
    assert {name for name, value in asdict(config).items() if value is None} == {
        "epochs", "max_steps",
    }  # fmt: skip


def test_max_steps_bounds_the_default_number_of_steps() -> None:
    for max_steps, steps in ((150, 150), (1000, 200)):
        config = complete_config(replace(BASE, max_steps=max_steps), 1_000_000, 10_000)
        assert config.steps == steps
    given = replace(BASE, max_steps=150, steps=180)
    assert complete_config(given, 1_000_000, 10_000).steps == 180


def test_a_run_by_the_clock_plans_what_fits_and_keeps_the_default_as_a_bound() -> None:
    for fitting, steps in ((150, 150), (1000, 200)):
        config = complete_config(BASE, 1_000_000, 10_000, steps_in_time=fitting)
        assert (config.steps, config.max_steps) == (steps, 200)
    bounded = replace(BASE, max_steps=100)
    config = complete_config(bounded, 1_000_000, 10_000, steps_in_time=150)
    assert (config.steps, config.max_steps) == (100, 100)


@pytest.mark.parametrize(
    ("tokens", "validation_tokens"),
    [(2_019, 0), (2_020, 101), (10_000, 101), (20_000, 200), (10**9, 2**17)],
)
def test_a_hundredth_of_the_text_is_for_validation(tokens: int, validation_tokens: int) -> None:
    assert complete_config(BASE, tokens, 1).validation_tokens == validation_tokens


def test_a_short_text_is_trained_on_for_16_epochs() -> None:
    assert complete_config(BASE, 50_000, 10**9).steps == np.ceil(16 * 49_500 / 1000)


def test_given_hyperparameters_stay() -> None:
    given = replace(
        BASE, steps=7, warmup_steps=7, min_lr=0.0, eval_every=2, save_every=3, validation_tokens=0
    )
    config = asdict(complete_config(given, 50_000, 10**9))
    values = {name: value for name, value in asdict(given).items() if value is not None}
    assert len(values) == 15
    assert {name: config[name] for name in values} == values


def test_epochs_are_passes_over_the_training_text() -> None:
    config = complete_config(replace(BASE, epochs=2.5), 100_000, 1)
    assert config.steps == np.ceil(2.5 * 99_000 / 1000)
    config = complete_config(FINE_TUNING, 100_000, 10**9)
    assert config.steps == np.ceil(99_000 / (16 * 256))


@pytest.mark.parametrize("epochs", [1e13, 1e30])
def test_more_steps_than_a_file_can_hold_are_an_error(epochs: float) -> None:
    with pytest.raises(InputError, match=r"^epochs 1e\+\d+: are .* steps; must be at most 9007"):
        complete_config(replace(BASE, epochs=epochs), 1_000_000, 1)
    bounded = replace(BASE, epochs=epochs, max_steps=7)
    assert complete_config(bounded, 1_000_000, 1).steps == 7


def test_chosen_values_come_before_those_of_a_preset() -> None:
    config = with_defaults(TrainingConfig(lr=1.0, seed=3), PRESETS["13B"].training)
    assert (config.lr, config.seed, config.batch_size, config.eps) == (1.0, 3, 720, 1e-9)


def test_steps_replace_the_epochs_of_fine_tuning() -> None:
    assert with_defaults(TrainingConfig(), FINE_TUNING).epochs == 1
    assert with_defaults(TrainingConfig(epochs=2.5), FINE_TUNING).epochs == 2.5
    config = with_defaults(TrainingConfig(steps=7), FINE_TUNING)
    assert (config.steps, config.epochs) == (7, None)


def test_numpy_numbers_become_python_numbers() -> None:
    """state.json holds Python's alone."""
    config = checked_config(TrainingConfig(steps=np.int64(7), lr=np.float32(0.5)))  # type: ignore[arg-type]
    assert (type(config.steps), config.steps) == (int, 7)
    assert (type(config.lr), config.lr) == (float, 0.5)
