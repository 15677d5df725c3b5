"""Causal attention, fused: scores, softmax and the weighted sum of values in blocks of keys.

No T × T matrix exists. For a query and a block of keys with scores s, the softmax state is

    m = max s,   l = Σ e^(s − m),   o = Σ e^(s − m) · v

and two states merge into the state of both blocks (Milakov & Gimelshein 2018; Dao et al. 2022,
FlashAttention):

    m = max(m₁, m₂),   l = l₁ e^(m₁ − m) + l₂ e^(m₂ − m),   o = o₁ e^(m₁ − m) + o₂ e^(m₂ − m)

The output is o / l after the last block. Blocks begin at multiples of KEY_BLOCK and merge in their
order, so the output of a token has the same bits in a whole prompt, in a batch, or alone.

A state is stored as 32 + HSP float32, HSP = padded(HS): m sixteen times over, for vectors to load;
l as sixteen partial sums, which `reduce_sum` adds in a fixed tree at the end; then o.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .activation import exp_bounded
from .gemm.gemm import (
    as_a_operand,
    as_b_operand,
    configure_tiles,
    gemm_accumulate,
    gemv_accumulate,
    release_tiles,
)
from .gemm.packing import pack_rows
from .jit import I64_0, I64_1, expand, jit
from .kv_cache import head_offset
from .layout import KEY_BLOCK, LANES, padded
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

# Tasks for each thread from which on query blocks alone keep all threads busy
_MIN_TASKS = 16
QUERY_BLOCK = 48  # queries of a task: a multiple of the rows of every tile
_O = 2 * LANES  # offset of o in a state
_AT_O, _KEY_BLOCK = np.array([_O, KEY_BLOCK])  # int64, not literals (see jit.py)
_UNSCALED = np.float32(1)
_INFINITY = np.float32(np.inf)


def attention_scratch(HS: int) -> int:
    """The float32 elements of scratch that a thread needs in attention_forward."""
    return QUERY_BLOCK * (padded(HS) + 2 * KEY_BLOCK + 2 * softmax_state_size(HS))


def softmax_state_size(HS: int) -> int:
    """The float32 elements of the softmax state of one query and head."""
    return _O + padded(HS)


def partials_size(queries: int, NH: int, HS: int, capacity: int) -> int:
    """The float32 elements of the states of all key blocks of `queries` queries in NH heads."""
    return queries * NH * (capacity // KEY_BLOCK) * softmax_state_size(HS)


@jit
def attention_forward(team, out, lse, qkv, cache, heads, query_blocks, partials):
    """out[m, h] = Σ_t softmax_t(scale · q[m, h] · k[t, h]) · v[t, h] over t ≤ the position of m.

    out           View [M, C], float32 or bfloat16
    lse           float32 [M · NH]: log Σ_t e^score, which attention_backward reads; or empty
    qkv           View [M, 3C], of which the queries are read
    cache, heads  LayerCache and Heads; the cache has the keys and values of these tokens, too
    query_blocks  int64 [n, 4], flat: slot, first row, rows, first position; the rows, at most
                  QUERY_BLOCK, are consecutive tokens of one sequence
    partials      float32 [partials_size(n, …)], where each block is one query; else not used

    A task is one query block in one head, with all its keys. Where a few long sequences decode, and
    each query block is one query, there are too few such tasks for the team: a task is one block of
    keys of one query and head, and the states are merged afterwards. Both compute the same bits.
    """
    n = query_blocks.size // 4
    # Fewer blocks than rows: some block has several queries. That is a prompt, alone or in a batch
    # with sequences that decode, whose single queries then take this path, too.
    if n < out.M or n * heads.NH >= _MIN_TASKS * team.size or _max_key_blocks(query_blocks, n) == 1:
        _query_block_tasks(team, out, lse, qkv, cache, heads, query_blocks, n)
    else:
        _key_block_tasks(team, qkv, cache, heads, query_blocks, n, partials)
        _merge_partials(team, out, lse, heads, query_blocks, n, partials)


@expand
def _query_block_tasks(team, out, lse, qkv, cache, heads, query_blocks, n):
    """A task is one of the n query blocks in one head, with all its keys."""
    NH, HS, HSP = heads.NH, heads.HS, padded(heads.HS)
    state = _O + HSP
    work = _forward_workspace(team.scratch, cache.keys, HSP)
    configure_tiles(work.q)
    task = next_task(team)
    while task < n * NH:
        h = task % NH
        slot, row, rows, position = _query_block(query_blocks, task // NH)
        head = head_offset(cache, heads, slot, h)
        _read_rows(
            work.q, I64_0, qkv, row, h * HS, rows, rows, HS, HSP, heads.scale
        )  # fmt: skip
        _clear_states(work.total, rows * state, state)
        for start in range(0, position + rows, KEY_BLOCK):
            _attend(work, cache, head + start * HSP, rows, position - start + 1, HSP)
            for r in range(0, rows * state, state):
                _merge(work.total, r, work.part, r, HSP)
        for r in range(rows):
            _write_output(out, row + r, h * HS, work.total, r * state, HS)
            if lse.size:
                lse[(row + r) * NH + h] = _log_sum_exp(work.total, r * state)
        task = next_task(team)
    release_tiles(work.q)
    barrier(team)


@expand
def _key_block_tasks(team, qkv, cache, heads, query_blocks, n, partials):
    """A task is one block of keys of one of n single queries in one head; its state → partials."""
    NH, HS, HSP = heads.NH, heads.HS, padded(heads.HS)
    state = _O + HSP
    key_blocks = _max_key_blocks(query_blocks, n)
    work = _forward_workspace(team.scratch, cache.keys, HSP)
    configure_tiles(work.q)
    task = next_task(team)
    while task < n * NH * key_blocks:
        start, h = task % key_blocks * KEY_BLOCK, task // key_blocks % NH
        slot, row, _, position = _query_block(query_blocks, task // key_blocks // NH)
        if start <= position:
            head = head_offset(cache, heads, slot, h)
            _read_rows(
                work.q, I64_0, qkv, row, h * HS, I64_1, I64_1, HS, HSP, heads.scale
            )  # fmt: skip
            _attend(work, cache, head + start * HSP, I64_1, position - start + 1, HSP)
            for c in range(0, state, LANES):
                store(load(work.part, c), partials, task * state + c)
        task = next_task(team)
    release_tiles(work.q)
    barrier(team)


@expand
def _merge_partials(team, out, lse, heads, query_blocks, n, partials):
    """The states that _key_block_tasks left, merged for each query and head, to the output."""
    NH, HS, HSP = heads.NH, heads.HS, padded(heads.HS)
    state = _O + HSP
    key_blocks = _max_key_blocks(query_blocks, n)
    total = team.scratch
    task = next_task(team)
    while task < n * NH:
        h = task % NH
        _, row, _, position = _query_block(query_blocks, task // NH)
        _clear_states(total, state, state)
        for i in range(position // KEY_BLOCK + 1):
            _merge(total, I64_0, partials, (task * key_blocks + i) * state, HSP)
        _write_output(out, row, h * HS, total, I64_0, HS)
        if lse.size:
            lse[row * NH + h] = _log_sum_exp(total, I64_0)
        task = next_task(team)
    barrier(team)


@jit
def _query_block(query_blocks, i):
    """(slot, first row, rows, position of the first) of query block i."""
    i *= 4
    return query_blocks[i], query_blocks[i + 1], query_blocks[i + 2], query_blocks[i + 3]


@jit
def _max_key_blocks(query_blocks, n):
    """The largest number of key blocks of any of n single queries."""
    key_blocks = I64_1
    for i in range(n):
        key_blocks = max(key_blocks, query_blocks[4 * i + 3] // KEY_BLOCK + 1)
    return key_blocks


class _ForwardWorkspace(NamedTuple):
    """A thread's scratch in attention_forward.

    q            A operand [QUERY_BLOCK, HSP]: scale · queries
    e            A operand [QUERY_BLOCK, KEY_BLOCK]: e^(s − m)
    s            float32 [QUERY_BLOCK, KEY_BLOCK]: scores
    part, total  float32: QUERY_BLOCK states of one block of keys, and of all blocks so far
    """

    q: np.ndarray
    e: np.ndarray
    s: np.ndarray
    part: np.ndarray
    total: np.ndarray


@jit
def _forward_workspace(scratch, keys, HSP):
    """A thread's scratch as a _ForwardWorkspace, with A operands for products with `keys`."""
    q = QUERY_BLOCK * HSP
    e = q + QUERY_BLOCK * KEY_BLOCK
    s = e + QUERY_BLOCK * KEY_BLOCK
    states = QUERY_BLOCK * (_O + HSP)
    return _ForwardWorkspace(
        as_a_operand(scratch[:q], keys),
        as_a_operand(scratch[q:e], keys),
        scratch[e:s],
        scratch[s : s + states],
        scratch[s + states : s + 2 * states],
    )


