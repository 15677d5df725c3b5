"""Causal attention, fused: scores, softmax and the weighted sum of values, KEYS keys at a time.

No T × T matrix exists. A block of keys yields, for a query, the greatest score m, the sum
l = Σ e^(s − m) and the vector o = Σ e^(s − m) · v; two such triples merge into one (Milakov &
Gimelshein 2018; Dao et al. 2022, FlashAttention). Blocks are always the same and merge in the
same order, so a token's result has the same bits whether it came with a whole prompt, in a batch,
or alone with its blocks spread over all threads.

A triple of one query is a record of 32 + HSP float32: m and l as vectors of sixteen (m sixteen
times, l as sixteen partial sums), then o.

The cache of keys and values is laid out as these products read them, as panels (layout.py):
  keys    [L, slots, NH, capacity / KEYS]  of kᵀ [HS, KEYS]
  values  [L, slots, NH, capacity / KEYS]  of v  [KEYS, HS]
each of KEYS · HSP elements, HSP = padded(HS). A slot is the place of one sequence; capacity is a
multiple of KEYS. What is not written is zero.
"""

from __future__ import annotations

import numpy as np

from .activation import exp
from .jit import jit
from .layout import GROUP, KEYS, LANES, padded
from .products import add_products, as_left_factor, begin_products, end_products
from .simd import (
    lane_numbers,
    load,
    load_first,
    place,
    put,
    select_less,
    splat,
    store,
    store_first,
    vgreatest,
    vmax,
    vsum,
)
from .team import barrier, claim

QUERIES = 48  # queries that one task takes through the keys: a multiple of every tile's rows
_O = 2 * LANES  # where o begins in a record
_START, _ONE, _AT_O, _KEYS = np.array([0, 1, _O, KEYS])  # typed numbers, as in matmul.py
_MINUS_INFINITY = np.float32(-np.inf)


def attention_scratch(HS: int) -> int:
    """float32 elements of scratch that a thread needs here."""
    return QUERIES * (padded(HS) + 2 * KEYS + 2 * record_size(HS))


def record_size(HS: int) -> int:
    """float32 elements of one query's m, l and o."""
    return _O + padded(HS)


