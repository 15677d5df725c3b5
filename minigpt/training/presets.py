"""Model shapes by name, each with the hyperparameters it is trained with.

111M to 13B are the models of Cerebras-GPT (arXiv 2304.03208), with the hyperparameters of the
configurations published beside it, a file for each model: github.com/Cerebras/modelzoo,
gpt3/configs/Cerebras_GPT.

All of them: AdamW with betas 0.9 and 0.95, weight decay 0.1, gradients clipped to a norm of 1, no
dropout, sequences of 2048 tokens, warmup over 375 million tokens, decay to a tenth, 20 tokens for
each parameter. Batch size, learning rate, shape of the decay and eps vary with the size. The 13B
model finished with batches of 1080 sequences; here it trains with 720 throughout.

tiny, small and medium are our own, for a text of some megabytes and an afternoon.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import checked_choice
from ..config import GPTConfig
from ..errors import ConfigError, InputError, short_repr
from .config import TrainingConfig


@dataclass(frozen=True)
class Preset:
    """The shape of a new model and the default hyperparameters of its training."""

    n_layer: int
    n_head: int
    n_embd: int
    training: TrainingConfig


def _small(
    n_layer: int, n_head: int, n_embd: int, context: int, batch_size: int, lr: float
) -> Preset:
    training = TrainingConfig(context=context, batch_size=batch_size, lr=lr)
    return Preset(n_layer, n_head, n_embd, training)


def _cerebras(
    n_layer: int,
    n_head: int,
    n_embd: int,
    batch_size: int,
    lr: float,
    decay: str = "linear",
    eps: float = 1e-8,
) -> Preset:
    training = TrainingConfig(
        context=2048,
        batch_size=batch_size,
        lr=lr,
        decay=decay,
        eps=eps,
        warmup_tokens=375_000_000,
    )
    return Preset(n_layer, n_head, n_embd, training)


PRESETS = {
    "tiny": _small(4, 4, 128, 128, 32, 3e-3),  # 0.8M parameters and the vocabulary's, V·C
    "small": _small(6, 4, 256, 256, 32, 1e-3),  # 4.8M
    "medium": _small(8, 6, 384, 512, 32, 1e-3),  # 14M
    "111M": _cerebras(10, 12, 768, 120, 6e-4),
    "256M": _cerebras(14, 17, 1088, 264, 6e-4),
    "590M": _cerebras(18, 12, 1536, 264, 2e-4),
    "1.3B": _cerebras(24, 16, 2048, 528, 2e-4, "cosine"),
    "2.7B": _cerebras(32, 32, 2560, 528, 2e-4, "cosine"),
    "6.7B": _cerebras(32, 32, 4096, 1040, 1.2e-4, eps=1e-9),
    "13B": _cerebras(40, 40, 5120, 720, 1.2e-4, "cosine", eps=1e-9),
}

# Training that starts from a model, whatever its size: one epoch in small steps.
FINE_TUNING = TrainingConfig(batch_size=16, lr=5e-5, epochs=1, warmup_tokens=100_000)


def checked_preset(preset: str | Preset) -> Preset:
    """The preset of a name of PRESETS, or `preset` itself; raises InputError for a wrong one."""
    if isinstance(preset, str):
        preset = PRESETS[checked_choice("preset", preset, tuple(PRESETS))]
    if not isinstance(preset, Preset):
        raise InputError(f"preset {short_repr(preset)}: must be a name or a Preset", "preset")
    if not isinstance(preset.training, TrainingConfig):
        wrong = short_repr(preset.training)
        raise InputError(f"preset: its training is {wrong}; must be a TrainingConfig", "preset")
    try:
        new_config(preset, context=1, vocab_size=1, eos_token_id=None)
    except ConfigError as error:
        raise InputError(str(error), "preset") from None
    return preset


def new_config(
    preset: Preset, context: int, vocab_size: int, eos_token_id: int | None
) -> GPTConfig:
    """A config of Cerebras-GPT's architecture in the shape of `preset`.

    Raises ConfigError for a shape that cannot be, as one whose n_embd is not a multiple of n_head.
    """
    sizes = {
        "n_layer": preset.n_layer,
        "n_head": preset.n_head,
        "n_embd": preset.n_embd,
        "n_positions": context,
        "vocab_size": vocab_size,
        "activation_function": "gelu",
        "eos_token_id": eos_token_id,
    }
    return GPTConfig.from_dict(sizes, "the model's shape")
