"""A stand-in for GPTModel whose every answer is known: it counts."""

from __future__ import annotations

import numpy as np

from minigpt.config import GPTConfig
from minigpt.model.kv_cache import KVCache

V, N_POSITIONS, EOS = 10, 16, 9


class Counter:
    """After token i comes i + 1, up to EOS = 9, after which comes 0. It is its own engine.

    sampled_vocab_size  V
    flat  every token is equally likely instead
    fed   the passes: {slot: tokens} of each
    """

    def __init__(self, flat: bool = False) -> None:
        self.config = GPTConfig.from_dict(
            {
                "n_layer": 1,
                "n_head": 1,
                "n_embd": 1,
                "n_positions": N_POSITIONS,
                "vocab_size": V,
                "eos_token_id": EOS,
            },
            "config",
        )
        self.sampled_vocab_size = V
        self.flat = flat
        self.fed: list[dict[int, list[int]]] = []

    @property
    def engine(self) -> Counter:
        return self

    def new_cache(self, slots: int, capacity: int) -> KVCache:
        self.capacity = capacity
        return KVCache(self.config, slots, capacity)

    def forward(
        self, cache: KVCache, slots: list[int], ids: list[np.ndarray], last: int | list[int]
    ) -> np.ndarray:
        assert all(part.dtype == np.int64 and part.ndim == 1 for part in ids)
        self.fed.append({slot: part.tolist() for slot, part in zip(slots, ids, strict=True)})
        counts = np.array([len(part) for part in ids])
        starts = cache.begin_write(slots, counts.tolist())
        assert (starts + counts).max() <= self.capacity
        numbers = [last] * len(ids) if isinstance(last, int) else last
        after = [
            token for part, n in zip(ids, numbers, strict=True) for token in part[len(part) - n :]
        ]
        logits = np.zeros((len(after), V), np.float32)
        if not self.flat:
            logits[np.arange(len(after)), [(token + 1) % V for token in after]] = 9
        cache.lengths[slots] += counts
        return logits
