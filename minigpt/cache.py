"""What a model remembers of the sequences it is reading."""

from __future__ import annotations

import numpy as np

from .config import GPTConfig
from .errors import InputError
from .kernels.layout import KEYS, padded


class State:
    """The keys and values of `slots` sequences of up to `capacity` tokens, and their lengths.

    keys, values  float32, flat; kernels/attention.py tells the layout
    lengths       int64 [slots]: the tokens read so far
    capacity      tokens a sequence may have, a multiple of KEYS
    """

    def __init__(self, config: GPTConfig, slots: int, capacity: int) -> None:
        """Raises InputError where the memory is not to be had."""
        self.capacity = -(-capacity // KEYS) * KEYS
        self.slots = slots
        heads = config.n_layer * slots * config.n_head
        try:
            # zeros are given out by the system when first touched: unused capacity costs nothing
            self.keys = np.zeros(heads * self.capacity * config.head_size, np.float32)
            self.values = np.zeros(heads * self.capacity * padded(config.head_size), np.float32)
        except MemoryError as error:
            raise InputError(
                f"{slots} sequences of {capacity} tokens need more memory for their keys and "
                "values than there is; take fewer or shorter ones"
            ) from error
        self.lengths = np.zeros(slots, np.int64)


def state_bytes(config: GPTConfig, slots: int, capacity: int) -> int:
    """The memory of a State, fully used."""
    per_token = config.n_layer * config.n_head * (config.head_size + padded(config.head_size))
    return 4 * slots * (-(-capacity // KEYS) * KEYS) * per_token
