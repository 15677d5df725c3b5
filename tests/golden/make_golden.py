"""Makes the golden states: small GPT-2 models run by PyTorch, their files and what they answer.

    python tests/golden/make_golden.py [NAME ...]

needs torch and transformers (last run with torch 2.13, transformers 5.24), which the tests do
not. Each case becomes a folder beside this file: a checkpoint in one of the forms found in the
wild, and `states.npz`, what transformers' own GPT2LMHeadModel computes from it:

| array            | dtype, shape      |                                                        |
|------------------|-------------------|--------------------------------------------------------|
| ids              | int64 [B, T]      | random tokens                                          |
| logits           | float32 [B, T, V] | their logits, computed in float32                      |
| truth            | float64 [B, T, V] | the same in float64: the error of both can be measured |
| greedy_prompt    | int64 [P]         | a prompt                                               |
| greedy           | int64 [200]       | the tokens that greedy decoding adds to it             |
| greedy_last      | float32 [V]       | logits after the last but one of them: a long context  |
| prompt_0, 1, 2   | int64 [P_i]       | prompts of unequal length                              |
| tokens_0, 1, 2   | int64 [24]        | the tokens that greedy decoding adds to each           |

Weights are large and biases, layernorms and positions random, unlike a fresh model's, so that
every part of the network shows in the logits: `check_sensitive` makes sure of it. Prompts are
drawn until the two best tokens of every step lie clearly apart, so that greedy tokens do not
hang on rounding. All is drawn by NumPy from the case's name: a second run writes the same.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

HERE = Path(__file__).parent
Tensors = dict[str, torch.Tensor]

BATCH, LENGTH = 2, 12
GREEDY_TOKENS = 200
BATCH_PROMPTS, BATCH_TOKENS = (1, 5, 13), 24
# Two float32 engines differ by some 1e-6 of the logits' scale; this is far above it.
MIN_MARGIN = 1e-3
# The tests allow 2e-5; what a careless engine gets wrong has to differ by ten times that.
MIN_EFFECT = 2e-4


@dataclass(frozen=True)
class Case:
    """One folder: `config` as in config.json, written by `store` in `dtype`."""

    name: str
    config: dict[str, Any]
    store: Callable[[GPT2LMHeadModel, Case, Path], None]
    prompt: int  # tokens of greedy_prompt
    dtype: torch.dtype = torch.float32


# ---- the model, with weights worth testing


def gpt2_config(config: dict[str, Any]) -> GPT2Config:
    """transformers' config of a case; special tokens would lie outside its small vocabulary."""
    known = {key: value for key, value in config.items() if not key.startswith("mup_")}
    known = {"bos_token_id": None, "eos_token_id": None, **known, "model_type": "gpt2"}
    return GPT2Config(**known, attn_implementation="eager")


def build(case: Case) -> GPT2LMHeadModel:
    """The case's model with random weights, in the dtype they are stored in."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    model = GPT2LMHeadModel(gpt2_config(case.config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            draw = torch.from_numpy(rng.standard_normal(tuple(weight.shape)))
            weight.data = (mean(name) + deviation(name, weight) * draw).to(case.dtype)
    # New `data` above would part a tied head from wte in some releases: tie again.
    model.tie_weights()
    return model


def mean(name: str) -> float:
    """Layernorms scale around 1; a GELU and its neighbours part most around −2."""
    if name.endswith("c_fc.bias"):
        return -2.0
    return 1.0 if "ln_" in name and name.endswith("weight") else 0.0


def deviation(name: str, weight: torch.Tensor) -> float:
    """Keeps activations, scores and residuals of order one, where nonlinearities bend most."""
    if name.endswith("wpe.weight"):
        return 0.8  # well above wte: greedy decoding moves on rather than repeat one token
    if name.endswith(("wte.weight", "lm_head.weight")):
        return 0.4
    if name.endswith("bias") or "ln_" in name:
        return 0.2
    gain = 4.0 if name.endswith("mlp.c_proj.weight") else 1.3
    return gain / math.sqrt(weight.shape[0])  # Conv1D is stored [in, out]


def run_as_mup(model: GPT2LMHeadModel, config: dict[str, Any]) -> None:
    """Turns GPT-2 into Cerebras's muP variant (BTLM's code with learned positions).

    Embeddings (wte + wpe) · mup_embeddings_scale; scores / head size instead of its root when
    mup_scale_qk_dot_by_d; logits · mup_output_alpha · mup_width_scale. Missing keys mean 1.
    """
    embeddings_scale = config.get("mup_embeddings_scale", 1.0)
    logits_scale = config.get("mup_output_alpha", 1.0) * config.get("mup_width_scale", 1.0)
    # `drop` is the first module that sees the sum of both embeddings.
    model.transformer.drop.register_forward_pre_hook(lambda _, args: args[0] * embeddings_scale)
    model.lm_head.register_forward_hook(lambda _, __, logits: logits * logits_scale)
    if config.get("mup_scale_qk_dot_by_d"):
        for block in model.transformer.h:
            block.attn.scaling = 1.0 / block.attn.head_dim


# ---- what it answers


@torch.inference_mode()
def logits_of(model: GPT2LMHeadModel, ids: np.ndarray) -> np.ndarray:
    """ids [B, T] -> logits [B, T, V] in the model's dtype."""
    return model(torch.from_numpy(ids), use_cache=False).logits.numpy()


