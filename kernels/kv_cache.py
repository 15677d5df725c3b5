"""The KV cache of a layer: the keys and values of all tokens read so far, as attention reads them.

Keys and values lie in panels (layout.py), the B operands of attention's products:
  keys    [slots, NH, capacity / KEY_BLOCK]  of kᵀ [HS, KEY_BLOCK]
  values  [slots, NH, capacity / KEY_BLOCK]  of v  [KEY_BLOCK, HS]
each of KEY_BLOCK · HSP elements, HSP = padded(HS). A slot holds one sequence.

What attention needs beyond a query's position: values are finite, since e = 0 multiplies them and
0 · NaN is NaN; keys can be anything, as their scores are not used. The rows and columns that pad HS
to HSP are zero, and never written. minigpt/model/kv_cache.py provides zeros and clears what earlier
sequences left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import jit
from .layout import KEY_BLOCK, LANES, padded
from .simd import (
    get,
    load_first,
    panel_offset,
    put,
    store_row_pair,
    transpose_16x16_to_panel,
)
from .team import barrier, next_task


class LayerCache(NamedTuple):
    """The keys and values of one layer.

    keys, values  flat, in the layout above: float32, or bfloat16 as uint16
    capacity      tokens per slot, a multiple of KEY_BLOCK
    """

    keys: np.ndarray
    values: np.ndarray
    capacity: int


class Heads(NamedTuple):
    """The attention heads of a layer.

    NH     number of heads
    HS     head size; C = NH · HS
    scale  float32: the factor of the scores q · k
    """

    NH: int
    HS: int
    scale: np.float32


@jit
def head_offset(cache, heads, slot, h):
    """The element of cache.keys and cache.values at which head h of a slot begins."""
    return (slot * heads.NH + h) * cache.capacity * padded(heads.HS)


@jit
def kv_cache_write(team, cache, heads, qkv, slots, positions):
    """Write the keys and values of M tokens into the cache.

    qkv               View [M, 3C]: query, key and value of each token
    slots, positions  int64 [M]: the slot of each token's sequence, and its position in it
    """
    C, HSP = heads.NH * heads.HS, padded(heads.HS)
    m = next_task(team)
    while m < qkv.M:
        t = positions[m]
        first = m - t % LANES
        together = _fill_lanes(slots, positions, first, qkv.M)
        for h in range(heads.NH):
            block = head_offset(cache, heads, slots[m], h) + t // KEY_BLOCK * KEY_BLOCK * HSP
            key = m * qkv.ld + C + h * heads.HS
            if not together:
                _write_token(cache, block, qkv.data, key, key + C, t % KEY_BLOCK, heads.HS)
            elif m == first:
                _write_lanes(cache, block, qkv, key, key + C, t % KEY_BLOCK, heads.HS)
        m = next_task(team)
    barrier(team)


@jit
def _fill_lanes(slots, positions, first, M):
    """Whether the LANES tokens from row `first` on fill the lanes of a panel of keys: consecutive
    tokens of one sequence, the first at a multiple of LANES."""
    if first < 0 or first + LANES > M or positions[first] % LANES:
        return False
    for i in range(1, LANES):
        same = slots[first + i] == slots[first]
        if not same or positions[first + i] != positions[first] + i:
            return False
    return True


@jit
def _write_token(cache, block, qkv, key, value, t, HS):
    """Write one token's key and value, at elements `key` and `value` of qkv, as token t of the
    block of the cache at element `block`."""
    keys, values = cache.keys, cache.values
    column = block + t // LANES * LANES * padded(HS)
    for d in range(HS):
        put(get(qkv, key + d), keys, column + panel_offset(keys, d, t % LANES))
        row = d // LANES * LANES * KEY_BLOCK + panel_offset(values, t, d % LANES)
        put(get(qkv, value + d), values, block + row)


@jit
def _write_lanes(cache, block, qkv, key, value, t, HS):
    """_write_token for the LANES tokens from t on, whose rows follow each other in qkv."""
    keys, values, x, ld = cache.keys, cache.values, qkv.data, qkv.ld
    column = block + t * padded(HS)
    whole = HS - HS % LANES
    for d in range(0, whole, LANES):
        transpose_16x16_to_panel(x, key + d, ld, keys, column + d * LANES)
    for d in range(whole, HS):
        for i in range(LANES):
            put(get(x, key + i * ld + d), keys, column + panel_offset(keys, d, i))
    for i in range(0, LANES, 2):
        for d in range(0, HS, LANES):
            offset, lanes = value + i * ld + d, min(LANES, HS - d)
            first, second = load_first(x, offset, lanes), load_first(x, offset + ld, lanes)
            store_row_pair(first, second, values, block + d * KEY_BLOCK + (t + i) * LANES)
