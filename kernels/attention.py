"""Causal attention, fused: scores, softmax and the weighted sum of values, block by block.

No T × T matrix exists. Keys are taken KEYS at a time; each block yields, for a query, the greatest
score m, the sum l = Σ e^(s − m) and the vector o = Σ e^(s − m) · v; two such triples merge into
one (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention). Blocks are always the same and
merge in the same order, so a token's result has the same bits whether it came with a whole
prompt, in a batch, or alone.

The cache of keys and values is laid out as these products read it:
  keys    [L, slots, NH, capacity / 16, HS, 16]   panels of sixteen keys: a tile's columns
  values  [L, slots, NH, capacity, HSP]           rows, padded to HSP, a multiple of 16
A slot is the place of one sequence; capacity is a multiple of KEYS. What is not written is zero.
"""

from __future__ import annotations

import numpy as np

from .activation import exp
from .jit import jit
from .layout import KEYS, LANES, padded
from .simd import (
    TILE_ROWS,
    fma,
    lane_numbers,
    load,
    select_less,
    splat,
    store,
    store_first,
    sum_of_products,
    vgreatest,
    vmax,
    vsum,
)
from .team import barrier, claim

QUERIES = 48  # queries that one task takes through the keys: a multiple of every TILE_ROWS

_PANELS = KEYS // LANES
_STATE = 3 + LANES

_rows_of_16 = sum_of_products(TILE_ROWS, 1, False)
_one_of_64 = sum_of_products(1, _PANELS, False)
_one_of_16 = sum_of_products(1, 1, False)

_MINUS_INFINITY = np.float32(-np.inf)


def attention_scratch(HS: int) -> int:
    """float32 elements of scratch that a thread needs here."""
    return QUERIES * (HS + KEYS + 2 * padded(HS) + _STATE)


@jit
def cache_write(team, keys, values, qkv, slots, positions, M, layer, n_slots, capacity, NH, HS):
    """Put the keys and values of M new tokens into the cache.

    keys, values      the cache, flat (see above)
    qkv               float32 [M · 3C]: query, key, value of each token
    slots, positions  int64 [M]: whose token it is, and its place in the sequence
    """
    C, HSP = NH * HS, (HS + LANES - 1) // LANES * LANES
    m = claim(team)
    while m < M:
        t = positions[m]
        for h in range(NH):
            head = (layer * n_slots + slots[m]) * NH + h
            key = head * capacity * HS + t // LANES * HS * LANES + t % LANES
            value = (head * capacity + t) * HSP
            source = m * 3 * C + h * HS
            for d in range(HS):
                keys[key + d * LANES] = qkv[source + C + d]
                values[value + d] = qkv[source + 2 * C + d]
        m = claim(team)
    barrier(team)


@jit
def attention_forward(
    team, out, qkv, keys, values, blocks, n_blocks, layer, n_slots, capacity, NH, HS, scale
):
    """out[m, h] = Σ_t softmax_t(scale · q[m, h] · k[t, h]) · v[t, h] over t ≤ the position of m.

    out           float32 [M · C]
    qkv           float32 [M · 3C], of which the queries are read
    keys, values  the cache, flat; the tokens' own keys and values are in it
    blocks        int64 [n_blocks · 4]: slot, first row, number of rows ≤ QUERIES, position of the
                  first; the rows of a block are consecutive tokens of one sequence
    """
    task = claim(team)
    while task < n_blocks * NH:
        block, h = task // NH * 4, task % NH
        slot, row, rows, position = (
            blocks[block], blocks[block + 1], blocks[block + 2], blocks[block + 3]
        )  # fmt: skip
        head = ((layer * n_slots + slot) * NH + h) * capacity
        _attend(
            team.scratch, out, qkv, keys, values, row, rows, position, head, h, NH * HS, HS, scale
        )
        task = claim(team)
    barrier(team)