@jit
def _read_rows(to, it, x, row, column, rows, all_rows, HS, HSP, scale):
    """scale · rows `row` … of one head of the View x, which begins at `column`, to element `it`
    of `to`: [all_rows, HSP], zeros beyond `rows` and HS."""
    for r in range(all_rows):
        for d in range(0, HSP, LANES):
            value = splat(np.float32(0))
            if r < rows and d < HS:
                i = (row + r) * x.ld + column + d
                value = load_first(x.data, i, min(LANES, HS - d)) * splat(scale)
            store(value, to, it + r * HSP + d)


@jit
def _clear_states(states, size, state):
    """The states of no keys in `size` elements: m = −∞, l = 0, o = 0."""
    states[:size] = 0
    for r in range(0, size, state):
        store(splat(-_INFINITY), states, r)


@jit
def _attend(work, cache, block, rows, visible, HSP):
    """work.part = the states of `rows` queries, in work.q, and the block of keys at element `block`
    of the cache.

    visible  how many of these keys the first query attends to; each further query attends to one
             more. ≤ 0 where the block begins after the query; > KEY_BLOCK where it ends before it.

    Where BF16_PRODUCTS and the cache is bfloat16, pass 3 multiplies e rounded to bfloat16, while l
    sums the unrounded e.
    """
    state = _O + HSP
    q, e, s, part = work.q, work.e, work.s, work.part
    max_visible = min(KEY_BLOCK, visible + rows - 1)
    width = padded(max_visible)
    # pass 1: scores s = q · kᵀ
    for r in range(rows):
        s[r * KEY_BLOCK : r * KEY_BLOCK + width] = 0
    _product(
        s, I64_0, _KEY_BLOCK, q, HSP, cache.keys, block, LANES * HSP,
        rows, width // LANES, HSP,
    )  # fmt: skip
    # pass 2: m, l, and e = e^(s − m)
    for r in range(rows):
        _exp_and_sum(part, r * state, e, s, r * KEY_BLOCK, min(KEY_BLOCK, visible + r), width)
    # pass 3: o = e · v
    for r in range(rows):
        for d in range(_O, state, LANES):
            store(splat(np.float32(0)), part, r * state + d)
    _product(
        part, _AT_O, state, e, _KEY_BLOCK, cache.values, block, LANES * KEY_BLOCK,
        rows, HSP // LANES, width,
    )  # fmt: skip


