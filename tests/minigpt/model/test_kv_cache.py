"""The KV cache: slots, lengths and memory. What attention reads from it, test_engine.py says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minigpt.config import GPTConfig
from minigpt.errors import InputError
from minigpt.kernels.layout import KEY_BLOCK
from minigpt.model.kv_cache import KVCache, kv_cache_bytes

N_POSITIONS = 3 * KEY_BLOCK + 10
CONFIG = GPTConfig.from_dict(
    {"n_layer": 2, "n_head": 2, "n_embd": 10, "n_positions": N_POSITIONS, "vocab_size": 5}, "test"
)
SLOTS = 3


def blocks(cache: KVCache, slot: int) -> np.ndarray:
    """The keys of a slot by block: [blocks, n]."""
    shape = (CONFIG.n_layer, cache.slots, CONFIG.n_head, cache.capacity // KEY_BLOCK, -1)
    by_block = np.moveaxis(cache.keys.reshape(shape)[:, slot], 2, 0)
    return by_block.reshape(len(by_block), -1)


def write(cache: KVCache, slot: int, count: int, number: float) -> None:
    """Stand in for the kernel: fill every block that `count` more tokens touch."""
    (start,) = cache.begin_write([slot], [count])
    shape = (CONFIG.n_layer, cache.slots, CONFIG.n_head, cache.capacity // KEY_BLOCK, -1)
    for flat in (cache.keys, cache.values):
        last = (start + count - 1) // KEY_BLOCK
        flat.reshape(shape)[:, slot, :, start // KEY_BLOCK : last + 1] = number
    cache.lengths[slot] += count


def test_capacity_is_a_multiple_of_the_block() -> None:
    cache = KVCache(CONFIG, 2, KEY_BLOCK + 1)
    assert (cache.slots, cache.capacity) == (2, 2 * KEY_BLOCK)
    assert cache.lengths.tolist() == [0, 0]
    assert not cache.keys.any()
    bytes_of_arrays = cache.keys.nbytes + cache.values.nbytes
    assert bytes_of_arrays == kv_cache_bytes(CONFIG, 2, KEY_BLOCK + 1)
    assert KVCache(CONFIG, 2, KEY_BLOCK, "int4").keys.dtype == np.uint16


def test_more_memory_than_there_is() -> None:
    with pytest.raises(InputError, match="memory"):
        KVCache(CONFIG, 2**40, N_POSITIONS)


@pytest.mark.parametrize(
    ("slots", "capacity"),
    [(np.int64(2**55 + 256), 1), (1, np.int64(2**55 + 256)), (1, 10**30), (10**30, 1)],
)
def test_no_size_overflows(slots: int, capacity: int) -> None:
    with pytest.raises(InputError, match="more memory than there is"):
        KVCache(CONFIG, slots, capacity)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("slots 0: must be an integer from 1", (0, 1)),
        ("slots 1.0: must be an integer", (1.0, 1)),
        ("capacity -1: must be an integer", (1, -1)),
        ("capacity None: must be an integer", (1, None)),
        ("dtype 'f16': must be one of f32, bf16", (1, 1, "f16")),
        ("dtype None: must be one of f32, bf16", (1, 1, None)),
    ],
)
def test_a_wrong_size_or_dtype(message: str, arguments: tuple) -> None:
    with pytest.raises(InputError, match=message):
        KVCache(CONFIG, *arguments)


def test_a_full_cache_says_so() -> None:
    cache = KVCache(CONFIG, 2, KEY_BLOCK)
    slots = {cache.allocate(), cache.fork(0)}
    assert slots == {0, 1}
    for call in (cache.allocate, lambda: cache.fork(0)):
        with pytest.raises(InputError, match="all 2 slots"):
            call()
    cache.free(1)
    assert cache.allocate() == 1


@pytest.mark.parametrize("slot", [1, 2, 3, -1, True, 0.0, None, "0", 10**400])
def test_a_slot_must_be_allocated(slot: object) -> None:
    cache = KVCache(CONFIG, SLOTS, KEY_BLOCK)
    cache.allocate()
    for call in (cache.free, cache.fork, lambda slot: cache.truncate(slot, 0)):
        with pytest.raises(InputError, match=r"slot .*is not allocated"):
            call(slot)


def test_a_slot_is_freed_once() -> None:
    cache = KVCache(CONFIG, SLOTS, KEY_BLOCK)
    slot = cache.allocate()
    cache.free(slot)
    with pytest.raises(InputError, match="not allocated"):
        cache.free(slot)


@pytest.mark.parametrize("length", [8, -1, 7.0, True, None])
def test_truncate_shortens_only(length: object) -> None:
    cache = KVCache(CONFIG, 1, KEY_BLOCK)
    write(cache, cache.allocate(), 7, 1.0)
    with pytest.raises(InputError, match=r"length .*from 0 to 7"):
        cache.truncate(0, length)
    cache.truncate(0, np.int32(7))
    assert cache.lengths.tolist() == [7]


def test_a_fork_copies_the_used_blocks_alone() -> None:
    cache = KVCache(CONFIG, 2, 3 * KEY_BLOCK)
    slot = cache.allocate()
    write(cache, slot, KEY_BLOCK + 1, 7.0)
    blocks(cache, slot)  # the third block is unused: whatever is in it is not copied
    cache.keys.reshape(CONFIG.n_layer, 2, CONFIG.n_head, 3, -1)[:, slot, :, 2] = 9
    copy = cache.fork(slot)
    assert cache.lengths.tolist() == [KEY_BLOCK + 1] * 2
    assert (blocks(cache, copy)[:2] == 7).all()
    assert not blocks(cache, copy)[2].any()


def test_a_reused_slot_is_zero_again() -> None:
    """Also where the earlier sequence was truncated, or its last pass failed."""
    cache = KVCache(CONFIG, 1, 3 * KEY_BLOCK)
    slot = cache.allocate()
    write(cache, slot, 2 * KEY_BLOCK, np.nan)
    cache.lengths[slot] = 3  # as if the pass had failed after it wrote
    cache.truncate(slot, 1)
    cache.free(slot)
    assert cache.allocate() == slot
    assert not cache.keys.any()
    assert not cache.values.any()


class Slots(RuleBasedStateMachine):
    """Any order of calls against a dictionary {slot: what it has read}."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(CONFIG, SLOTS, N_POSITIONS)
        self.texts: dict[int, list[float]] = {}
        self.number = 0.0

    @rule()
    def allocate(self) -> None:
        if len(self.texts) == SLOTS:
            with pytest.raises(InputError):
                self.cache.allocate()
            return
        slot = self.cache.allocate()
        assert slot not in self.texts
        self.texts[slot] = []

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def free(self, data) -> None:
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        self.cache.free(slot)
        del self.texts[slot]

    @precondition(lambda self: 0 < len(self.texts) < SLOTS)
    @rule(data=st.data())
    def fork(self, data) -> None:
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        copy = self.cache.fork(slot)
        assert copy not in self.texts
        self.texts[copy] = list(self.texts[slot])

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), blocks_more=st.integers(1, 3))
    def write(self, data, blocks_more: int) -> None:
        """Whole blocks, so that the test need not know the layout inside of one."""
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        self.number += 1
        length = (len(self.texts[slot]) + blocks_more) * KEY_BLOCK
        if length > N_POSITIONS:
            with pytest.raises(InputError, match="room for"):
                write(self.cache, slot, blocks_more * KEY_BLOCK, self.number)
            return
        write(self.cache, slot, blocks_more * KEY_BLOCK, self.number)
        self.texts[slot] += [self.number] * blocks_more

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def truncate(self, data) -> None:
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        length = data.draw(st.integers(0, len(self.texts[slot])))
        self.cache.truncate(slot, length * KEY_BLOCK)
        del self.texts[slot][length:]

    @invariant()
    def every_sequence_holds_what_it_read_and_zeros_after_it(self) -> None:
        for slot, text in self.texts.items():
            assert self.cache.lengths[slot] == len(text) * KEY_BLOCK
            found = blocks(self.cache, slot)
            expected = text + [0.0] * (len(found) - len(text))
            assert (found == np.array(expected)[:, None]).all()


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=60, stateful_step_count=25)