def partials_size(queries: int, NH: int, HS: int, capacity: int) -> int:
    """float32 elements for the records of `queries` single queries, of all heads and blocks."""
    return queries * NH * (capacity // KEYS) * record_size(HS)


@jit
def cache_write(
    team, keys, values, qkv, ldq, slots, positions, M, layer, n_slots, capacity, NH, HS
):
    """Put the keys and values of M new tokens into the cache.

    keys, values      the cache, flat (see above)
    qkv               float32: query, key, value [3C] of each token, `ldq` apart
    slots, positions  int64 [M]: whose token it is, and its place in the sequence
    """
    C, HSP = NH * HS, padded(HS)
    m = claim(team)
    while m < M:
        t = positions[m]
        for h in range(NH):
            head = (layer * n_slots + slots[m]) * NH + h
            block = (head * capacity + t // KEYS * KEYS) * HSP
            column = block + t % KEYS // LANES * LANES * HSP
            source = m * ldq + h * HS
            for d in range(HS):
                put(qkv[source + C + d], keys, column + place(keys, d, t % LANES))
                row = d // LANES * LANES * KEYS + place(values, t % KEYS, d % LANES)
                put(qkv[source + 2 * C + d], values, block + row)
        m = claim(team)
    barrier(team)


@jit
def attention_forward(
    team, out, ldo, qkv, ldq, keys, values, partials, blocks, n_blocks, M,
    layer, n_slots, capacity, NH, HS, scale,
):  # fmt: skip
    """out[m, h] = Σ_t softmax_t(scale · q[m, h] · k[t, h]) · v[t, h] over t ≤ the position of m.

    out           [M, C], rows `ldo` apart
    qkv           float32 [M, 3C], rows `ldq` apart, of which the queries are read
    keys, values  the cache, flat; the tokens' own keys and values are in it
    partials      float32, of `partials_size`, where each block is a single query
    blocks        int64 [n_blocks · 4]: slot, first row, number of rows ≤ QUERIES, position of the
                  first; the rows of a block are consecutive tokens of one sequence
    """
    HSP = padded(HS)
    record = _O + HSP
    q, e, s, part, total = _places(team.scratch, keys, HSP)
    begin_products(q)
    single = n_blocks == M
    parts = _ONE
    if single:  # every block of keys is a task
        for block in range(n_blocks):
            parts = max(parts, blocks[4 * block + 3] // KEYS + 1)
    task = claim(team)
    while task < n_blocks * NH * parts:
        index, number = task // parts, task % parts
        block, h = index // NH * 4, index % NH
        slot, row, rows, position = (
            blocks[block], blocks[block + 1], blocks[block + 2], blocks[block + 3]
        )  # fmt: skip
        head = ((layer * n_slots + slot) * NH + h) * capacity * HSP
        first, end = 0, position + rows
        if single:
            first = number * KEYS
            end = min(end, first + KEYS)
        if first < end:
            _read_queries(q, qkv, row * ldq + h * HS, ldq, rows, HS, HSP, scale)
            if not single:
                _clear(total, rows * record, record)
            for start in range(first, end, KEYS):
                visible = position - start + 1
                _block(part, q, e, s, keys, values, head + start * HSP, rows, visible, HSP)
                if not single:
                    for r in range(0, rows * record, record):
                        _merge(total, r, part, r, HSP)
            if single:
                for c in range(0, record, LANES):
                    store(load(part, c), partials, task * record + c)
            else:
                for r in range(rows):
                    _finish(total, r * record, out, (row + r) * ldo + h * HS, HS)
        task = claim(team)
    end_products(q)
    barrier(team)
    if single:
        _merge_partials(team, out, ldo, partials, parts, blocks, n_blocks, NH, HS, HSP)


@jit
def _places(scratch, keys, HSP):
    """The thread's scratch as arrays: queries and exponentials as left factors of their products
    [QUERIES, HSP] and [QUERIES, KEYS], scores [QUERIES, KEYS], and two times records [QUERIES]."""
    size = QUERIES * HSP
    q = as_left_factor(scratch[:size], keys)
    e = as_left_factor(scratch[size : size + QUERIES * KEYS], keys)
    size += QUERIES * KEYS
    s = scratch[size : size + QUERIES * KEYS]
    size += QUERIES * KEYS
    records = QUERIES * (_O + HSP)
    return q, e, s, scratch[size : size + records], scratch[size + records : size + 2 * records]


@jit
def _read_queries(q, qkv, source, ldq, rows, HS, HSP, scale):
    """scale · q of one head to [rows, HSP], with zeros from HS to HSP."""
    for r in range(rows):
        for d in range(0, HSP, LANES):
            query = splat(np.float32(0))
            if d < HS:
                query = load_first(qkv, source + r * ldq + d, min(LANES, HS - d))
            store(query * splat(scale), q, r * HSP + d)


@jit
def _clear(records, size, record):
    """Records of no keys at all: m = −∞, l = 0, o = 0."""
    records[:size] = 0
    for r in range(0, size, record):
        store(splat(_MINUS_INFINITY), records, r)


@jit
def _block(part, q, e, s, keys, values, block, rows, visible, HSP):
    """The records of some queries and one block of keys, of which the first query sees `visible`
    and each further one sees one more."""
    record = _O + HSP
    seen = min(KEYS, visible + rows - 1)
    wide = (seen + GROUP - 1) // GROUP * GROUP
    # pass 1: scores
    for r in range(rows):
        s[r * KEYS : r * KEYS + wide] = 0
    add_products(
        s, _START, _KEYS, q, _START, HSP, keys, block, LANES * HSP, rows, wide // LANES, HSP
    )  # fmt: skip
    # pass 2: m, l, and the exponentials
    for r in range(rows):
        _exponentials(part, r * record, e, s, r * KEYS, min(KEYS, visible + r), wide)
    # pass 3: the sum of values
    for r in range(rows):
        for d in range(_O, record, LANES):
            store(splat(np.float32(0)), part, r * record + d)
    add_products(
        part, _AT_O, record, e, _START, _KEYS, values, block, LANES * KEYS, rows, HSP // LANES, wide
    )  # fmt: skip


@jit
def _exponentials(part, record, e, s, row, visible, wide):
    """One query's m and l of a block, and e^(s − m): 0 beyond the `visible` keys."""
    if visible <= 0:
        for t in range(0, wide, LANES):
            store(splat(np.float32(0)), e, row + t)
        store(splat(_MINUS_INFINITY), part, record)
        store(splat(np.float32(0)), part, record + LANES)
        return
    lanes, limit, minus_infinity = (
        lane_numbers(), splat(np.float32(visible)), splat(_MINUS_INFINITY)
    )  # fmt: skip
    greatest = minus_infinity
    for t in range(0, visible, LANES):
        here = lanes + splat(np.float32(t))
        greatest = vmax(greatest, select_less(here, limit, load(s, row + t), minus_infinity))
    m = splat(vgreatest(greatest))
    total = splat(np.float32(0))
    for t in range(0, wide, LANES):
        here = lanes + splat(np.float32(t))
        score = select_less(here, limit, load(s, row + t), minus_infinity)
        weight = exp(score - m)
        store(weight, e, row + t)
        total = total + weight
    store(m, part, record)
    store(total, part, record + LANES)


@jit
def _merge(total, it, part, ip, HSP):
    """The record `total` at it and the record `part` at ip into the former."""
    before, after = load(total, it), load(part, ip)
    m = vmax(before, after)
    old, new = exp(before - m), exp(after - m)
    store(m, total, it)
    for c in range(LANES, _O + HSP, LANES):
        store(load(total, it + c) * old + load(part, ip + c) * new, total, it + c)


@jit
def _finish(total, it, out, target, HS):
    """o / l of one record to the output."""
    weight = splat(vsum(load(total, it + LANES)))
    for d in range(0, HS, LANES):
        store_first(load(total, it + _O + d) / weight, out, target + d, min(LANES, HS - d))


@jit
def _merge_partials(team, out, ldo, partials, parts, blocks, n_blocks, NH, HS, HSP):
    """The records of single queries, `parts` for each, to the output."""
    record = _O + HSP
    total = team.scratch
    task = claim(team)
    while task < n_blocks * NH:
        row, position = blocks[task // NH * 4 + 1], blocks[task // NH * 4 + 3]
        _clear(total, record, record)
        for number in range(position // KEYS + 1):
            _merge(total, _START, partials, (task * parts + number) * record, HSP)
        _finish(total, _START, out, row * ldo + task % NH * HS, HS)
        task = claim(team)
    barrier(team)
