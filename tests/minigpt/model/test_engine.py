"""The forward pass: the same bits however tokens arrive. That it is right, test_golden.py says."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from minigpt.config import GPTConfig
from minigpt.errors import InputError
from minigpt.kernels import reference, team
from minigpt.kernels.attention import QUERY_BLOCK
from minigpt.kernels.layout import KEY_BLOCK, LANES, bf16_to_f32, f32_to_bf16
from minigpt.kernels.simd import BF16_PRODUCTS
from minigpt.model.engine import ROWS, Engine
from minigpt.model.forward import query_blocks
from minigpt.model.kv_cache import KVCache
from minigpt.weights.packed import Weights
from minigpt.weights.table import QUANTIZED_DTYPES, is_packed, is_transposed, tensor_shapes

CONFIG = GPTConfig.from_dict(
    {"n_layer": 2, "n_head": 3, "n_embd": 21, "n_positions": 700, "vocab_size": 50}, "test"
)


def random_weights(dtype: str, rounded: bool = False) -> Weights:
    """rounded: stored as float32, the values of the matrices rounded to bfloat16"""
    rng = np.random.default_rng(5)
    shapes = tensor_shapes(CONFIG)
    tensors, scales = {}, {}
    for name, shape in shapes.items():
        tensor = rng.standard_normal(shape, np.float32) * np.float32(0.4)
        if len(shape) == 2 and rounded:
            tensor = bf16_to_f32(f32_to_bf16(tensor))
        if dtype in QUANTIZED_DTYPES and is_packed(name, shape):
            factor = tensor.T if is_transposed(name) else tensor
            tensors[name], scales[name] = reference.pack_quantized(
                *reference.quantize(factor, dtype)
            )
        else:
            tensors[name] = _stored(name, tensor, np.float32 if dtype == "f32" else np.uint16)
    return Weights(tensors, scales, shapes, dtype, "")


def _stored(name: str, tensor: np.ndarray, dtype: type) -> np.ndarray:
    if is_packed(name, tensor.shape):
        return reference.pack_panels(tensor.T if is_transposed(name) else tensor, dtype)
    return f32_to_bf16(tensor) if tensor.ndim == 2 and dtype == np.uint16 else tensor


def new_cache(engine: Engine, slots: int = 1, dtype: str | None = None) -> KVCache:
    """A cache in which all slots are allocated: 0, 1, …"""
    cache = KVCache(CONFIG, slots, CONFIG.n_positions, dtype or engine.weights.dtype)
    assert [cache.allocate() for _ in range(slots)] == list(range(slots))
    return cache


def forward_exact(engine: Engine, ids: np.ndarray, last: int | None) -> np.ndarray:
    """The logits with keys and values that are not rounded, which a user cannot have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_cache_dtype", np.dtype(np.float32))
        return engine.forward(new_cache(engine, dtype="f32"), [0], [ids], last)


def forward(engine: Engine, passes: list[tuple[list[int], list[np.ndarray]]]) -> list[np.ndarray]:
    """The logits after each pass; a pass is (slots, their ids)."""
    cache = new_cache(engine, 3)
    return [engine.forward(cache, slots, ids) for slots, ids in passes]


@pytest.fixture(
    scope="module",
    params=["f32", *(pytest.param(d, marks=pytest.mark.amx) for d in ("bf16", "int8", "int4"))],
)
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(CONFIG, random_weights(request.param), 2)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(6).integers(0, 50, 650)


@pytest.fixture(scope="module")
def expected_logits(engine: Engine, ids: np.ndarray) -> np.ndarray:
    """The logits at every one of 650 tokens read at once: [650, V]."""
    return engine.forward(new_cache(engine), [0], [ids], last=None)


def test_a_prompt_longer_than_a_chunk_is_read_like_one(engine, ids, expected_logits):
    assert len(ids) > ROWS
    cuts = [0, 1, 2, 40, 300, 301, 512, 650]
    passes = [([0], [ids[a:b]]) for a, b in pairwise(cuts)]
    for logits, end in zip(forward(engine, passes), cuts[1:], strict=True):
        assert logits.tobytes() == expected_logits[end - 1].tobytes()


def test_token_by_token(engine, ids, expected_logits):
    logits = forward(engine, [([0], [ids[t : t + 1]]) for t in range(130)])
    assert np.vstack(logits).tobytes() == expected_logits[:130].tobytes()