@jit
def _attend(scratch, out, qkv, keys, values, row, rows, position, head, h, C, HS, scale):
    """One block of queries of one head, through all the keys it may see."""
    HSP = (HS + LANES - 1) // LANES * LANES
    q = 0  # places in scratch: queries [QUERIES, HS]
    s = q + QUERIES * HS  # scores, then their exponentials [QUERIES, KEYS]
    part = s + QUERIES * KEYS  # this block's o [QUERIES, HSP]
    o = part + QUERIES * HSP  # o so far
    state = o + QUERIES * HSP  # m so far, the two factors of the merge, and l as sixteen sums
    tiled = 1 if rows == 1 else (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS

    for r in range(tiled):
        for d in range(HS):
            query = qkv[(row + r) * 3 * C + h * HS + d] * scale if r < rows else np.float32(0)
            scratch[q + r * HS + d] = query
    scratch[o : o + rows * HSP] = 0
    scratch[state : state + rows * _STATE] = 0
    for r in range(rows):
        scratch[state + r * _STATE] = _MINUS_INFINITY

    for start in range(0, position + rows, KEYS):
        # pass 1: scores
        _scores(scratch, s, q, tiled, keys, (head + start) * HS, HS)
        # pass 2: their exponentials, and the merge of m and l
        for r in range(tiled):
            visible = min(KEYS, position + r - start + 1) if r < rows else 0
            _exponentials(scratch, s + r * KEYS, state + r * _STATE, visible)
        # pass 3: the sum of values, and the merge of o
        _weighted_values(scratch, part, s, tiled, values, (head + start) * HSP, HSP)
        for r in range(rows):
            old = splat(scratch[state + r * _STATE + 1])
            new = splat(scratch[state + r * _STATE + 2])
            for d in range(r * HSP, (r + 1) * HSP, LANES):
                store(fma(load(scratch, part + d), new, load(scratch, o + d) * old), scratch, o + d)

    for r in range(rows):
        total = splat(vsum(load(scratch, state + r * _STATE + 3)))
        target = (row + r) * C + h * HS
        for d in range(0, HS, LANES):
            store_first(load(scratch, o + r * HSP + d) / total, out, target + d, min(LANES, HS - d))


@jit
def _scores(scratch, s, q, rows, keys, panel, HS):
    """s[rows, KEYS] = q · kᵀ for the block of keys whose panels begin at `panel`."""
    if rows == 1:
        _one_of_64(scratch, s, KEYS, scratch, q, HS, keys, panel, LANES, HS * LANES, HS)
        return
    for r in range(0, rows, TILE_ROWS):
        for p in range(_PANELS):
            _rows_of_16(
                scratch, s + r * KEYS + p * LANES, KEYS,
                scratch, q + r * HS, HS,
                keys, panel + p * HS * LANES, LANES, LANES, HS,
            )  # fmt: skip


@jit
def _exponentials(scratch, s, state, visible):
    """One query's scores of a block, in place: e^(s − m) where visible, else 0, m their greatest.

    state  [0] m so far, [1] and [2] the factors for what is there and for this block, [3 …] l
    """
    if visible <= 0:
        for p in range(0, KEYS, LANES):
            store(splat(np.float32(0)), scratch, s + p)
        scratch[state + 1] = 1
        scratch[state + 2] = 0
        return
    lanes, limit = lane_numbers(), splat(np.float32(visible))
    greatest = splat(_MINUS_INFINITY)
    for p in range(0, KEYS, LANES):
        seen = lanes + splat(np.float32(p))
        score = select_less(seen, limit, load(scratch, s + p), splat(_MINUS_INFINITY))
        store(score, scratch, s + p)
        greatest = vmax(greatest, score)
    block_m = vgreatest(greatest)
    total = splat(np.float32(0))
    for p in range(0, KEYS, LANES):
        weight = exp(load(scratch, s + p) - splat(block_m))
        store(weight, scratch, s + p)
        total = total + weight
    m = max(scratch[state], block_m)
    old = exp(splat(scratch[state] - m))
    new = exp(splat(block_m - m))
    store(fma(total, new, load(scratch, state + 3) * old), scratch, state + 3)
    scratch[state] = m
    store_first(old, scratch, state + 1, 1)
    store_first(new, scratch, state + 2, 1)


@jit
def _weighted_values(scratch, part, s, rows, values, first, HSP):
    """part[rows, HSP] = e · v for the block of values that begins at `first`."""
    if rows > 1:
        for r in range(0, rows, TILE_ROWS):
            for d in range(0, HSP, LANES):
                _rows_of_16(
                    scratch, part + r * HSP + d, HSP,
                    scratch, s + r * KEYS, KEYS,
                    values, first + d, HSP, LANES, KEYS,
                )  # fmt: skip
        return
    wide = HSP - HSP % KEYS
    for d in range(0, wide, KEYS):
        _one_of_64(scratch, part + d, HSP, scratch, s, KEYS, values, first + d, HSP, LANES, KEYS)
    for d in range(wide, HSP, LANES):
        _one_of_16(scratch, part + d, HSP, scratch, s, KEYS, values, first + d, HSP, LANES, KEYS)
