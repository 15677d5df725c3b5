"""Makes the golden states of training: gradients and ten losses of the small models, by PyTorch.

    python tests/golden/make_training_golden.py

needs torch and transformers, as make_golden.py does, whose folders it adds `training.npz` to:

| array      | dtype, shape   |                                                                   |
|------------|----------------|-------------------------------------------------------------------|
| ids        | int64 [B, T]   | random tokens                                                     |
| targets    | int64 [B, T]   | random tokens, and some -100                                      |
| losses     | float32 [11]   | mean cross-entropy before each of ten updates, and after the last |
| grad/NAME  | float32        | the first gradient of each tensor, computed in float64            |

The updates are torch.optim.AdamW's, with the numbers of NUMBERS; matrices decay, vectors do not.
"""

from __future__ import annotations

import copy
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_golden import BATCH, CASES, LENGTH, Case, build, run_as_mup
from transformers import GPT2LMHeadModel

HERE = Path(__file__).parent
# one of each: GELUs, ReLU; odd heads; scales of attention; muP's; a head of its own
NAMES = ("cerebras", "gelu-new", "inverse-layer-f64", "mup", "unscaled-inverse-untied")
NUMBERS: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}
DECAY = 0.1
UPDATES = 10


def loss_of(model: GPT2LMHeadModel, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the targets that are not -100."""
    logits = model(ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gradients(
    model: GPT2LMHeadModel, ids: torch.Tensor, targets: torch.Tensor
) -> dict[str, np.ndarray]:
    """{"grad/" + name: gradient}, computed in float64."""
    exact = copy.deepcopy(model).double()
    loss_of(exact, ids, targets).backward()
    return {
        f"grad/{name}": weight.grad.numpy().astype(np.float32)
        for name, weight in exact.named_parameters()
    }


def losses(model: GPT2LMHeadModel, ids: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """Before each update and after the last, in float32."""
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.ndim == 2], "weight_decay": DECAY},
        {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, **NUMBERS)
    found = []
    for _ in range(UPDATES):
        optimizer.zero_grad()
        loss = loss_of(model, ids, targets)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return np.array([*found, loss_of(model, ids, targets).item()], np.float32)


def states(model: GPT2LMHeadModel, case: Case) -> dict[str, np.ndarray]:
    """Everything of training.npz; `model` is in float32."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()) + 2)
    ids, targets = rng.integers(case.config["vocab_size"], size=(2, BATCH, LENGTH))
    targets[0, : LENGTH // 3] = -100
    batch = torch.from_numpy(ids), torch.from_numpy(targets)
    return {
        "ids": ids,
        "targets": targets,
        **gradients(model, *batch),
        "losses": losses(model, *batch),
    }


def main() -> None:
    for case in CASES:
        if case.name in NAMES:
            model = build(case).float()
            run_as_mup(model, case.config)
            np.savez_compressed(HERE / case.name / "training.npz", **states(model, case))


if __name__ == "__main__":
    main()
