"""What a model remembers of the sequences it is reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import GPTConfig
from ..errors import InputError
from ..kernels.layout import AUX_DTYPE, KEY_BLOCK, aligned_zeros, padded


class State:
    """The keys and values of `slots` sequences of up to `capacity` tokens, and their lengths.

    keys, values  float32, or bfloat16 in uint16, flat; kernels/attention.py tells the layout
    lengths       int64 [slots]: the tokens read so far
    capacity      tokens a sequence may have, a multiple of KEY_BLOCK
    kept          what the engine that reads keeps here from one token to the next
    """

    def __init__(self, config: GPTConfig, slots: int, capacity: int, dtype: str = "f32") -> None:
        """dtype: how the weights are held. Raises InputError where the memory is not to be had."""
        self.capacity = padded(capacity, KEY_BLOCK)
        self.slots = slots
        heads = config.n_layer * slots * config.n_head
        size = heads * self.capacity * padded(config.head_size)
        try:
            # zeros are given out by the system when first touched: unused capacity costs nothing
            self.keys, self.values = (aligned_zeros(size, AUX_DTYPE[dtype]) for _ in range(2))
        except MemoryError as error:
            raise InputError(
                f"{slots} sequences of {capacity} tokens need more memory for their keys and "
                "values than there is; take fewer or shorter ones"
            ) from error
        self.lengths = np.zeros(slots, np.int64)
        self.kept: Any = None
        self._by_slot = (config.n_layer, slots, -1)

    def copy(self, slot: int, others: Sequence[int]) -> None:
        """Let the sequences in `others` begin with what was read of the one in `slot`."""
        for flat in (self.keys, self.values):
            by_slot = flat.reshape(self._by_slot)
            by_slot[:, others] = by_slot[:, slot, None]
        self.lengths[others] = self.lengths[slot]


def state_bytes(config: GPTConfig, slots: int, capacity: int, dtype: str = "f32") -> int:
    """The memory of a State, fully used."""
    per_token = 2 * config.n_layer * config.n_head * padded(config.head_size)
    return AUX_DTYPE[dtype].itemsize * slots * padded(capacity, KEY_BLOCK) * per_token
