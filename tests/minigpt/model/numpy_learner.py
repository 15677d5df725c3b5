"""A GPT that learns, in plain NumPy: what the engine's Learner must agree with.

It computes in the float type of the tensors it is given, float32 or float64, with matrices of
T × T and without threads: for shapes of a test. test_numpy_learner.py holds it against finite
differences; tests of what uses a Learner take it because it needs no compiling.
"""

from __future__ import annotations

import math

import numpy as np

from minigpt.config import GPTConfig

Tensors = dict[str, np.ndarray]
_erf = np.vectorize(math.erf, otypes=[np.float64])


class NumpyLearner:
    """As minigpt.model.learner.Learner; of `threads`, `dtype` and `recompute` nothing depends."""

    def __init__(
        self,
        config: GPTConfig,
        tensors: Tensors,
        threads: int = 1,
        dtype: str = "f32",
        recompute: bool = False,
    ) -> None:
        self.config = config
        self.tensors = tensors
        self.grads = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
        self.first_moments = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
        self.second_moments = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}

    def clear(self) -> None:
        """Gradients to zero."""
        for grad in self.grads.values():
            grad[:] = 0

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """The sum of -ln p over the targets that are not -100."""
        _, log_p = self._forward(ids)
        return _nats(log_p, targets)

    def accumulate(self, ids: np.ndarray, targets: np.ndarray, share: float) -> float:
        """Adds share · ∂loss/∂tensors to the gradients; returns the loss."""
        tape, log_p = self._forward(ids)
        # ∂(-log p[target])/∂logits = p - 1 at the target
        counts = (targets != -100)[..., None]
        is_target = np.arange(log_p.shape[-1]) == targets[..., None]
        d_logits = (np.exp(log_p) - is_target) * counts * share
        self._backward(ids, tape, d_logits.astype(log_p.dtype))
        return _nats(log_p, targets)

    def update(
        self,
        step: int,
        lr: float,
        beta_1: float,
        beta_2: float,
        eps: float,
        weight_decay: float,
        clip: float,
    ) -> float:
        """AdamW (arXiv 1711.05101, algorithm 2), decaying matrices only; the gradients' norm."""
        squares = [np.sum(grad.astype(np.float64) ** 2) for grad in self.grads.values()]
        norm = math.sqrt(sum(squares))
        scale = clip / norm if clip and norm > clip else 1.0
        for name, w in self.tensors.items():
            grad, m, v = self.grads[name], self.first_moments[name], self.second_moments[name]
            m += (1 - beta_1) * (scale * grad - m)
            v += (1 - beta_2) * ((scale * grad) ** 2 - v)
            if w.ndim == 2:
                w *= 1 - lr * weight_decay
            w -= lr * (m / (1 - beta_1**step)) / (np.sqrt(v / (1 - beta_2**step)) + eps)
        return norm

    # ---- forward, and backward as its mirror -------------------------------------------------

    def _forward(self, ids: np.ndarray) -> tuple[list, np.ndarray]:
        """What each operation needs to go back, in order; and ln p, [B, T, V]."""
        config, w, tape = self.config, self.tensors, []
        x = (w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[1]]) * config.mup_embeddings_scale
        for n in range(config.n_layer):
            x = x + self._attention(n, self._norm(f"h.{n}.ln_1", x, tape), tape)
            x = x + self._mlp(n, self._norm(f"h.{n}.ln_2", x, tape), tape)
        x = self._norm("ln_f", x, tape)
        tape.append(x)
        logits = x @ self._head.T * self._logit_scale
        shifted = logits - logits.max(-1, keepdims=True)
        return tape, shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def _backward(self, ids: np.ndarray, tape: list, d_logits: np.ndarray) -> None:
        config, grads = self.config, self.grads
        x = tape.pop()
        head = "lm_head.weight" if "lm_head.weight" in self.tensors else "wte.weight"
        d_logits = d_logits * self._logit_scale
        grads[head] += np.einsum("btv,btc->vc", d_logits, x)
        dx = self._norm_backward("ln_f", d_logits @ self._head, tape)
        for n in reversed(range(config.n_layer)):
            dx = dx + self._norm_backward(f"h.{n}.ln_2", self._mlp_backward(n, dx, tape), tape)
            dx = dx + self._norm_backward(
                f"h.{n}.ln_1", self._attention_backward(n, dx, tape), tape
            )
        dx = dx * config.mup_embeddings_scale
        np.add.at(grads["wte.weight"], ids, dx)
        grads["wpe.weight"][: ids.shape[1]] += dx.sum(0)

    @property
    def _head(self) -> np.ndarray:
        return self.tensors.get("lm_head.weight", self.tensors["wte.weight"])

    @property
    def _logit_scale(self) -> float:
        return self.config.mup_output_alpha * self.config.mup_width_scale

    def _norm(self, name: str, x: np.ndarray, tape: list) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        rstd = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.layer_norm_epsilon)
        normal = centred * rstd
        tape.append((normal, rstd))
        return normal * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def _norm_backward(self, name: str, dy: np.ndarray, tape: list) -> np.ndarray:
        normal, rstd = tape.pop()
        self.grads[f"{name}.weight"] += (dy * normal).sum((0, 1))
        self.grads[f"{name}.bias"] += dy.sum((0, 1))
        d = dy * self.tensors[f"{name}.weight"]
        along = (d * normal).mean(-1, keepdims=True)
        return rstd * (d - d.mean(-1, keepdims=True) - normal * along)

    def _linear(self, name: str, x: np.ndarray, tape: list) -> np.ndarray:
        tape.append(x)
        return x @ self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def _linear_backward(self, name: str, dy: np.ndarray, tape: list) -> np.ndarray:
        self.grads[f"{name}.weight"] += np.einsum("btk,btn->kn", tape.pop(), dy)
        self.grads[f"{name}.bias"] += dy.sum((0, 1))
        return dy @ self.tensors[f"{name}.weight"].T

    def _mlp(self, n: int, x: np.ndarray, tape: list) -> np.ndarray:
        inner = self._linear(f"h.{n}.mlp.c_fc", x, tape)
        y, slope = activation(self.config.activation_function, inner)
        tape.append(slope)
        return self._linear(f"h.{n}.mlp.c_proj", y, tape)

    def _mlp_backward(self, n: int, dy: np.ndarray, tape: list) -> np.ndarray:
        d_inner = self._linear_backward(f"h.{n}.mlp.c_proj", dy, tape)
        return self._linear_backward(f"h.{n}.mlp.c_fc", d_inner * tape.pop(), tape)

    def _attention(self, n: int, x: np.ndarray, tape: list) -> np.ndarray:
        B, T, C = x.shape
        NH, HS = self.config.n_head, self.config.head_size
        qkv = self._linear(f"h.{n}.attn.c_attn", x, tape)
        q, k, v = qkv.reshape(B, T, 3, NH, HS).transpose(2, 0, 3, 1, 4)  # each [B, NH, T, HS]
        scores = q @ k.transpose(0, 1, 3, 2) * self._attention_scale(n)
        scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        tape.append((q, k, v, p))
        attended = (p @ v).transpose(0, 2, 1, 3).reshape(B, T, C)
        return self._linear(f"h.{n}.attn.c_proj", attended, tape)

    def _attention_backward(self, n: int, dy: np.ndarray, tape: list) -> np.ndarray:
        B, T, C = dy.shape
        NH, HS = self.config.n_head, self.config.head_size
        d_attended = self._linear_backward(f"h.{n}.attn.c_proj", dy, tape)
        d_attended = d_attended.reshape(B, T, NH, HS).transpose(0, 2, 1, 3)
        q, k, v, p = tape.pop()
        dp = d_attended @ v.transpose(0, 1, 3, 2)
        d_scores = p * (dp - (dp * p).sum(-1, keepdims=True)) * self._attention_scale(n)
        dq, dk = d_scores @ k, d_scores.transpose(0, 1, 3, 2) @ q
        dv = p.transpose(0, 1, 3, 2) @ d_attended
        d_qkv = np.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4).reshape(B, T, 3 * C)
        return self._linear_backward(f"h.{n}.attn.c_attn", d_qkv, tape)

    def _attention_scale(self, n: int) -> float:
        config = self.config
        scale = 1 / (n + 1) if config.scale_attn_by_inverse_layer_idx else 1.0
        if config.scale_attn_weights:
            scale *= config.head_size ** (-1.0 if config.mup_scale_qk_dot_by_d else -0.5)
        return scale


def activation(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(f(x), f'(x)) of an activation by its name in config.json, of x's float type."""
    if name == "gelu":
        below = (0.5 * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype)  # Φ
        return x * below, below + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    if name == "relu":
        return np.maximum(x, 0), (x > 0).astype(x.dtype)
    if name == "silu":
        sigmoid = 1 / (1 + np.exp(-x))
        return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))
    root = math.sqrt(2 / math.pi)  # gelu_new, and its other names
    t = np.tanh(root * (x + 0.044715 * x**3))
    inner_slope = root * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner_slope


def _nats(log_p: np.ndarray, targets: np.ndarray) -> float:
    counts = targets != -100
    picked = np.take_along_axis(log_p, np.where(counts, targets, 0)[..., None], -1)[..., 0]
    return -float(np.sum(picked[counts], dtype=np.float64))
