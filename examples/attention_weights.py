"""Print the attention weights of one layer, computed in plain NumPy by minigpt.reference_gpt.

    python examples/attention_weights.py [LAYER] [TEXT]

A hook receives the input of every linear layer; the input of c_attn gives the queries and keys.
A row is a token that looks back, a column a token it looks at; the weights, in percent, are the
mean over all heads.
"""

from __future__ import annotations

import sys

import numpy as np

from minigpt import GPTTokenizer, reference_gpt
from minigpt.bundled import BUNDLED_MODEL
from minigpt.kernels.reference import softmax_forward

number = sys.argv[1] if len(sys.argv) > 1 else "0"
text = sys.argv[2] if len(sys.argv) > 2 else "The king gave the queen his golden crown"

tokenizer = GPTTokenizer.from_pretrained()
config, params = reference_gpt.load(BUNDLED_MODEL)
if number not in map(str, range(config.n_layer)):
    sys.exit(f"layer {number}: must be an integer from 0 to {config.n_layer - 1}")
layer = int(number)
ids = tokenizer.encode(text)
inputs: dict[str, np.ndarray] = {}
reference_gpt.forward(params, config, [ids], hook=inputs.__setitem__)

name = f"h.{layer}.attn.c_attn"
x = inputs[name][0]  # [T, C]
qkv = x @ params[f"{name}.weight"] + params[f"{name}.bias"]  # [T, 3C]
T, NH = len(ids), config.n_head
q, k, _ = qkv.reshape(T, 3, NH, -1).transpose(1, 2, 0, 3)  # [NH, T, HS] each
scores = reference_gpt.attention_scale(config, layer) * (q @ k.transpose(0, 2, 1))  # [NH, T, T]
causal = np.tril(np.ones((T, T), bool))
weights = softmax_forward(np.where(causal, scores, -np.inf)).mean(0)  # [T, T]

tokens = [tokenizer.decode([i]).strip() for i in ids]
print(f"layer {layer}, mean of {NH} heads, percent")
print(" " * 10 + "".join(f"{token[:6]:>7}" for token in tokens))
for token, row, n in zip(tokens, weights, range(1, T + 1), strict=True):
    print(f"{token[:9]:>10}" + "".join(f"{100 * weight:7.0f}" for weight in row[:n]))