def test_a_batch_is_each_alone(engine, ids, expected_logits):
    first, then = forward(
        engine,
        [([2, 0, 1], [ids[:70], ids[:1], ids[:555]]), ([1, 2], [ids[555:556], ids[70:200]])],
    )
    assert first.tobytes() == expected_logits[[69, 0, 554]].tobytes()
    assert then.tobytes() == expected_logits[[555, 199]].tobytes()


def test_a_short_pass_is_run_by_one_thread(engine, ids, expected_logits, monkeypatch):
    """Its workers would begin when it is over. A longer one is run by all."""
    other = Engine(CONFIG, engine.weights, 2)
    calls = []
    together = other._team._call_together
    monkeypatch.setattr(
        other._team, "_call_together", lambda *a: [calls.append(a), together(*a)][1]
    )
    cache = new_cache(other)
    assert other.forward(cache, [0], [ids[:5]]).tobytes() == expected_logits[4].tobytes()
    assert not calls
    monkeypatch.setattr("minigpt.model.engine.SHORT_PASS", 5 * other._weights_bytes)
    assert other.forward(cache, [0], [ids[5:10]]).tobytes() == expected_logits[9].tobytes()
    assert calls


@pytest.mark.threads
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(engine, ids, expected_logits, threads, meet):
    meet(threads)
    other = Engine(CONFIG, engine.weights, threads)
    logits = other.forward(new_cache(other), [0], [ids], last=None)
    assert logits.tobytes() == expected_logits.tobytes()
    last = other.forward(new_cache(other), [0], [ids[:400]])
    assert last.tobytes() == expected_logits[399].tobytes()


@pytest.mark.threads
def test_any_number_of_threads_on_a_busy_machine(engine, ids, expected_logits, monkeypatch):
    """More threads than processors, other programs beside them, and workers that come late."""
    call = team._call
    naps = np.random.default_rng(3).exponential(3e-4, 1000).tolist()

    def nap_and_call(function, member, *rest):
        if member.rank and naps:
            time.sleep(naps.pop())
        call(function, member, *rest)

    monkeypatch.setattr(team, "_call", nap_and_call)
    monkeypatch.setattr("minigpt.model.engine.SHORT_PASS", 0)
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for program in others:
            program.stdout.readline()  # it has begun
        for threads in (2, 4, 8):
            other = Engine(CONFIG, engine.weights, threads)
            cache = new_cache(other, 2)
            for a, b in pairwise([0, 300, *range(301, 311), 650]):
                logits = other.forward(cache, [1], [ids[a:b]])
                assert logits.tobytes() == expected_logits[b - 1].tobytes()
    finally:
        for program in others:
            program.kill()
            program.communicate()


def test_bfloat16_weights_give_what_their_float32_values_give(ids):
    """Bit for bit, but where the processor multiplies bfloat16 and activations are rounded, too."""
    a, b = (
        forward_exact(engine, ids, last=1)
        for engine in (
            Engine(CONFIG, random_weights("bf16"), 1),
            Engine(CONFIG, random_weights("f32", rounded=True), 1),
        )
    )
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-2 * np.abs(b).max() if BF16_PRODUCTS else 0)


@pytest.mark.slow
def test_rounded_keys_and_values_change_little(engine, ids, expected_logits):
    exact = forward_exact(engine, ids, last=None)
    limit = 0 if engine.weights.dtype == "f32" else 2e-2
    np.testing.assert_allclose(expected_logits, exact, rtol=0, atol=limit * np.abs(exact).max())


