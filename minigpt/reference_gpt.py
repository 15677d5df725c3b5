"""A GPT in plain NumPy: forward, backward, AdamW and greedy generation. Read this first.

Parameters are a dict of arrays under their names in a checkpoint: "wte.weight", "h.0.ln_1.bias".
kernels/reference.py has the formulas of the parts. This file composes them; minigpt/model/
does the same with compiled kernels.

    >>> from minigpt import GPTTokenizer, reference_gpt
    >>> from minigpt.bundled import BUNDLED_MODEL
    >>> config, params = reference_gpt.load(BUNDLED_MODEL)
    >>> tokenizer = GPTTokenizer.from_pretrained(BUNDLED_MODEL)
    >>> ids = tokenizer.encode("Once upon a time there was")
    >>> loss, grads = reference_gpt.loss_and_grads(params, config, [ids[:-1]], [ids[1:]])
    >>> tokenizer.decode(reference_gpt.generate(params, config, ids, max_new_tokens=3))
    'Once upon a time there was a man who'

B is the number of sequences and T their length; C = n_embd; NH = n_head; HS = C / NH; H = n_inner;
L = n_layer; V = vocab_size. Results have the float type of the parameters, float32 or float64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .config import GPTConfig
from .kernels import reference as ops
from .kernels.layout import IGNORED
from .source import ModelSource, open_source
from .weights.packed import float32_tensors

Array = np.ndarray
Params = dict[str, Array]
Hook = Callable[[str, Array], None] | None
Saved = list[tuple[Array, ...]]

_ACTIVATIONS = {
    "gelu": (ops.gelu_forward, ops.gelu_backward),
    "gelu_tanh": (ops.gelu_tanh_forward, ops.gelu_tanh_backward),
    "relu": (ops.relu_forward, ops.relu_backward),
    "silu": (ops.silu_forward, ops.silu_backward),
}


def load(source: str | os.PathLike[str] | ModelSource) -> tuple[GPTConfig, Params]:
    """The config and the float32 parameters of a folder, a GGUF file or a hub id.

    int8 and int4 weights are dequantized. Raises SourceError for a source that cannot be loaded.
    """
    opened = open_source(source)
    return opened.config, float32_tensors(opened)


# ---- forward, and backward as its mirror -----------------------------------------------------


def forward(
    params: Params, config: GPTConfig, ids: Any, hook: Hook = None, saved: Saved | None = None
) -> Array:
    """ids [B, T] → logits [B, T, V].

    hook   called with the name ("h.0.mlp.c_fc", "lm_head") and input [B, T, K] of each linear
           layer; quantization is calibrated by these inputs (conversion/calibrate.py)
    saved  an empty list, to which the activations that `backward` needs are appended
    """
    ids = np.asarray(ids)  # [B, T]
    positions = np.arange(ids.shape[1])  # [T]
    wte, wpe = params["wte.weight"], params["wpe.weight"]  # [V, C], [n_positions, C]
    x = ops.embedding_forward(ids, positions, wte, wpe, config.mup_embeddings_scale)  # [B, T, C]
    for n in range(config.n_layer):
        x = block_forward(x, params, config, n, hook, saved)  # [B, T, C]
    ln_f = _layernorm_forward(x, params, config, "ln_f")  # [B, T, C]
    if saved is not None:
        saved.append((x, ln_f))
    if hook:
        hook("lm_head", ln_f)
    lm_head = params.get("lm_head.weight", wte)  # [V, C]
    return ops.matmul_forward(ln_f, lm_head.T, 0) * _logit_scale(config)  # [B, T, V]


def backward(params: Params, config: GPTConfig, ids: Any, dlogits: Array, saved: Saved) -> Params:
    """dlogits [B, T, V] → the gradient of every parameter, by name. Empties `saved`."""
    grads: Params = {}
    head = "lm_head.weight" if "lm_head.weight" in params else "wte.weight"
    x, ln_f = saved.pop()  # [B, T, C] each
    dlogits = dlogits * _logit_scale(config)  # [B, T, V]
    dln_f, dhead, _ = ops.matmul_backward(dlogits, ln_f, params[head].T)  # [B, T, C], [C, V]
    dx = _layernorm_backward(dln_f, x, params, grads, config, "ln_f")  # [B, T, C]
    for n in reversed(range(config.n_layer)):
        dx = block_backward(dx, saved, params, grads, config, n)  # [B, T, C]
    positions, V, scale = np.arange(dx.shape[1]), config.vocab_size, config.mup_embeddings_scale
    grads["wte.weight"], grads["wpe.weight"] = ops.embedding_backward(
        dx, np.asarray(ids), positions, V, config.n_positions, scale
    )  # [V, C], [n_positions, C]
    grads[head] = grads.get(head, 0) + dhead.T  # [V, C]; added to dwte where the head is tied
    return grads


def block_forward(
    x: Array, params: Params, config: GPTConfig, n: int, hook: Hook, saved: Saved | None = None
) -> Array:
    """x [B, T, C] → [B, T, C] after layer n, whose parameters alone are read."""
    h, NH, scale = f"h.{n}", config.n_head, attention_scale(config, n)
    ln_1 = _layernorm_forward(x, params, config, f"{h}.ln_1")  # [B, T, C]
    qkv = _linear_forward(ln_1, params, f"{h}.attn.c_attn", hook)  # [B, T, 3C]
    q, k, v = (_split_heads(part, NH) for part in np.split(qkv, 3, -1))  # [B, NH, T, HS] each
    attn = _merge_heads(ops.attention_forward(q, k, v, scale))  # [B, T, C]
    x_mid = x + _linear_forward(attn, params, f"{h}.attn.c_proj", hook)  # [B, T, C]
    ln_2 = _layernorm_forward(x_mid, params, config, f"{h}.ln_2")  # [B, T, C]
    fc = _linear_forward(ln_2, params, f"{h}.mlp.c_fc", hook)  # [B, T, H]
    act = _ACTIVATIONS[config.activation][0](fc)  # [B, T, H]
    x_out: Array = x_mid + _linear_forward(act, params, f"{h}.mlp.c_proj", hook)  # [B, T, C]
    if saved is not None:
        saved.append((x, ln_1, q, k, v, attn, x_mid, ln_2, fc, act))
    return x_out


def block_backward(
    dx_out: Array, saved: Saved, params: Params, grads: Params, config: GPTConfig, n: int
) -> Array:
    """dx_out [B, T, C] → dx [B, T, C]; adds the gradients of layer n to `grads`."""
    h, NH, scale = f"h.{n}", config.n_head, attention_scale(config, n)
    x, ln_1, q, k, v, attn, x_mid, ln_2, fc, act = saved.pop()
    dact = _linear_backward(dx_out, act, params, grads, f"{h}.mlp.c_proj")  # [B, T, H]
    dfc = _ACTIVATIONS[config.activation][1](dact, fc)  # [B, T, H]
    dln_2 = _linear_backward(dfc, ln_2, params, grads, f"{h}.mlp.c_fc")  # [B, T, C]
    dx_mid = _layernorm_backward(dln_2, x_mid, params, grads, config, f"{h}.ln_2")  # [B, T, C]
    dx_mid += dx_out  # [B, T, C], the gradient of the residual connection
    dattn = _linear_backward(dx_mid, attn, params, grads, f"{h}.attn.c_proj")  # [B, T, C]
    dq, dk, dv = ops.attention_backward(_split_heads(dattn, NH), q, k, v, scale)  # [B, NH, T, HS]
    dqkv = np.concatenate([_merge_heads(part) for part in (dq, dk, dv)], -1)  # [B, T, 3C]
    dln_1 = _linear_backward(dqkv, ln_1, params, grads, f"{h}.attn.c_attn")  # [B, T, C]
    dx: Array = dx_mid + _layernorm_backward(dln_1, x, params, grads, config, f"{h}.ln_1")
    return dx  # [B, T, C]


def attention_scale(config: GPTConfig, n: int) -> float:
    """The scale of layer n's attention scores: 1/√HS in GPT-2."""
    scale = 1.0
    if config.scale_attn_weights:
        scale *= config.head_size ** (-1.0 if config.mup_scale_qk_dot_by_d else -0.5)
    if config.scale_attn_by_inverse_layer_idx:
        scale *= 1 / (n + 1)
    return scale