def greedy(model: GPT2LMHeadModel, prompt: np.ndarray, count: int) -> np.ndarray | None:
    """The `count` best next tokens one by one; None where two are too close to call."""
    ids = prompt
    for _ in range(count):
        last = logits_of(model, ids[None])[0, -1]
        second, first = np.sort(last)[-2:]
        if first - second < MIN_MARGIN * abs(last).max():
            return None
        ids = np.append(ids, last.argmax())
    return ids[len(prompt) :]


def clear_greedy(
    model: GPT2LMHeadModel, rng: np.random.Generator, length: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """A random prompt of `length` tokens whose greedy continuation is beyond doubt, and that."""
    while True:
        prompt = rng.integers(model.config.vocab_size, size=length)
        tokens = greedy(model, prompt, count)
        if tokens is not None:
            return prompt, tokens


def states(model: GPT2LMHeadModel, case: Case) -> dict[str, np.ndarray]:
    """Everything of states.npz; `model` is in float32."""
    exact = copy.deepcopy(model).double()
    rng = np.random.default_rng(zlib.crc32(case.name.encode()) + 1)
    ids = rng.integers(case.config["vocab_size"], size=(BATCH, LENGTH))
    prompt, tokens = clear_greedy(exact, rng, case.prompt, GREEDY_TOKENS)
    whole = logits_of(model, np.append(prompt, tokens)[None, :-1])[0]
    assert np.array_equal(whole[len(prompt) - 1 :].argmax(-1), tokens), "float32 strays"
    result = {
        "ids": ids,
        "logits": logits_of(model, ids),
        "truth": logits_of(exact, ids),
        "greedy_prompt": prompt,
        "greedy": tokens,
        "greedy_last": whole[-1],
    }
    for i, length in enumerate(BATCH_PROMPTS):
        prompt, tokens = clear_greedy(exact, rng, length, BATCH_TOKENS)
        result |= {f"prompt_{i}": prompt, f"tokens_{i}": tokens}
    return result


def check_sensitive(model: GPT2LMHeadModel, case: Case, ids: np.ndarray) -> float:
    """The least effect, in parts of the logits' scale, of getting one thing wrong in the model."""
    right = logits_of(model, ids)
    effects = []
    for name, spoil in MISTAKES.items():
        wrong = copy.deepcopy(model)
        if spoil(wrong):
            effect = abs(logits_of(wrong, ids) - right).max() / abs(right).max()
            assert effect > MIN_EFFECT, f"{case.name}: {name} has an effect of {effect:.1e} only"
            effects.append(effect)
    return float(min(effects))


def other_gelu(model: GPT2LMHeadModel) -> bool:
    """The erf GELU for the tanh one, and the tanh one for all others."""
    exact = model.config.activation_function != "gelu"
    for block in model.transformer.h:
        block.mlp.act = torch.nn.GELU(approximate="none" if exact else "tanh")
    return True


def default_epsilon(model: GPT2LMHeadModel) -> bool:
    """1e-5 whatever the config says."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    return model.config.layer_norm_epsilon != 1e-5


def plain_scaling(model: GPT2LMHeadModel) -> bool:
    """Scores / √head size whatever the config says."""
    plain = model.transformer.h[0].attn.head_dim ** -0.5
    changed = any(block.attn.scaling != plain for block in model.transformer.h)
    for block in model.transformer.h:
        block.attn.scaling = plain
    return changed


def tied_head(model: GPT2LMHeadModel) -> bool:
    """wte for the head although the checkpoint holds one of its own."""
    changed = not torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    model.lm_head.weight = model.transformer.wte.weight
    return changed


MISTAKES: dict[str, Callable[[GPT2LMHeadModel], bool]] = {
    "the other GELU": other_gelu,
    "epsilon 1e-5": default_epsilon,
    "scores scaled by the root": plain_scaling,
    "a tied head": tied_head,
}


# ---- the forms in which checkpoints are found


def as_saved_today(model: GPT2LMHeadModel, case: Case, folder: Path) -> None:
    """model.safetensors and the long config.json of a current transformers."""
    model.save_pretrained(folder)


def as_safetensors_shards(model: GPT2LMHeadModel, case: Case, folder: Path) -> None:
    """Several .safetensors files and their index."""
    model.save_pretrained(folder, max_shard_size="40KB")
    assert (folder / "model.safetensors.index.json").exists()


def as_cerebras(model: GPT2LMHeadModel, case: Case, folder: Path) -> None:
    """111M to 6.7B: short config, one .bin, mask buffers, the head a second name of wte."""
    write_config(folder, case.config)
    torch.save(with_buffers(model, torch.uint8), folder / "pytorch_model.bin")


def as_cerebras_13b(model: GPT2LMHeadModel, case: Case, folder: Path) -> None:
    """13B: the config of a bare GPT2Model, names without `transformer.`, no head, two shards."""
    config = gpt2_config(case.config).to_diff_dict()
    write_config(folder, {"architectures": ["GPT2Model"], **config})
    tensors = OrderedDict(model.transformer.state_dict())
    names = list(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    for number, half in enumerate(halves, start=1):
        file = f"pytorch_model-{number:05}-of-{len(halves):05}.bin"
        torch.save(OrderedDict((name, tensors[name]) for name in half), folder / file)
        weight_map |= dict.fromkeys(half, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "pytorch_model.bin.index.json", index)


def as_legacy_bin(model: GPT2LMHeadModel, case: Case, folder: Path) -> None:
    """The format before PyTorch 1.6 (no ZIP), with bool mask buffers and no head."""
    write_config(folder, case.config)
    tensors = with_buffers(model, torch.bool)
    del tensors["lm_head.weight"]
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


def as_bin_without_prefix(model: GPT2LMHeadModel, case: Case, folder: Path) -> None:
    """One .bin of a bare GPT2Model, pickled with protocol 4."""
    write_config(folder, case.config)
    tensors = OrderedDict(model.transformer.state_dict())
    torch.save(tensors, folder / "pytorch_model.bin", pickle_protocol=4)


def as_bin_of_parameters(model: GPT2LMHeadModel, case: Case, folder: Path) -> None:
    """One .bin that holds torch.nn.Parameter objects, a head apart where there is one."""
    write_config(folder, case.config)
    torch.save(OrderedDict(model.state_dict(keep_vars=True)), folder / "pytorch_model.bin")


def as_mup_safetensors(model: GPT2LMHeadModel, case: Case, folder: Path) -> None:
    """model.safetensors beside the config of another architecture's name."""
    model.save_pretrained(folder)
    write_config(folder, case.config)


def with_buffers(model: GPT2LMHeadModel, dtype: torch.dtype) -> OrderedDict[str, torch.Tensor]:
    """The state dict as older releases wrote it: each layer's mask follows its attention."""
    n = model.config.n_positions
    mask = torch.ones(n, n, dtype=torch.uint8).tril().view(1, 1, n, n)
    tensors = OrderedDict()
    for name, tensor in model.state_dict().items():
        if name.endswith("attn.c_attn.weight"):
            attn = name.removesuffix("c_attn.weight")
            tensors[attn + "bias"] = mask.to(dtype, copy=True)
            tensors[attn + "masked_bias"] = torch.tensor(-1e4)
        tensors[name] = tensor
    return tensors


def write_config(folder: Path, config: dict[str, Any]) -> None:
    write_json(folder / "config.json", config)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_bytes((json.dumps(data, indent=2) + "\n").encode())


# ---- the cases


def shape(layers: int, heads: int, head_size: int, vocab: int, positions: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_layer": layers,
        "n_head": heads,
        "n_embd": heads * head_size,
        "vocab_size": vocab,
        "n_positions": positions,
    }


CASES = [
    Case(
        "cerebras",
        # the keys of the published file, in its order
        {
            "model_type": "gpt2",
            "n_embd": 15,
            "tie_word_embeddings": True,
            "n_positions": 219,
            "vocab_size": 97,
            "n_layer": 2,
            "resid_pdrop": 0.0,
            "layer_norm_epsilon": 1e-05,
            "n_head": 3,
            "scale_attn_weights": True,
            "attn_pdrop": 0.0,
            "n_inner": 60,
            "activation_function": "gelu",
            "embd_pdrop": 0.0,
        },
        as_cerebras,
        prompt=17,
    ),
    Case(
        "cerebras-13b",
        shape(2, 17, 1, 131, 256) | {"n_inner": 68, "activation_function": "gelu"},
        as_cerebras_13b,
        prompt=3,
    ),
    Case(
        "gelu-new",
        shape(3, 1, 17, 257, 300) | {"n_inner": None, "activation_function": "gelu_new"},
        as_saved_today,
        prompt=100,  # with 200 more the context is full
    ),
    Case(
        "gelu-tanh-shards",
        shape(1, 3, 17, 101, 257) | {"n_inner": 37, "activation_function": "gelu_pytorch_tanh"},
        as_safetensors_shards,
        prompt=1,
    ),
    Case(
        "gelu-fast-legacy",
        shape(1, 3, 5, 97, 221)
        | {"n_inner": 33, "activation_function": "gelu_fast", "layer_norm_epsilon": 2e-3},
        as_legacy_bin,
        prompt=7,
    ),
    Case(
        "relu-bf16",
        shape(1, 1, 64, 127, 256)
        | {"n_inner": 39, "activation_function": "relu", "layer_norm_epsilon": 1e-3},
        as_saved_today,
        prompt=33,
        dtype=torch.bfloat16,
    ),
    Case(
        "silu-f16",
        shape(1, 1, 80, 97, 256) | {"n_inner": 41, "activation_function": "silu"},
        as_bin_without_prefix,
        prompt=16,
        dtype=torch.float16,
    ),
    Case(
        "inverse-layer-f64",
        shape(3, 17, 1, 113, 263)
        | {"n_inner": 19, "activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True},
        as_saved_today,
        prompt=5,
        dtype=torch.float64,
    ),
    Case(
        "unscaled",
        shape(2, 3, 5, 97, 256)
        | {"n_inner": 31, "activation_function": "gelu_new", "scale_attn_weights": False},
        as_bin_of_parameters,
        prompt=12,
    ),
    Case(
        "unscaled-inverse-untied",
        shape(3, 3, 7, 103, 271)
        | {
            "n_inner": None,
            "activation_function": "relu",
            "layer_norm_epsilon": 1e-2,
            "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
        as_saved_today,
        prompt=64,
    ),
    Case(
        "heads-17-bf16",
        shape(1, 17, 5, 97, 230) | {"n_inner": 43, "activation_function": "gelu"},
        as_bin_of_parameters,
        prompt=29,
        dtype=torch.bfloat16,
    ),
    Case(
        "mup",
        shape(2, 3, 5, 97, 256)
        | {
            "model_type": "btlm",
            "n_inner": 60,
            "activation_function": "gelu",
            "position_embedding_type": "learned",
            "tie_word_embeddings": False,
            "mup_embeddings_scale": 2.5,
            "mup_output_alpha": 1.75,
            "mup_scale_qk_dot_by_d": True,
            "mup_width_scale": 0.235,
        },
        as_bin_of_parameters,
        prompt=9,
    ),
    Case(
        "mup-missing-keys",
        shape(2, 3, 17, 97, 256)
        | {
            "model_type": "btlm",
            "n_inner": 33,
            "activation_function": "gelu",
            "position_embedding_type": "learned",
            "tie_word_embeddings": False,
            "mup_output_alpha": 0.3,
        },
        as_mup_safetensors,
        prompt=4,
        dtype=torch.float16,
    ),
]


def make(case: Case) -> None:
    """Writes the case's folder anew and prints its line of the table."""
    folder = HERE / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = build(case)
    case.store(model, case, folder)
    model.float()  # the weights as an engine that computes in float32 holds them
    if case.config["model_type"] == "btlm":
        run_as_mup(model, case.config)
    arrays = states(model, case)
    effect = check_sensitive(model, case, arrays["ids"])
    np.savez_compressed(folder / "states.npz", **arrays)
    size = sum(file.stat().st_size for file in folder.iterdir())
    error = abs(arrays["logits"] - arrays["truth"]).max() / abs(arrays["truth"]).max()
    kinds = len(set(arrays["greedy"].tolist()))
    print(
        f"{case.name:24} {size:8,} B  error of float32 {error:.1e}, least effect {effect:.1e},"
        f" {kinds} different tokens of {GREEDY_TOKENS}"
    )


def main() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    wanted = sys.argv[1:] or [case.name for case in CASES]
    for case in CASES:
        if case.name in wanted:
            make(case)


if __name__ == "__main__":
    main()