def test_a_pass_that_fails_leaves_the_lengths_as_they_were(
    engine, ids, expected_logits, monkeypatch
):
    cache = new_cache(engine)
    engine.forward(cache, [0], [ids[:20]])
    with monkeypatch.context() as patch:
        patch.setattr(
            engine._team, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            engine.forward(cache, [0], [ids[:30]])
    assert cache.lengths.tolist() == [20]
    assert engine.forward(cache, [0], [ids[20:50]]).tobytes() == expected_logits[49].tobytes()


def test_logits_of_the_last_positions_are_those_of_all(engine, ids, expected_logits):
    """`last` is one number for all sequences or one for each; 0 gives none."""
    cache = new_cache(engine, 3)
    logits = engine.forward(cache, [0, 2, 1], [ids[:40], ids[:7], ids[:9]], last=[3, 0, 9])
    assert logits.tobytes() == expected_logits[[37, 38, 39, *range(9)]].tobytes()
    logits = engine.forward(cache, [1, 2], [ids[9:600], ids[7:10]], last=np.int64(2))
    assert logits.tobytes() == expected_logits[[598, 599, 8, 9]].tobytes()
    assert engine.forward(cache, [0], [ids[40:41]], last=0).shape == (0, CONFIG.vocab_size)
    assert engine.forward(cache, [0], [ids[41:43]]).tobytes() == expected_logits[42].tobytes()


def test_buffers_are_reused(engine, ids, expected_logits):
    """By passes of few tokens, and by longer ones that are not the longest so far."""
    cache = new_cache(engine)
    made = []
    start = 0
    for count in (1, 16, 3, 30, 20, 40, 1, 40):
        logits = engine.forward(cache, [0], [ids[start : start + count]])
        start += count
        assert logits.tobytes() == expected_logits[start - 1].tobytes()
        made.append(cache.workspaces[count <= 16].buffers)
    short, longer, longest = made[0], made[3], made[5]
    expected = [short, short, short, longer, longer, longest, short, longest]
    assert all(a is b for a, b in zip(made, expected, strict=True))
    assert longer is not longest


def array(*ids: int) -> np.ndarray:
    return np.array(ids, np.int64)


@pytest.mark.parametrize(
    ("slots", "sequences", "last"),
    [
        ([0], [array(50)], 1),
        ([0], [array(1, -1)], 1),
        ([0], [array()], 1),
        ([0], [array(1)[None]], 1),
        ([0], [array(1).astype(np.int32)], 1),
        ([0], [array(*[1] * 699)], 1),  # after two tokens: beyond n_positions
        ([0], [], 1),
        ([], [], 1),
        ([0, 1], [array(1)], 1),
        ([0, 0], [array(1), array(1)], 1),
        ([2], [array(1)], 1),  # not allocated
        ([3], [array(1)], 1),
        ([-1], [array(1)], 1),
        ([0], [array(1)], 2),
        ([0], [array(1)], -1),
        ([0], [array(1)], True),
        ([0], [array(1)], [1, 1]),
        ([0], [array(1)], [1.0]),
        (None, [array(1)], 1),
        (0, [array(1)], 1),
        ([0], None, 1),
        ([0], 5, 1),
        ([0], [5], 1),
        ([0], [[1]], 1),
        ([{}], [array(1)], 1),
        ([0], [array(1)], "1"),
        ([0], [array(1)], np.uint64(2)),
    ],
)
def test_nothing_unchecked_reaches_a_kernel(engine, slots, sequences, last, monkeypatch):
    cache = KVCache(CONFIG, 3, 700, engine.weights.dtype)
    for _ in range(2):
        cache.allocate()
    engine.forward(cache, [0, 1], [array(1, 2), array(3)])
    monkeypatch.setattr(engine._team, "run", lambda *_, **__: pytest.fail("a kernel ran"))
    with pytest.raises(InputError):
        engine.forward(cache, slots, sequences, last)
    assert cache.lengths.tolist() == [2, 1, 0]


def test_numpy_integers_are_slots_and_last(engine, ids, expected_logits):
    for last in (np.uint64(2), [np.uint64(2)], np.int8(2)):
        logits = engine.forward(new_cache(engine), [np.uint64(0)], [ids[:20]], last)
        assert logits.tobytes() == expected_logits[18:20].tobytes()


@pytest.mark.parametrize("cache", [None, 5, "cache", KVCache])
def test_a_cache_of_another_kind_is_refused(engine, cache):
    with pytest.raises(InputError, match=r"^cache .*: must be a KVCache"):
        engine.forward(cache, [0], [array(1)])


def test_a_cache_of_another_dtype_is_refused(engine):
    cache = new_cache(engine, dtype="bf16" if engine.weights.dtype == "f32" else "f32")
    with pytest.raises(InputError, match="was made for another dtype than"):
        engine.forward(cache, [0], [array(1)])


def test_a_sequence_ends_at_the_capacity(engine, ids):
    cache = KVCache(CONFIG, 1, 1, engine.weights.dtype)
    slot = cache.allocate()
    engine.forward(cache, [slot], [ids[: cache.capacity]])
    with pytest.raises(InputError, match=f"room for {cache.capacity}"):
        engine.forward(cache, [slot], [ids[:1]])


def test_a_cache_of_another_model_is_refused(engine):
    config = GPTConfig.from_dict(
        {"n_layer": 1, "n_head": 3, "n_embd": 21, "n_positions": 700, "vocab_size": 50}, "test"
    )
    cache = KVCache(config, 1, 700, engine.weights.dtype)
    with pytest.raises(InputError, match="another model"):
        engine.forward(cache, [cache.allocate()], [array(1)])


@pytest.mark.parametrize("length", [0, 1, 33, KEY_BLOCK - 1, KEY_BLOCK, 200])
def test_a_truncated_sequence_goes_on_as_if_it_had_never_been_longer(
    engine, ids, expected_logits, length
):
    cache = new_cache(engine)
    engine.forward(cache, [0], [ids[300:640]])
    cache.truncate(0, 0)
    engine.forward(cache, [0], [ids[:330]])
    cache.truncate(0, length)
    logits = engine.forward(cache, [0], [ids[length : length + 60]])
    assert logits.tobytes() == expected_logits[length + 59].tobytes()


def test_forks_go_on_each_for_itself(engine, ids, expected_logits):
    cache = KVCache(CONFIG, 3, 700, engine.weights.dtype)
    slot = cache.allocate()
    engine.forward(cache, [slot], [ids[:150]])
    fork = cache.fork(slot)
    engine.forward(cache, [fork], [ids[:20]])  # another text: changes nothing in the original
    again = cache.fork(slot)
    logits = engine.forward(cache, [again, slot], [ids[150:170], ids[150:160]])
    assert logits.tobytes() == expected_logits[[169, 159]].tobytes()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nothing_of_a_damaged_sequence_leaks_into_the_next(engine, ids, expected_logits, wrong):
    """NaN in the values that attention weighs with 0 would make its sums NaN."""
    cache = new_cache(engine)
    for end in (
        lambda: cache.truncate(0, 0),
        lambda: cache.truncate(0, 5),
        lambda: cache.truncate(0, KEY_BLOCK + 1),
        lambda: (cache.free(0), cache.allocate()),
    ):
        kept = ids[: KEY_BLOCK + 1]
        cache.truncate(0, 0)
        engine.forward(cache, [0], [np.append(kept, ids[:100])])
        damage(cache, wrong, len(kept), len(kept) + 100)
        end()
        length = int(cache.lengths[0])
        logits = engine.forward(cache, [0], [ids[length : KEY_BLOCK + 20]])
        assert logits.tobytes() == expected_logits[KEY_BLOCK + 19].tobytes()


def damage(cache: KVCache, wrong: float, begin: int, end: int) -> None:
    """Set all keys and values from position `begin` to `end` of slot 0 to a wrong number."""
    for t in range(begin, end):
        block, row = divmod(t, KEY_BLOCK)
        for flat, is_key in ((cache.keys, True), (cache.values, False)):
            number = np.float32(wrong)
            bits = number if flat.dtype == np.float32 else f32_to_bf16(number[None])[0]
            by_block = flat.reshape(
                CONFIG.n_layer, cache.slots, CONFIG.n_head, cache.capacity // KEY_BLOCK, -1
            )[:, 0, :, block]
            HSP = by_block.shape[-1] // KEY_BLOCK
            for d in range(HSP):
                by_block[:, :, _offset(flat, is_key, row, d, HSP)] = bits


def _offset(flat: np.ndarray, is_key: bool, t: int, d: int, HSP: int) -> int:
    """Where position t, dimension d lies in a block, by the layout of kernels/kv_cache.py."""
    k, column = (d, t) if is_key else (t, d)
    rows = HSP if is_key else KEY_BLOCK
    panel, lane = column // LANES * LANES * rows, column % LANES
    if flat.itemsize == 2:
        return panel + (k - k % 2) * LANES + 2 * lane + k % 2
    return panel + k * LANES + lane


def test_attention_blocks_are_runs_of_one_sequence():
    owners = np.array([4] * (QUERY_BLOCK + 2) + [1] * 3)
    positions = np.array([*range(10, QUERY_BLOCK + 12), 0, 1, 2])
    assert query_blocks(owners, positions).reshape(-1, 4).tolist() == [
        [4, 0, QUERY_BLOCK, 10],
        [4, QUERY_BLOCK, 2, QUERY_BLOCK + 10],
        [1, QUERY_BLOCK + 2, 3, 0],
    ]
