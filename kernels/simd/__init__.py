"""Vectors and tiles for Numba: the only folder that knows a processor's instructions.

`Vector` is sixteen float32 (LLVM's `<16 x float>`): one AVX-512 register, two of AVX2, four of SSE
or NEON. LLVM splits it as the processor needs, so a kernel written once for sixteen lanes runs
everywhere. It also keeps results the same everywhere: a sum over lanes has sixteen partial sums on
every machine.

A `Tile` is rows × vectors of sums that stay in registers while a matrix product is computed;
TILE_ROWS × TILE_VECTORS fill the registers of this processor. AMX has tiles of its own, which
multiply bfloat16 and bytes.

Functions take 1-D arrays, with offsets and strides in elements. An array of uint16 is bfloat16, the
upper half of a float32: loads convert it to float32 and stores round to it, so that kernels need
not know the dtype of weights and activations. layout.py describes panels and quantized matrices.

    llvm.py       LLVM types, the processor's features, helpers that emit instructions
    vectors.py    arithmetic and reductions of sixteen float32
    memory.py     loads and stores between arrays and vectors
    transpose.py  blocks of 16 × 16 elements
    atomics.py    atomic numbers, pause, sleep, clock
    tiles.py      register tiles of float products
    int_tiles.py  register tiles of quantized products
    amx.py        both in AMX's tiles
    bytes.py      text: 64 bytes compared at once, words, bits

The instructions are chosen when the folder is imported, by `cpu_features()`.
"""

from __future__ import annotations

from .amx import (
    AMX_INT_SCRATCH,
    AMX_ROWS,
    amx_configure_tiles,
    amx_microkernel_16,
    amx_microkernel_32,
    amx_microkernel_32_prefetch,
    amx_microkernel_int4,
    amx_microkernel_int8,
    amx_release_tiles,
)
from .atomics import (
    CLOCK_UNIT,
    SLEEP_TIME,
    atomic_add,
    atomic_compare_exchange,
    atomic_load,
    atomic_store,
    clock,
    pause,
    sleep,
)
from .bytes import (
    BLOCK,
    bytes_between,
    folded_product,
    load_word,
    prefetch_word,
    trailing_zeros,
)
from .int_tiles import (
    INT_FEW_ROWS,
    INT_ROW_VECTORS,
    INT_TILE_ROWS,
    INT_TILE_VECTORS,
    int_microkernel,
    k_per_line,
    scales_per_block,
)
from .llvm import AMX, AMX_INT8, BF16_PRODUCTS
from .memory import (
    array_at,
    get,
    load,
    load_first,
    load_strided,
    panel_offset,
    put,
    reinterpret,
    store,
    store_bytes,
    store_exact,
    store_first,
    store_int8,
    store_row_pair,
)
from .tiles import MANY_ROWS, TILE_ROWS, TILE_VECTORS, microkernel
from .transpose import transpose_16x16, transpose_16x16_to_panel
from .vectors import (
    as_bfloat16,
    fma,
    lane_ids,
    power_of_two,
    reduce_max,
    reduce_sum,
    select_less,
    splat,
    vabs,
    vmax,
    vmin,
    vround,
    vsqrt,
)

__all__ = [
    "AMX",
    "AMX_INT8",
    "AMX_INT_SCRATCH",
    "AMX_ROWS",
    "BF16_PRODUCTS",
    "BLOCK",
    "CLOCK_UNIT",
    "INT_FEW_ROWS",
    "INT_ROW_VECTORS",
    "INT_TILE_ROWS",
    "INT_TILE_VECTORS",
    "MANY_ROWS",
    "SLEEP_TIME",
    "TILE_ROWS",
    "TILE_VECTORS",
    "amx_configure_tiles",
    "amx_microkernel_16",
    "amx_microkernel_32",
    "amx_microkernel_32_prefetch",
    "amx_microkernel_int4",
    "amx_microkernel_int8",
    "amx_release_tiles",
    "array_at",
    "as_bfloat16",
    "atomic_add",
    "atomic_compare_exchange",
    "atomic_load",
    "atomic_store",
    "bytes_between",
    "clock",
    "fma",
    "folded_product",
    "get",
    "int_microkernel",
    "k_per_line",
    "lane_ids",
    "load",
    "load_first",
    "load_strided",
    "load_word",
    "microkernel",
    "panel_offset",
    "pause",
    "power_of_two",
    "prefetch_word",
    "put",
    "reduce_max",
    "reduce_sum",
    "reinterpret",
    "scales_per_block",
    "select_less",
    "sleep",
    "splat",
    "store",
    "store_bytes",
    "store_exact",
    "store_first",
    "store_int8",
    "store_row_pair",
    "trailing_zeros",
    "transpose_16x16",
    "transpose_16x16_to_panel",
    "vabs",
    "vmax",
    "vmin",
    "vround",
    "vsqrt",
]
