"""The KV cache: keys and values of all tokens read so far, in the layout that attention reads.

Keys and values lie in panels (layout.py), as attention.py multiplies them:
  keys    [L, slots, NH, capacity / KEY_BLOCK]  of kᵀ [HS, KEY_BLOCK]
  values  [L, slots, NH, capacity / KEY_BLOCK]  of v  [KEY_BLOCK, HS]
each of KEY_BLOCK · HSP elements, HSP = padded(HS). A slot holds one sequence; capacity is a
multiple of KEY_BLOCK. Elements that were never written are zero.
"""

from __future__ import annotations

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


@jit
def kv_cache_write(
    team, keys, values, qkv, ldq, slots, positions, M, layer, n_slots, capacity, NH, HS
):
    """Put the keys and values of M new tokens into the cache.

    keys, values      the cache, flat (see above)
    qkv               query, key, value [3C] of each token, `ldq` apart
    slots, positions  int64 [M]: whose token it is, and its place in the sequence
    """
    C, HSP = NH * HS, padded(HS)
    m = next_task(team)
    while m < M:
        t = positions[m]
        first = m - t % LANES
        together = _fill_lanes(slots, positions, first, M)
        for h in range(NH):
            head = (layer * n_slots + slots[m]) * NH + h
            block = (head * capacity + t // KEY_BLOCK * KEY_BLOCK) * HSP
            key = m * ldq + C + h * HS
            if not together:
                _write_token(keys, values, block, qkv, key, key + C, t % KEY_BLOCK, HS, HSP)
            elif m == first:
                _write_lanes(keys, values, block, qkv, key, key + C, ldq, t % KEY_BLOCK, HS, HSP)
        m = next_task(team)
    barrier(team)


@jit
def _fill_lanes(slots, positions, first, M):
    """Whether the rows from `first` on are tokens that fill the lanes of a panel of keys."""
    if first < 0 or first + LANES > M or positions[first] % LANES:
        return False
    for i in range(1, LANES):
        same = slots[first + i] == slots[first]
        if not same or positions[first + i] != positions[first] + i:
            return False
    return True


@jit
def _write_token(keys, values, block, qkv, key, value, t, HS, HSP):
    """One token's key and value, at elements of qkv, to place t of a block of the cache."""
    column = block + t // LANES * LANES * HSP
    for d in range(HS):
        put(get(qkv, key + d), keys, column + panel_offset(keys, d, t % LANES))
        row = d // LANES * LANES * KEY_BLOCK + panel_offset(values, t, d % LANES)
        put(get(qkv, value + d), values, block + row)


@jit
def _write_lanes(keys, values, block, qkv, key, value, ldq, t, HS, HSP):
    """The same for sixteen tokens, `ldq` apart, from place t on."""
    column = block + t * HSP
    whole = HS - HS % LANES
    for d in range(0, whole, LANES):
        transpose_16x16_to_panel(qkv, key + d, ldq, keys, column + d * LANES)
    for d in range(whole, HS):
        for i in range(LANES):
            put(get(qkv, key + i * ldq + d), keys, column + panel_offset(keys, d, i))
    for i in range(0, LANES, 2):
        for d in range(0, HS, LANES):
            here, lanes = value + i * ldq + d, min(LANES, HS - d)
            first, second = load_first(qkv, here, lanes), load_first(qkv, here + ldq, lanes)
            store_row_pair(first, second, values, block + d * KEY_BLOCK + (t + i) * LANES)
