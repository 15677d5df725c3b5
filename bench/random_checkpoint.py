"""Write a checkpoint with random weights in the shape of a Cerebras-GPT, to measure speed.

    python bench/random_checkpoint.py 111M FOLDER [--format bin]

The files are like those that Cerebras publishes: a short config.json, float32, `transformer.`
names, no lm_head. Tensors are drawn and written one after the other: 13B needs no more memory than
its largest tensor. The same size gives the same bytes. `--format bin` writes pytorch_model.bin with
the mask buffers of the published files; it needs torch, and memory for the whole model.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

N_POSITIONS, VOCAB = 2048, 50257
STD = 0.02

# n_embd, n_layer, n_head; tiny is not a published model, it tries the programs
SIZES = {
    "tiny": (128, 2, 2),
    "111M": (768, 10, 12),
    "256M": (1088, 14, 17),
    "590M": (1536, 18, 12),
    "1.3B": (2048, 24, 16),
    "2.7B": (2560, 32, 32),
    "6.7B": (4096, 32, 32),
    "13B": (5120, 40, 40),
}


def write_checkpoint(size: str, folder: Path, file_format: str = "safetensors") -> None:
    """Write config.json and the weights to `folder`, which is created if needed.

    Raises KeyError for a size that SIZES lacks.
    """
    config = config_of(size)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    if file_format == "bin":
        write_bin(folder / "pytorch_model.bin", size)
    else:
        write_safetensors(folder / "model.safetensors", size)


def config_of(size: str) -> dict[str, object]:
    """Return the keys of the published config.json, in its order."""
    C, L, NH = SIZES[size]
    return {
        "model_type": "gpt2",
        "n_embd": C,
        "tie_word_embeddings": True,
        "n_positions": N_POSITIONS,
        "vocab_size": VOCAB,
        "n_layer": L,
        "resid_pdrop": 0.0,
        "layer_norm_epsilon": 1e-05,
        "n_head": NH,
        "scale_attn_weights": True,
        "attn_pdrop": 0.0,
        "n_inner": 4 * C,
        "activation_function": "gelu",
        "embd_pdrop": 0.0,
    }


def shapes_of(size: str) -> dict[str, tuple[int, ...]]:
    """Return {tensor name: shape} in the order of the published files."""
    C, L, _ = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, C),
        "transformer.wpe.weight": (N_POSITIONS, C),
    }
    layers = {
        "ln_1": (C,),
        "attn.c_attn": (C, 3 * C),
        "attn.c_proj": (C, C),
        "ln_2": (C,),
        "mlp.c_fc": (C, 4 * C),
        "mlp.c_proj": (4 * C, C),
    }
    for layer in range(L):
        for name, shape in layers.items():
            shapes[f"transformer.h.{layer}.{name}.weight"] = shape
            shapes[f"transformer.h.{layer}.{name}.bias"] = shape[-1:]
    return shapes | {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}


def random_tensors(size: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tensor, float32 and normal: layernorm weights around 1, all others around 0."""
    rng = np.random.default_rng(0)
    for name, shape in shapes_of(size).items():
        tensor = rng.standard_normal(shape, dtype=np.float32)
        tensor *= STD
        if "ln_" in name and name.endswith("weight"):
            tensor += 1.0
        yield name, tensor


def write_safetensors(path: Path, size: str) -> None:
    """Write the header (u64 length, JSON), then each tensor as it is drawn."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes_of(size).items():
        end = offset + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)  # the data starts on a cache line
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in random_tensors(size):
            tensor.astype("<f4", copy=False).tofile(file)


def write_bin(path: Path, size: str) -> None:
    """Write a torch ZIP; as published, each layer's mask precedes its attention weights."""
    import torch

    mask = torch.ones(N_POSITIONS, N_POSITIONS, dtype=torch.uint8).tril()[None, None]
    tensors = {}
    for name, tensor in random_tensors(size):
        if name.endswith("c_attn.weight"):
            attn = name.removesuffix("c_attn.weight")
            tensors[attn + "bias"] = mask.clone()
            tensors[attn + "masked_bias"] = torch.tensor(-1e4)
        tensors[name] = torch.from_numpy(tensor)
    torch.save(tensors, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="write a checkpoint with random weights")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=["safetensors", "bin"], default="safetensors")
    arguments = parser.parse_args()
    write_checkpoint(arguments.size, arguments.folder, arguments.format)


if __name__ == "__main__":
    main()
