"""Causal attention, fused: scores, softmax and the weighted sum of values, KEY_BLOCK keys at a
time.

No T × T matrix exists. A block of keys yields, for a query, the greatest score m, the sum
l = Σ e^(s − m) and the vector o = Σ e^(s − m) · v; two such triples merge into one (Milakov &
Gimelshein 2018; Dao et al. 2022, FlashAttention). Blocks are always the same and merge in the
same order, so a token's result has the same bits whether it came with a whole prompt, in a batch,
or alone with its blocks spread over all threads.

A triple of one query is a record of 32 + HSP float32: m and l as vectors of sixteen (m sixteen
times, l as sixteen partial sums), then o.

kv_cache.py describes the layout of keys and values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .activation import exp, exp_bounded
from .gemm.gemm import as_a_operand, as_b_operand, configure_tiles, gemm_accumulate, release_tiles
from .gemm.packing import pack_rows
from .jit import jit
from .layout import KEY_BLOCK, LANES, N_BLOCK, padded
from .simd import (
    lane_ids,
    load,
    load_first,
    reduce_max,
    reduce_sum,
    select_less,
    splat,
    store,
    store_first,
    store_row_pair,
    transpose_16x16,
    vmax,
)
from .team import barrier, next_task

QUERY_BLOCK = 48  # queries that one task takes through the keys: a multiple of every tile's rows
_O = 2 * LANES  # where o begins in a record
_START, _ONE, _AT_O, _KEYS = np.array([0, 1, _O, KEY_BLOCK])  # typed numbers, as in matmul.py
_UNSCALED = np.float32(1)
_MINUS_INFINITY = np.float32(-np.inf)


def attention_scratch(HS: int) -> int:
    """float32 elements of scratch that a thread needs here."""
    return QUERY_BLOCK * (padded(HS) + 2 * KEY_BLOCK + 2 * softmax_state_size(HS))


def softmax_state_size(HS: int) -> int:
    """float32 elements of one query's m, l and o."""
    return _O + padded(HS)


