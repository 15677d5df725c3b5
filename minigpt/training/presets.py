"""Shapes of models by name, and how each is trained.

Those of Cerebras-GPT (arXiv 2304.03208) are trained as the configurations published beside it
hold, a file for each model: github.com/Cerebras/modelzoo, gpt3/configs/Cerebras_GPT.

All: AdamW with betas 0.9 and 0.95, decay 0.1, gradients clipped to 1, no dropout, sequences of
2048 tokens, the learning rate up over 375 million tokens and down to a tenth, 20 tokens for each
parameter. By size: batch, learning rate, the form of its fall, and eps. The 13B model ended with
batches of 1080.

The small ones are our own, for a text of some megabytes and an afternoon.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import GPTConfig
from .config import Settings


@dataclass(frozen=True)
class Preset:
    """A model's shape, and the settings that go with it."""

    n_layer: int
    n_head: int
    n_embd: int
    settings: Settings


def _small(
    n_layer: int, n_head: int, n_embd: int, context: int, batch_size: int, lr: float
) -> Preset:
    settings = Settings(context=context, batch_size=batch_size, lr=lr)
    return Preset(n_layer, n_head, n_embd, settings)


def _cerebras(
    n_layer: int,
    n_head: int,
    n_embd: int,
    batch_size: int,
    lr: float,
    decay: str = "linear",
    eps: float = 1e-8,
) -> Preset:
    settings = Settings(
        context=2048,
        batch_size=batch_size,
        lr=lr,
        decay=decay,
        eps=eps,
        warmup_tokens=375_000_000,
    )
    return Preset(n_layer, n_head, n_embd, settings)


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

# For training that begins with a model, whatever its size: one reading, in small steps.
FINE_TUNING = Settings(batch_size=16, lr=5e-5, epochs=1, warmup_tokens=100_000)


def new_config(
    n_layer: int, n_head: int, n_embd: int, context: int, vocab_size: int, eos_token_id: int | None
) -> GPTConfig:
    """The architecture of Cerebras-GPT in another size. Raises ConfigError for one that is none."""
    sizes = {
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "n_positions": context,
        "vocab_size": vocab_size,
        "activation_function": "gelu",
        "eos_token_id": eos_token_id,
    }
    return GPTConfig.from_dict(sizes, "the model's shape")