def _logit_scale(config: GPTConfig) -> float:
    return config.mup_output_alpha * config.mup_width_scale


def _split_heads(x: Array, NH: int) -> Array:
    B, T, C = x.shape
    return x.reshape(B, T, NH, C // NH).swapaxes(1, 2)  # [B, NH, T, HS]


def _merge_heads(x: Array) -> Array:
    B, NH, T, HS = x.shape
    return x.swapaxes(1, 2).reshape(B, T, NH * HS)  # [B, T, C]


def _layernorm_forward(x: Array, params: Params, config: GPTConfig, name: str) -> Array:
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]  # [C], [C]
    return ops.layernorm_forward(x, weight, bias, config.layer_norm_epsilon)  # [B, T, C]


def _layernorm_backward(
    dy: Array, x: Array, params: Params, grads: Params, config: GPTConfig, name: str
) -> Array:
    weight, eps = params[f"{name}.weight"], config.layer_norm_epsilon  # [C]
    dx, dweight, dbias = ops.layernorm_backward(dy, x, weight, eps)  # [B, T, C], [C], [C]
    grads[f"{name}.weight"], grads[f"{name}.bias"] = dweight, dbias
    return dx


def _linear_forward(x: Array, params: Params, name: str, hook: Hook) -> Array:
    if hook:
        hook(name, x)
    return ops.matmul_forward(x, params[f"{name}.weight"], params[f"{name}.bias"])  # [B, T, N]