@jit
def _product(c, ic, ldc, a, lda, b, ib, panel, rows, panels, K):
    """C += A · B as gemm_accumulate, with A from element 0 on; one row as gemv_accumulate."""
    if rows == 1:
        gemv_accumulate(c, ic, ldc, a, I64_0, lda, b, ib, panel, panels, K)
    else:
        gemm_accumulate(c, ic, ldc, a, I64_0, lda, b, ib, panel, rows, panels, K)


@jit
def _exp_and_sum(part, ip, e, s, row, visible, width):
    """One query's m = max s and l = Σ e^(s − m) to the state at `ip` of `part`; e^(s − m) to e.

    row      the element of e and s at which the query's scores begin
    visible  how many of the scores count, at most KEY_BLOCK; e is 0 for the others. If ≤ 0, none
             does, and the state is that of no keys
    width    the scores computed, a multiple of K_ALIGN

    The scores beyond `visible` are not used, whatever they are.
    """
    if visible <= 0:
        for t in range(0, width, LANES):
            store(splat(np.float32(0)), e, row + t)
        store(splat(-_INFINITY), part, ip)
        store(splat(np.float32(0)), part, ip + LANES)
        return
    whole = visible - visible % LANES
    lane_max = splat(-_INFINITY)
    for t in range(0, whole, LANES):
        lane_max = vmax(lane_max, load(s, row + t))
    if whole < visible:
        lane_max = vmax(lane_max, _first_scores(s, row + whole, visible - whole))
    m = splat(reduce_max(lane_max))
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
    for t in range(whole, width, LANES):
        store(splat(np.float32(0)), e, row + t)
    store(m, part, ip)
    store(total, part, ip + LANES)


