"""What a run is made with: the presets, the weights it begins with, and what follows by itself."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from minigpt.training.config import Settings, planned
from minigpt.training.initial import random_tensors
from minigpt.training.presets import FINE_TUNING, PRESETS, new_config
from minigpt.weights.table import parameter_count, tensor_shapes

# of the checkpoints that Cerebras published
PARAMETERS = {
    "111M": 111_050_496,
    "256M": 255_977_024,
    "590M": 590_310_912,
    "1.3B": 1_315_723_264,
    "2.7B": 2_651_553_280,
    "6.7B": 6_658_404_352,
    "13B": 12_853_386_240,
}
# steps and warm-up of the configurations in Cerebras' Model Zoo; the 13B one's are of two batches
STEPS = {
    "111M": (9037, 1525),
    "256M": (9468, 693),
    "590M": (21836, 693),
    "1.3B": (24334, 346),
    "2.7B": (49041, 346),
    "6.7B": (62522, 176),
}


def parameters(name: str, vocab_size: int = 50257) -> int:
    preset = PRESETS[name]
    config = new_config(
        preset.n_layer, preset.n_head, preset.n_embd, preset.settings.context, vocab_size, None
    )
    return parameter_count(config)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_presets_have_the_size_of_their_models(name: str) -> None:
    assert parameters(name) == PARAMETERS[name]


@pytest.mark.parametrize("name", STEPS)
def test_the_presets_train_as_long_as_their_models_were_trained(name: str) -> None:
    plan = planned(PRESETS[name].settings, 400_000_000_000, parameters(name))
    steps, warmup = STEPS[name]
    assert plan.steps == pytest.approx(steps, rel=0.005)
    assert plan.warmup == pytest.approx(warmup, abs=2)
    assert plan.min_lr == pytest.approx(plan.lr / 10)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 1.3), ("small", 5.8), ("medium", 15.9)])
def test_small_presets_are_small(name: str, millions: float) -> None:
    assert parameters(name, 4096) == pytest.approx(millions * 1e6, rel=0.03)


def test_what_is_left_open_is_filled_in() -> None:
    settings = Settings(context=100, batch_size=10)
    plan = planned(settings, 1_000_000, 10_000)
    assert (plan.held_back, plan.steps) == (10_000, 200)  # 20 tokens for each parameter
    assert (plan.warmup, plan.eval_every, plan.save_every) == (40, 4, 4)
    assert None not in {**asdict(plan), "epochs": 0, "most_steps": 0}.values()


def test_time_makes_a_run_shorter_but_not_longer() -> None:
    settings = Settings(context=100, batch_size=10)
    for most, steps in ((150, 150), (1000, 200)):
        plan = planned(replace(settings, most_steps=most), 1_000_000, 10_000)
        assert plan.steps == steps
    given = replace(settings, most_steps=150, steps=180)
    assert planned(given, 1_000_000, 10_000).steps == 180


@pytest.mark.parametrize(
    ("tokens", "held_back"),
    [(2_019, 0), (2_020, 101), (10_000, 101), (20_000, 200), (10**9, 2**17)],
)
def test_the_end_of_the_text_is_held_back(tokens: int, held_back: int) -> None:
    assert planned(Settings(context=100), tokens, 1).held_back == held_back


def test_a_short_text_is_read_16_times() -> None:
    plan = planned(Settings(context=100, batch_size=10), 50_000, 10**9)
    assert plan.steps == np.ceil(16 * 49_500 / 1000)


def test_what_is_given_is_kept() -> None:
    given = Settings(
        context=100, batch_size=10, steps=7, warmup=7, min_lr=0.0, eval_every=2, held_back=0
    )
    plan = planned(replace(given, save_every=3), 50_000, 10**9)
    kept = {name: value for name, value in asdict(given).items() if value is not None}
    assert asdict(plan) == {**asdict(plan), **kept, "save_every": 3}


def test_epochs_are_readings_of_the_text() -> None:
    plan = planned(Settings(context=100, batch_size=10, epochs=2.5), 100_000, 1)
    assert plan.steps == np.ceil(2.5 * 99_000 / 1000)
    plan = planned(FINE_TUNING, 100_000, 10**9)
    assert plan.steps == np.ceil(99_000 / (16 * 256))


def test_the_first_weights() -> None:
    config = new_config(8, 2, 64, 32, 500, None)
    tensors = random_tensors(config, seed=3)
    assert {name: tensor.shape for name, tensor in tensors.items()} == tensor_shapes(config)
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.flags.c_contiguous) == (np.float32, True)
        if name.endswith(".bias"):
            assert not tensor.any()
        elif tensor.ndim == 1:
            assert (tensor == 1).all()
        else:
            spread = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert tensor.std() == pytest.approx(spread, rel=0.1)
            assert abs(tensor.mean()) < spread / 10


def test_the_seed_tells_the_weights() -> None:
    config = new_config(1, 2, 8, 4, 20, None)
    first, again, other = (random_tensors(config, seed) for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert (first["wte.weight"] != other["wte.weight"]).any()