def _linear_backward(dy: Array, x: Array, params: Params, grads: Params, name: str) -> Array:
    dx, dw, dbias = ops.matmul_backward(dy, x, params[f"{name}.weight"])  # [B, T, K], [K, N], [N]
    grads[f"{name}.weight"], grads[f"{name}.bias"] = dw, dbias
    return dx


# ---- training and generation -----------------------------------------------------------------


def loss_and_grads(
    params: Params, config: GPTConfig, ids: Any, targets: Any
) -> tuple[float, Params]:
    """The mean cross-entropy in nats over the targets that are not -100, and its gradients.

    ids, targets  integers [B, T]: targets[b, t] is the token that follows ids[b, t]
    """
    saved: Saved = []
    targets = np.asarray(targets)  # [B, T]
    logits = forward(params, config, ids, saved=saved)  # [B, T, V]
    count = int((targets != IGNORED).sum())
    loss = float(ops.crossentropy_forward(logits, targets).sum(dtype=np.float64)) / count  # []
    dlogits = ops.crossentropy_backward(logits, targets) / count  # [B, T, V]
    return loss, backward(params, config, ids, dlogits, saved)


def adamw_step(
    params: Params, grads: Params, m: Params, v: Params, step: int, lr: float,
    beta_1: float = 0.9, beta_2: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.1,
    max_grad_norm: float = 1.0,
) -> float:  # fmt: skip
    """Update params, m and v in place; returns the global gradient norm, before clipping.

    m, v           the first and second moments of each parameter, zeros before step 1
    weight_decay   of matrices; biases and layernorms do not decay
    max_grad_norm  gradients with a larger norm are scaled down to it; 0 turns clipping off
    """
    norm = math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in grads.values()))
    clip = max_grad_norm / norm if max_grad_norm and norm > max_grad_norm else 1.0
    for name, w in params.items():
        decay = weight_decay if w.ndim == 2 else 0.0
        w[:], m[name][:], v[name][:] = ops.adamw(
            w, clip * grads[name], m[name], v[name], step, lr, beta_1, beta_2, eps, decay
        )
    return norm


def generate(
    params: Params, config: GPTConfig, ids: Sequence[int], max_new_tokens: int = 64
) -> list[int]:
    """ids and the most likely tokens after them, up to an end or n_positions; no KV cache."""
    ids = list(ids)  # [T]
    for _ in range(min(max_new_tokens, config.n_positions - len(ids))):
        logits = forward(params, config, [ids])  # [1, T, V]
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] in config.eos_token_ids:
            break
    return ids