@jit
def _first_scores(s, i, count):
    """The first `count` of the sixteen scores at element i, −∞ in the other lanes."""
    return select_less(lane_ids(), splat(np.float32(count)), load(s, i), splat(-_INFINITY))


@jit
def _merge(total, it, part, ip, HSP):
    """Merge the state at `ip` of `part` into the state at `it` of `total`."""
    m_1, m_2 = load(total, it), load(part, ip)
    m = vmax(m_1, m_2)
    scale_1, scale_2 = exp_bounded(m_1 - m), exp_bounded(m_2 - m)
    store(m, total, it)
    for c in range(LANES, _O + HSP, LANES):
        merged = load(total, it + c) * scale_1 + load(part, ip + c) * scale_2
        store(merged, total, it + c)


@jit
def _write_output(out, row, column, total, it, HS):
    """o / l of the state at `it` of `total` to one head of a row of the View out."""
    denominator = splat(reduce_sum(load(total, it + LANES)))
    for d in range(0, HS, LANES):
        o = load(total, it + _O + d) / denominator
        store_first(o, out.data, row * out.ld + column + d, min(LANES, HS - d))


@jit
def _log_sum_exp(total, it):
    """log Σ e^s = m + log l of the state at `it`; the softmax is e^(s − lse)."""
    return reduce_max(load(total, it)) + np.log(reduce_sum(load(total, it + LANES)))


# ---- backward -------------------------------------------------------------------------------