def partials_size(queries: int, NH: int, HS: int, capacity: int) -> int:
    """float32 elements for the records of `queries` single queries, of all heads and blocks."""
    return queries * NH * (capacity // KEY_BLOCK) * softmax_state_size(HS)


@jit
def attention_forward(
    team, out, ldo, norms, qkv, ldq, keys, values, partials, blocks, n_blocks, M,
    layer, n_slots, capacity, NH, HS, scale,
):  # fmt: skip
    """out[m, h] = Σ_t softmax_t(scale · q[m, h] · k[t, h]) · v[t, h] over t ≤ the position of m.

    out           [M, C], rows `ldo` apart
    norms         float32 [M · NH], or empty: log Σ e^score of each softmax, m + log l, which
                  attention_backward needs
    qkv           [M, 3C], rows `ldq` apart, of which the queries are read
    keys, values  the cache, flat; the tokens' own keys and values are in it
    partials      float32, of `partials_size`, where each block is a single query
    blocks        int64 [n_blocks · 4]: slot, first row, number of rows ≤ QUERY_BLOCK, position of
                  the first; the rows of a block are consecutive tokens of one sequence
    """
    HSP = padded(HS)
    record = _O + HSP
    q, e, s, part, total = _places(team.scratch, keys, HSP)
    configure_tiles(q)
    single = n_blocks == M
    parts = _ONE
    if single:  # every block of keys is a task
        for block in range(n_blocks):
            parts = max(parts, blocks[4 * block + 3] // KEY_BLOCK + 1)
    task = next_task(team)
    while task < n_blocks * NH * parts:
        index, number = task // parts, task % parts
        block, h = index // NH * 4, index % NH
        slot, row, rows, position = (
            blocks[block], blocks[block + 1], blocks[block + 2], blocks[block + 3]
        )  # fmt: skip
        head = ((layer * n_slots + slot) * NH + h) * capacity * HSP
        first, end = 0, position + rows
        if single:
            first = number * KEY_BLOCK
            end = min(end, first + KEY_BLOCK)
        if first < end:
            _read_rows(q, _START, qkv, row * ldq + h * HS, ldq, rows, rows, HS, HSP, scale)
            if not single:
                _clear(total, rows * record, record)
            for start in range(first, end, KEY_BLOCK):
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
                    if norms.size:
                        norms[(row + r) * NH + h] = _norm(total, r * record)
        task = next_task(team)
    release_tiles(q)
    barrier(team)
    if single:
        _merge_partials(team, out, ldo, norms, partials, parts, blocks, n_blocks, NH, HS, HSP)


@jit
def _places(scratch, keys, HSP):
    """The thread's scratch as arrays: queries and exponentials as left factors of their products
    [QUERY_BLOCK, HSP] and [QUERY_BLOCK, KEY_BLOCK], scores [QUERY_BLOCK, KEY_BLOCK], and two times
    records [QUERY_BLOCK]."""
    size = QUERY_BLOCK * HSP
    q = as_a_operand(scratch[:size], keys)
    e = as_a_operand(scratch[size : size + QUERY_BLOCK * KEY_BLOCK], keys)
    size += QUERY_BLOCK * KEY_BLOCK
    s = scratch[size : size + QUERY_BLOCK * KEY_BLOCK]
    size += QUERY_BLOCK * KEY_BLOCK
    records = QUERY_BLOCK * (_O + HSP)
    return q, e, s, scratch[size : size + records], scratch[size + records : size + 2 * records]


@jit
def _read_rows(to, it, x, source, ld, rows, all_rows, HS, HSP, scale):
    """scale · some rows of one head, `ld` apart, to [all_rows, HSP], with zeros beyond."""
    for r in range(all_rows):
        for d in range(0, HSP, LANES):
            value = splat(np.float32(0))
            if r < rows and d < HS:
                value = load_first(x, source + r * ld + d, min(LANES, HS - d)) * splat(scale)
            store(value, to, it + r * HSP + d)


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
    seen = min(KEY_BLOCK, visible + rows - 1)
    wide = (seen + N_BLOCK - 1) // N_BLOCK * N_BLOCK
    # pass 1: scores
    for r in range(rows):
        s[r * KEY_BLOCK : r * KEY_BLOCK + wide] = 0
    gemm_accumulate(
        s, _START, _KEYS, q, _START, HSP, keys, block, LANES * HSP, rows, wide // LANES, HSP
    )  # fmt: skip
    # pass 2: m, l, and the exponentials
    for r in range(rows):
        _exponentials(part, r * record, e, s, r * KEY_BLOCK, min(KEY_BLOCK, visible + r), wide)
    # pass 3: the sum of values
    for r in range(rows):
        for d in range(_O, record, LANES):
            store(splat(np.float32(0)), part, r * record + d)
    gemm_accumulate(
        part, _AT_O, record, e, _START, _KEYS, values, block, LANES * KEY_BLOCK,
        rows, HSP // LANES, wide,
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
    whole = visible - visible % LANES
    greatest = splat(_MINUS_INFINITY)
    for t in range(0, whole, LANES):
        greatest = vmax(greatest, load(s, row + t))
    if whole < visible:
        greatest = vmax(greatest, _first_scores(s, row + whole, visible - whole))
    m = splat(reduce_max(greatest))
    total = splat(np.float32(0))
    for t in range(0, whole, LANES):
        weight = exp_bounded(load(s, row + t) - m)
        store(weight, e, row + t)
        total = total + weight
    if whole < visible:
        weight = exp_bounded(_first_scores(s, row + whole, visible - whole) - m)
        store(weight, e, row + whole)
        total = total + weight
        whole += LANES
    for t in range(whole, wide, LANES):
        store(splat(np.float32(0)), e, row + t)
    store(m, part, record)
    store(total, part, record + LANES)


@jit
def _first_scores(s, i, count):
    """The first `count` of sixteen scores, and −∞."""
    lanes = splat(np.float32(count))
    return select_less(lane_ids(), lanes, load(s, i), splat(_MINUS_INFINITY))


@jit
def _merge(total, it, part, ip, HSP):
    """The record `total` at it and the record `part` at ip into the former."""
    before, after = load(total, it), load(part, ip)
    m = vmax(before, after)
    old, new = exp_bounded(before - m), exp_bounded(after - m)
    store(m, total, it)
    for c in range(LANES, _O + HSP, LANES):
        store(load(total, it + c) * old + load(part, ip + c) * new, total, it + c)


@jit
def _finish(total, it, out, target, HS):
    """o / l of one record to the output."""
    weight = splat(reduce_sum(load(total, it + LANES)))
    for d in range(0, HS, LANES):
        store_first(load(total, it + _O + d) / weight, out, target + d, min(LANES, HS - d))


@jit
def _norm(total, it):
    """m + log l of one record: softmax is e^(score − norm)."""
    return reduce_max(load(total, it)) + np.log(reduce_sum(load(total, it + LANES)))


@jit
def _merge_partials(team, out, ldo, norms, partials, parts, blocks, n_blocks, NH, HS, HSP):
    """The records of single queries, `parts` for each, to the output."""
    record = _O + HSP
    total = team.scratch
    task = next_task(team)
    while task < n_blocks * NH:
        row, position = blocks[task // NH * 4 + 1], blocks[task // NH * 4 + 3]
        _clear(total, record, record)
        for number in range(position // KEY_BLOCK + 1):
            _merge(total, _START, partials, (task * parts + number) * record, HSP)
        _finish(total, _START, out, row * ldo + task % NH * HS, HS)
        if norms.size:
            norms[row * NH + task % NH] = _norm(total, _START)
        task = next_task(team)
    barrier(team)


# ---- backward -------------------------------------------------------------------------------

SQUARE = 64  # queries and keys of the squares that backward cuts the scores into
_SQUARE, _PANELS = np.array([SQUARE, SQUARE // LANES])


def attention_backward_scratch(T: int, HS: int) -> int:
    """float32 elements of scratch that a thread needs in attention_backward."""
    TP, HSP = padded(T, SQUARE), padded(HS)
    return 5 * TP * HSP + SQUARE * (7 * HSP + 5 * SQUARE + 2)


class _Head(NamedTuple):
    """One head of one sequence, TP = padded(T, SQUARE) tokens; zeros beyond T and HS.

    k, v     left factors [TP, HSP]
    kt       left factor kᵀ [HSP, TP]
    dk, dv   float32 [TP, HSP]
    """

    k: np.ndarray
    v: np.ndarray
    kt: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


class _Queries(NamedTuple):
    """SQUARE of its queries, in every order that a product wants.

    rows, drows    float32 [SQUARE, HSP]: scale · q, and ∂loss/∂o
    q, do          the same as panels
    qt, dot        the same transposed, [HSP, SQUARE], as panels
    dqt            float32 [HSP, SQUARE]: ∂loss/∂(scale · q), transposed
    norms, deltas  float32 [SQUARE]
    """

    rows: np.ndarray
    drows: np.ndarray
    q: np.ndarray
    do: np.ndarray
    qt: np.ndarray
    dot: np.ndarray
    dqt: np.ndarray
    norms: np.ndarray
    deltas: np.ndarray


class _Square(NamedTuple):
    """Scores of SQUARE keys (rows) and SQUARE queries (columns), and what comes of them.

    s, dp    float32: scores, and ∂loss/∂p
    p, ds    left factors: softmax, and ∂loss/∂s
    dsp      ds as panels
    """

    s: np.ndarray
    dp: np.ndarray
    p: np.ndarray
    ds: np.ndarray
    dsp: np.ndarray


@jit
def attention_backward(
    team, dqkv, lddq, dout, ldd, qkv, ldq, out, ldo, norms, B, T, NH, HS, scale, like
):
    """From dout = ∂loss/∂out of attention_forward over B whole sequences of T tokens: dqkv.

    With p = e^(s − norm) and s = scale · q · k, computed anew (docs/training.md):

        dv[t] = Σ_i p[i, t] · do[i]                 dp[i, t] = do[i] · v[t]
        ds = p · (dp − delta),  delta[i] = Σ_d do[i, d] · o[i, d]
        dk[t] = scale · Σ_i ds[i, t] · q[i]         dq[i] = scale · Σ_t ds[i, t] · k[t]

    dqkv       [B · T, 3C], rows `lddq` apart
    dout, out  [B · T, C], rows `ldd`, `ldo` apart
    qkv        [B · T, 3C], rows `ldq` apart
    norms      float32 [B · T · NH], of attention_forward
    like       an empty array of the type of the panels
    A task is a head of a sequence, and a thread's scratch of attention_backward_scratch is for it.
    """
    C, HSP, TP = NH * HS, padded(HS), padded(T, SQUARE)
    head, queries, square = _backward_places(team.scratch, like, TP, HSP)
    configure_tiles(head.k)
    task = next_task(team)
    while task < B * NH:
        row, column = task // NH * T, task % NH * HS
        _read_head(head, qkv, row * ldq + column, ldq, C, T, TP, HS, HSP)
        for first in range(0, T, SQUARE):
            rows = min(SQUARE, T - first)
            here = row + first
            _read_rows(
                queries.rows, _START, qkv, here * ldq + column, ldq, rows, _SQUARE, HS, HSP, scale
            )  # fmt: skip
            _read_rows(
                queries.drows, _START, dout, here * ldd + column, ldd, rows, _SQUARE, HS, HSP,
                _UNSCALED,
            )  # fmt: skip
            _turn_queries(queries, HSP)
            _read_norms(queries, norms, here * NH + task % NH, NH, out, here * ldo + column, ldo,
                        rows, HS, HSP)  # fmt: skip
            for key in range(0, first + rows, SQUARE):
                _square_backward(head, queries, square, key, key - first, TP, HSP)
            _write_queries(
                dqkv, here * lddq + column, lddq, queries.dqt, queries.drows, rows, HS, HSP, scale
            )
        for t in range(T):
            for d in range(0, HS, LANES):
                offset, lanes = (row + t) * lddq + column + d, min(LANES, HS - d)
                store_first(load(head.dk, t * HSP + d), dqkv, offset + C, lanes)
                store_first(load(head.dv, t * HSP + d), dqkv, offset + 2 * C, lanes)
        task = next_task(team)
    release_tiles(head.k)
    barrier(team)


@jit
def _backward_places(scratch, like, TP, HSP):
    """The thread's scratch, cut into a _Head, _Queries and a _Square."""
    n, i = TP * HSP, np.int64(0)
    head = _Head(
        as_a_operand(scratch[:n], like),
        as_a_operand(scratch[n : 2 * n], like),
        as_a_operand(scratch[2 * n : 3 * n], like),
        scratch[3 * n : 4 * n],
        scratch[4 * n : 5 * n],
    )
    i, n = 5 * n, SQUARE * HSP
    queries = _Queries(
        scratch[i : i + n],
        scratch[i + n : i + 2 * n],
        as_b_operand(scratch[i + 2 * n : i + 3 * n], like),
        as_b_operand(scratch[i + 3 * n : i + 4 * n], like),
        as_b_operand(scratch[i + 4 * n : i + 5 * n], like),
        as_b_operand(scratch[i + 5 * n : i + 6 * n], like),
        scratch[i + 6 * n : i + 7 * n],
        scratch[i + 7 * n : i + 7 * n + SQUARE],
        scratch[i + 7 * n + SQUARE : i + 7 * n + 2 * SQUARE],
    )
    i, n = i + 7 * n + 2 * SQUARE, SQUARE * SQUARE
    square = _Square(
        scratch[i : i + n],
        scratch[i + n : i + 2 * n],
        as_a_operand(scratch[i + 2 * n : i + 3 * n], like),
        as_a_operand(scratch[i + 3 * n : i + 4 * n], like),
        as_b_operand(scratch[i + 4 * n : i + 5 * n], like),
    )
    return head, queries, square


@jit
def _read_head(head, qkv, source, ldq, C, T, TP, HS, HSP):
    """Keys and values of one head, the query of whose first token is at `source`."""
    head.dk[:] = 0
    head.dv[:] = 0
    for t in range(0, TP, SQUARE):
        rows = max(0, min(SQUARE, T - t))
        key = source + t * ldq + C
        for to, here in ((head.k, key), (head.v, key + C)):
            _read_rows(to, t * HSP, qkv, here, ldq, rows, _SQUARE, HS, HSP, _UNSCALED)
    for t in range(0, TP, LANES):
        for d in range(0, HSP, LANES):
            transpose_16x16(head.k, t * HSP + d, HSP, head.kt, d * TP + t, TP)


@jit
def _turn_queries(queries, HSP):
    """From rows to the panels of all four right factors; no dq yet."""
    queries.dqt[:] = 0
    for panels, rows in ((queries.q, queries.rows), (queries.do, queries.drows)):
        pack_rows(panels, _START, _START, _SQUARE, rows, _START, _SQUARE, HSP, HSP, _ONE)
    for panels, rows in ((queries.qt, queries.rows), (queries.dot, queries.drows)):
        pack_rows(panels, _START, _START, HSP, rows, _START, HSP, _SQUARE, _ONE, HSP)


@jit
def _read_norms(queries, norms, i, stride, out, io, ldo, rows, HS, HSP):
    """Norms and deltas of the queries; beyond their rows a norm that makes each p 0."""
    for r in range(SQUARE):
        queries.norms[r], queries.deltas[r] = -_MINUS_INFINITY, 0
        if r < rows:
            queries.norms[r] = norms[i + r * stride]
            total = splat(np.float32(0))
            for d in range(0, HS, LANES):
                o = load_first(out, io + r * ldo + d, min(LANES, HS - d))
                total = total + o * load(queries.drows, r * HSP + d)
            queries.deltas[r] = reduce_sum(total)


@jit
def _write_queries(dqkv, i, lddq, dqt, turned, rows, HS, HSP, scale):
    """dq from ∂loss/∂(scale · q), which is transposed: turned first, [SQUARE, HSP]."""
    for d in range(0, HSP, LANES):
        for r in range(0, SQUARE, LANES):
            transpose_16x16(dqt, d * SQUARE + r, _SQUARE, turned, r * HSP + d, HSP)
    for r in range(rows):
        for d in range(0, HS, LANES):
            dq = load(turned, r * HSP + d) * splat(scale)
            store_first(dq, dqkv, i + r * lddq + d, min(LANES, HS - d))


@jit
def _square_backward(head, queries, square, key, ahead, TP, HSP):
    """What the queries and the SQUARE keys from `key` on add to dk, dv and dq.

    ahead  the first key's place less the first query's
    """
    n, panel = _SQUARE, LANES * HSP
    square.s[:] = 0
    square.dp[:] = 0
    # pass 1: scores, and what their softmax should have been
    gemm_accumulate(
        square.s, _START, n, head.k, key * HSP, HSP, queries.qt, _START, panel, n, _PANELS, HSP
    )
    gemm_accumulate(
        square.dp, _START, n, head.v, key * HSP, HSP, queries.dot, _START, panel, n, _PANELS, HSP
    )
    # pass 2: p and ds
    for r in range(0, SQUARE, 2):
        for c in range(0, SQUARE, LANES):
            first = _p_and_ds(queries, square, r, c, ahead)
            second = _p_and_ds(queries, square, r + 1, c, ahead)
            store_row_pair(first, second, square.dsp, c * SQUARE + r * LANES)
    # pass 3: what follows for values, keys and queries
    gemm_accumulate(
        head.dv, key * HSP, HSP, square.p, _START, n,
        queries.do, _START, LANES * n, n, HSP // LANES, n,
    )  # fmt: skip
    gemm_accumulate(
        head.dk, key * HSP, HSP, square.ds, _START, n,
        queries.q, _START, LANES * n, n, HSP // LANES, n,
    )  # fmt: skip
    gemm_accumulate(
        queries.dqt, _START, n, head.kt, key, TP, square.dsp, _START, LANES * n, HSP, _PANELS, n
    )


@jit
def _p_and_ds(queries, square, r, c, ahead):
    """p and ds of key r and sixteen queries from c on, into the square; returns ds."""
    i, zero = r * SQUARE + c, splat(np.float32(0))
    p = exp(load(square.s, i) - load(queries.norms, c))
    # a query sees no key that comes after it
    query = lane_ids() + splat(np.float32(c))
    p = select_less(query, splat(np.float32(r + ahead)), zero, p)
    ds = p * (load(square.dp, i) - load(queries.deltas, c))
    store(p, square.p, i)
    store(ds, square.ds, i)
    return ds
