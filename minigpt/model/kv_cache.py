"""The KV cache: keys and values of the tokens that each sequence has read so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..arguments import checked_choice, checked_integer, is_integer
from ..config import GPTConfig
from ..errors import InputError, short_repr
from ..kernels.layout import AUX_DTYPE, KEY_BLOCK, LANES, aligned_zeros, padded

if TYPE_CHECKING:
    from .forward import Buffers


class Workspace(NamedTuple):
    """An engine's buffers for the activations of up to `rows` tokens."""

    engine: object
    rows: int
    buffers: Buffers


class KVCache:
    """Keys and values of up to `slots` sequences, each of up to `capacity` tokens.

    A sequence occupies a slot from `allocate` or `fork` to `free`. The memory is zero at first and
    the system provides it where it is written, so unused capacity costs nothing.

    config        the model whose keys and values these are
    slots         how many sequences fit
    capacity      how many tokens each of them can have, a multiple of KEY_BLOCK
    lengths       int64 [slots]: the tokens each sequence has read; Engine.forward increases them
    keys, values  float32, or bfloat16 as uint16, flat; kernels/kv_cache.py describes the layout
    workspaces    the engine's buffers for activations, which it reuses from pass to pass
    """

    def __init__(self, config: GPTConfig, slots: int, capacity: int, dtype: str = "f32") -> None:
        """
        dtype  the dtype of the weights, "f32", "bf16", "int8" or "int4": it decides the keys' dtype

        Raises InputError for a size that is not an integer from 1, for another dtype, and where
        the machine does not have the memory.
        """
        slots = checked_integer("slots", slots, 1)
        capacity = checked_integer("capacity", capacity, 1)
        dtype = checked_choice("dtype", dtype, tuple(AUX_DTYPE))
        self.config = config
        self.slots = slots
        self.capacity = padded(capacity, KEY_BLOCK)
        L, NH, HSP = config.n_layer, config.n_head, padded(config.head_size)
        size = L * slots * NH * self.capacity * HSP
        try:
            self.keys, self.values = (aligned_zeros(size, AUX_DTYPE[dtype]) for _ in range(2))
        except (MemoryError, ValueError, OverflowError) as error:  # beyond the address space
            raise InputError(
                f"{short_repr(slots)} sequences of {short_repr(capacity)} tokens: their keys and "
                "values need more memory than there is; take fewer or shorter sequences"
            ) from error
        self.lengths = np.zeros(slots, np.int64)
        self.workspaces: dict[bool, Workspace] = {}
        self._free = list(reversed(range(slots)))  # the slot at the end is the next one given out
        self._allocated = [False] * slots
        self._written = [0] * slots  # how many positions may not be zero
        self._keys_by_block = self.keys.reshape(L, slots, NH, -1, KEY_BLOCK * HSP)
        self._values_by_block = self.values.reshape(self._keys_by_block.shape)

    def allocate(self) -> int:
        """The slot of a new, empty sequence. Raises InputError where all slots are allocated."""
        slot = self._take()
        self._clear(slot, 0)  # of the sequence that was here before
        return slot

    def free(self, slot: int) -> None:
        """End the sequence in `slot`; `allocate` can then return the slot again."""
        slot = self._checked(slot)
        self.lengths[slot] = 0
        self._allocated[slot] = False
        self._free.append(slot)

    def fork(self, slot: int) -> int:
        """The slot of a new sequence that has read what the sequence in `slot` has.

        Copies the blocks of KEY_BLOCK tokens that are used, not the whole capacity. Raises
        InputError where all slots are allocated.
        """
        slot = self._checked(slot)
        copy = self._take()
        used = _blocks(self.lengths[slot])
        self._clear(copy, used)
        for blocks in (self._keys_by_block, self._values_by_block):
            blocks[:, copy, :, :used] = blocks[:, slot, :, :used]
        self.lengths[copy] = self.lengths[slot]
        self._written[copy] = int(self.lengths[slot])
        return copy

    def truncate(self, slot: int, length: int) -> None:
        """Let the sequence in `slot` forget all but its first `length` tokens."""
        slot = self._checked(slot)
        length = checked_integer("length", length, 0, int(self.lengths[slot]))
        self.lengths[slot] = length
        if length % KEY_BLOCK:
            self._clear_tail(slot, length)
        self._clear(slot, _blocks(length))

    def begin_write(self, slots: Sequence[int], counts: Sequence[int]) -> list[int]:
        """Prepare to write the next counts[i] tokens of each slots[i].

        Returns the position of each sequence's first new token. Raises InputError for a slot that
        is not allocated, a slot that occurs twice, and a sequence that would become longer than
        the capacity or the model's context.
        """
        limit = min(self.capacity, self.config.n_positions)
        starts = [int(self.lengths[self._checked(slot)]) for slot in slots]
        if len(set(slots)) < len(slots):
            raise InputError(f"slots {short_repr(list(slots))}: must all be different")
        for slot, start, count in zip(slots, starts, counts, strict=True):
            end = start + count
            if end > limit:
                raise InputError(
                    f"a sequence of {end} tokens: the KV cache and the model's context have room "
                    f"for {limit}"
                )
            self._written[slot] = max(self._written[slot], end)
        return starts

    def _take(self) -> int:
        if not self._free:
            raise InputError(f"all {self.slots} slots of the KV cache are allocated; free one")
        slot = self._free.pop()
        self._allocated[slot] = True
        return slot

    def _checked(self, slot: object) -> int:
        if is_integer(slot) and 0 <= slot < self.slots and self._allocated[slot]:
            return int(slot)
        raise InputError(f"slot {short_repr(slot)}: is not allocated")

    def _clear(self, slot: int, first: int) -> None:
        """Set what was written from block `first` on to zero.

        Attention gives positions after the query the weight 0, so finite values that an earlier
        sequence left there change nothing. NaN and infinity, which a damaged model computes,
        would: 0 · NaN is NaN. Keys there change nothing, whatever they are, and are cleared too.
        """
        end = _blocks(self._written[slot])
        if first < end:
            for blocks in (self._keys_by_block, self._values_by_block):
                blocks[:, slot, :, first:end] = 0
        self._written[slot] = min(self._written[slot], first * KEY_BLOCK)

    def _clear_tail(self, slot: int, length: int) -> None:
        """Set keys and values from position `length` to the end of its block to zero.

        kernels/kv_cache.py describes the panels; bfloat16 lies in pairs of rows, see panel_offset.
        """
        block, t = divmod(length, KEY_BLOCK)
        pair = 4 // self.keys.itemsize
        keys = self._keys_by_block[:, slot, :, block]  # [L, NH, KEY_BLOCK · HSP]
        keys = keys.reshape(*keys.shape[:2], KEY_BLOCK // LANES, -1, LANES, pair)
        keys[:, :, t // LANES, :, t % LANES :] = 0
        keys[:, :, t // LANES + 1 :] = 0
        values = self._values_by_block[:, slot, :, block]
        values = values.reshape(*values.shape[:2], -1, KEY_BLOCK // pair, LANES, pair)
        values[:, :, :, t // pair, :, t % pair :] = 0
        values[:, :, :, t // pair + 1 :] = 0


def _blocks(length: int) -> int:
    """How many blocks of KEY_BLOCK tokens `length` tokens use."""
    return -(-int(length) // KEY_BLOCK)


def kv_cache_bytes(config: GPTConfig, slots: int, capacity: int, dtype: str = "f32") -> int:
    """The memory of the keys and values of a KVCache that is fully used."""
    per_token = 2 * config.n_layer * config.n_head * padded(config.head_size)
    return AUX_DTYPE[dtype].itemsize * slots * padded(capacity, KEY_BLOCK) * per_token