BLOCK = 64  # backward cuts the scores into blocks of BLOCK keys × BLOCK queries
_BLOCK, _BLOCK_PANELS = np.array([BLOCK, BLOCK // LANES])


def attention_backward_scratch(T: int, HS: int) -> int:
    """The float32 elements of scratch that a thread needs in attention_backward."""
    TP, HSP = padded(T, BLOCK), padded(HS)
    return 5 * TP * HSP + BLOCK * (7 * HSP + 5 * BLOCK + 2)


class _Head(NamedTuple):
    """One head of one sequence, TP = padded(T, BLOCK) tokens; zeros beyond T and HS.

    k, v    A operands [TP, HSP]
    k_t     A operand kᵀ [HSP, TP]
    dk, dv  float32 [TP, HSP]
    """

    k: np.ndarray
    v: np.ndarray
    k_t: np.ndarray
    dk: np.ndarray
    dv: np.ndarray


class _Queries(NamedTuple):
    """BLOCK of its queries, in the layout of each product.

    q_rows, do_rows  float32 [BLOCK, HSP]: scale · q, and do = ∂loss/∂o
    q, do            the same as B operands
    q_t, do_t        their transposes [HSP, BLOCK] as B operands
    dq_t             float32 [HSP, BLOCK]: ∂loss/∂(scale · q), transposed
    lse, delta       float32 [BLOCK]
    """

    q_rows: np.ndarray
    do_rows: np.ndarray
    q: np.ndarray
    do: np.ndarray
    q_t: np.ndarray
    do_t: np.ndarray
    dq_t: np.ndarray
    lse: np.ndarray
    delta: np.ndarray


class _ScoreBlock(NamedTuple):
    """BLOCK keys (rows) × BLOCK queries (columns).

    s, dp  float32: scores, and dp = ∂loss/∂p
    p, ds  A operands: p = e^(s − lse), and ds = ∂loss/∂s
    ds_b   ds as a B operand
    """

    s: np.ndarray
    dp: np.ndarray
    p: np.ndarray
    ds: np.ndarray
    ds_b: np.ndarray


@jit
def attention_backward(team, dqkv, dout, qkv, out, lse, heads, T, like):
    """dqkv from dout = ∂loss/∂out of attention_forward, for whole sequences of T tokens.

    For query i and key t, with s = scale · q · k and p = e^(s − lse), which are computed again:

        dv[t] = Σ_i p[i, t] · do[i]                 dp[i, t] = do[i] · v[t]
        ds = p · (dp − delta),  delta[i] = Σ_d do[i, d] · o[i, d]
        dk[t] = scale · Σ_i ds[i, t] · q[i]         dq[i] = scale · Σ_t ds[i, t] · k[t]

    dqkv, qkv  View [B · T, 3C]
    dout, out  View [B · T, C]
    lse        float32 [B · T · NH], from attention_forward
    heads      Heads
    like       an array of the dtype of B operands

    A task is one head of one sequence; a thread's scratch is of attention_backward_scratch.
    """
    NH, HS, HSP, TP = heads.NH, heads.HS, padded(heads.HS), padded(T, BLOCK)
    C = NH * HS
    head, queries, scores = _backward_workspace(team.scratch, like, TP, HSP)
    configure_tiles(head.k)
    task = next_task(team)
    while task < out.M // T * NH:
        row, h = task // NH * T, task % NH
        _read_head(head, qkv, row, C + h * HS, C, T, TP, HS, HSP)
        for first in range(0, T, BLOCK):
            rows = min(BLOCK, T - first)
            _read_rows(
                queries.q_rows, I64_0, qkv, row + first, h * HS, rows, _BLOCK, HS, HSP,
                heads.scale,
            )  # fmt: skip
            _read_rows(
                queries.do_rows, I64_0, dout, row + first, h * HS, rows, _BLOCK, HS, HSP,
                _UNSCALED,
            )  # fmt: skip
            _pack_queries(queries, HSP)
            _read_lse_and_delta(queries, lse, out, row + first, h, rows, heads)
            for key in range(0, first + rows, BLOCK):
                _score_block_backward(head, queries, scores, key, key - first, TP, HSP)
            _write_dq(dqkv, row + first, h * HS, queries, rows, HS, HSP, heads.scale)
        for t in range(T):
            for d in range(0, HS, LANES):
                i, lanes = (row + t) * dqkv.ld + C + h * HS + d, min(LANES, HS - d)
                store_first(load(head.dk, t * HSP + d), dqkv.data, i, lanes)
                store_first(load(head.dv, t * HSP + d), dqkv.data, i + C, lanes)
        task = next_task(team)
    release_tiles(head.k)
    barrier(team)


@jit
def _backward_workspace(scratch, like, TP, HSP):
    """A thread's scratch as a _Head, _Queries and a _ScoreBlock."""
    n, i = TP * HSP, np.int64(0)
    head = _Head(
        as_a_operand(scratch[:n], like),
        as_a_operand(scratch[n : 2 * n], like),
        as_a_operand(scratch[2 * n : 3 * n], like),
        scratch[3 * n : 4 * n],
        scratch[4 * n : 5 * n],
    )
    i, n = 5 * n, BLOCK * HSP
    queries = _Queries(
        scratch[i : i + n],
        scratch[i + n : i + 2 * n],
        as_b_operand(scratch[i + 2 * n : i + 3 * n], like),
        as_b_operand(scratch[i + 3 * n : i + 4 * n], like),
        as_b_operand(scratch[i + 4 * n : i + 5 * n], like),
        as_b_operand(scratch[i + 5 * n : i + 6 * n], like),
        scratch[i + 6 * n : i + 7 * n],
        scratch[i + 7 * n : i + 7 * n + BLOCK],
        scratch[i + 7 * n + BLOCK : i + 7 * n + 2 * BLOCK],
    )
    i, n = i + 7 * n + 2 * BLOCK, BLOCK * BLOCK
    scores = _ScoreBlock(
        scratch[i : i + n],
        scratch[i + n : i + 2 * n],
        as_a_operand(scratch[i + 2 * n : i + 3 * n], like),
        as_a_operand(scratch[i + 3 * n : i + 4 * n], like),
        as_b_operand(scratch[i + 4 * n : i + 5 * n], like),
    )
    return head, queries, scores


@jit
def _read_head(head, qkv, row, column, C, T, TP, HS, HSP):
    """Keys and values of one head: from rows `row` … of qkv, the keys from `column` on."""
    head.dk[:] = 0
    head.dv[:] = 0
    for t in range(0, TP, BLOCK):
        rows = max(0, min(BLOCK, T - t))
        for to, source in ((head.k, column), (head.v, column + C)):
            _read_rows(to, t * HSP, qkv, row + t, source, rows, _BLOCK, HS, HSP, _UNSCALED)
    for t in range(0, TP, LANES):
        for d in range(0, HSP, LANES):
            transpose_16x16(head.k, t * HSP + d, HSP, head.k_t, d * TP + t, TP)


@jit
def _pack_queries(queries, HSP):
    """q_rows and do_rows to all four B operands; dq_t = 0."""
    queries.dq_t[:] = 0
    for panels, rows in ((queries.q, queries.q_rows), (queries.do, queries.do_rows)):
        pack_rows(panels, I64_0, I64_0, _BLOCK, rows, I64_0, _BLOCK, HSP, HSP, I64_1)
    for panels, rows in ((queries.q_t, queries.q_rows), (queries.do_t, queries.do_rows)):
        pack_rows(panels, I64_0, I64_0, HSP, rows, I64_0, HSP, _BLOCK, I64_1, HSP)


@jit
def _read_lse_and_delta(queries, lse, out, row, h, rows, heads):
    """lse and delta = Σ_d do · o of the queries; beyond `rows` an lse of ∞, which makes p 0."""
    HS, HSP = heads.HS, padded(heads.HS)
    for r in range(BLOCK):
        queries.lse[r], queries.delta[r] = _INFINITY, 0
        if r < rows:
            queries.lse[r] = lse[(row + r) * heads.NH + h]
            total = splat(np.float32(0))
            for d in range(0, HS, LANES):
                o = load_first(out.data, (row + r) * out.ld + h * HS + d, min(LANES, HS - d))
                total = total + o * load(queries.do_rows, r * HSP + d)
            queries.delta[r] = reduce_sum(total)


@jit
def _write_dq(dqkv, row, column, queries, rows, HS, HSP, scale):
    """dq = scale · ∂loss/∂(scale · q) to rows `row` … of dqkv; do_rows is overwritten."""
    dq = queries.do_rows
    for d in range(0, HSP, LANES):
        for r in range(0, BLOCK, LANES):
            transpose_16x16(queries.dq_t, d * BLOCK + r, _BLOCK, dq, r * HSP + d, HSP)
    for r in range(rows):
        for d in range(0, HS, LANES):
            value = load(dq, r * HSP + d) * splat(scale)
            i = (row + r) * dqkv.ld + column + d
            store_first(value, dqkv.data, i, min(LANES, HS - d))


@jit
def _score_block_backward(head, queries, scores, key, ahead, TP, HSP):
    """Add to dk, dv and dq_t what the queries and the BLOCK keys from `key` on contribute.

    ahead  the position of the first key minus that of the first query
    """
    n, panel = _BLOCK, LANES * HSP
    scores.s[:] = 0
    scores.dp[:] = 0
    # pass 1: sᵀ = k · qᵀ and dpᵀ = v · doᵀ
    gemm_accumulate(
        scores.s, I64_0, n, head.k, key * HSP, HSP,
        queries.q_t, I64_0, panel, n, _BLOCK_PANELS, HSP,
    )  # fmt: skip
    gemm_accumulate(
        scores.dp, I64_0, n, head.v, key * HSP, HSP,
        queries.do_t, I64_0, panel, n, _BLOCK_PANELS, HSP,
    )  # fmt: skip
    # pass 2: p and ds
    for r in range(0, BLOCK, 2):
        for c in range(0, BLOCK, LANES):
            first = _p_and_ds(queries, scores, r, c, ahead)
            second = _p_and_ds(queries, scores, r + 1, c, ahead)
            store_row_pair(first, second, scores.ds_b, c * BLOCK + r * LANES)
    # pass 3: dv += pᵀ · do, dk += dsᵀ · (scale · q), dqᵀ += kᵀ · dsᵀ
    gemm_accumulate(
        head.dv, key * HSP, HSP, scores.p, I64_0, n,
        queries.do, I64_0, LANES * n, n, HSP // LANES, n,
    )  # fmt: skip
    gemm_accumulate(
        head.dk, key * HSP, HSP, scores.ds, I64_0, n,
        queries.q, I64_0, LANES * n, n, HSP // LANES, n,
    )  # fmt: skip
    gemm_accumulate(
        queries.dq_t, I64_0, n, head.k_t, key, TP,
        scores.ds_b, I64_0, LANES * n, HSP, _BLOCK_PANELS, n,
    )  # fmt: skip


@jit
def _p_and_ds(queries, scores, r, c, ahead):
    """Write p and ds of key r and the sixteen queries from c on; return ds."""
    i, zero = r * BLOCK + c, splat(np.float32(0))
    # causal: a query does not attend to later keys, and whatever p is there is discarded
    p = exp_bounded(load(scores.s, i) - load(queries.lse, c))
    query = lane_ids() + splat(np.float32(c))
    p = select_less(query, splat(np.float32(r + ahead)), zero, p)
    ds = p * (load(scores.dp, i) - load(queries.delta, c))
    store(p, scores.p, i)
    store(ds, scores.ds, i)
    return ds
