"""Vectors and tiles for Numba: the only folder that knows about instructions.

`Vector` is sixteen float32 in a row (LLVM's `<16 x float>`). One such value is one AVX-512
register, two AVX2 registers, four of SSE or NEON: LLVM splits it as the processor needs, so a
kernel written once over sixteen lanes runs everywhere. It is also what keeps results the same
everywhere: a sum over lanes has sixteen partial sums on every machine.

A `Tile` is rows × vectors of them that stay in registers while a product of matrices is summed
into them; TILE_ROWS × TILE_VECTORS fill the registers of this processor. Where it has AMX, tiles
of its own kind multiply bfloat16 and bytes.

Arrays are one-dimensional here and places in them are given as element numbers. An array of
uint16 is bfloat16, the upper half of a float32: widened when it is read, rounded when it is
written. Kernels need not know how weights and activations are held.

The right factor of a product lies in panels: sixteen columns wide, row below row. In bfloat16 two
rows 2i and 2i + 1 are interleaved, element by element, as the processors' instructions for pairs
want them; row k of a panel begins at element 16 · k for even k in either type.

Weights may also be whole numbers of 8 or 4 bits, with scales (layout.py). What they are multiplied
with is then made whole, too, and products are summed as integers: exactly, so every processor's
way to do it gives the same bits.

    llvm.py     the processor's features; LLVM's types, and what the others are made of
    vectors.py  sixteen float32 at once
    memory.py   from arrays to vectors and back
    squares.py  sixteen vectors, turned
    shared.py   numbers that threads share
    tiles.py    sums of products of floats
    whole.py    sums of products of whole numbers
    amx.py      both in AMX's tiles
"""

from __future__ import annotations

from .amx import (
    AMX_INT_SCRATCH,
    AMX_ROWS,
    amx_configure_tiles,
    amx_microkernel_16,
    amx_microkernel_32,
    amx_microkernel_int4,
    amx_microkernel_int8,
    amx_release_tiles,
)
from .atomics import atomic_add, atomic_load, atomic_store, pause
from .int_tiles import (
    INT_TILE_ROWS,
    INT_TILE_VECTORS,
    int_microkernel,
    rows_of_line,
    scales_of_block,
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
    store,
    store_bytes,
    store_first,
    store_numbers,
    store_two,
)
from .tiles import TILE_ROWS, TILE_VECTORS, microkernel
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
    "INT_TILE_ROWS",
    "INT_TILE_VECTORS",
    "TILE_ROWS",
    "TILE_VECTORS",
    "amx_configure_tiles",
    "amx_microkernel_16",
    "amx_microkernel_32",
    "amx_microkernel_int4",
    "amx_microkernel_int8",
    "amx_release_tiles",
    "array_at",
    "as_bfloat16",
    "atomic_add",
    "atomic_load",
    "atomic_store",
    "fma",
    "get",
    "int_microkernel",
    "lane_ids",
    "load",
    "load_first",
    "load_strided",
    "microkernel",
    "panel_offset",
    "pause",
    "power_of_two",
    "put",
    "reduce_max",
    "reduce_sum",
    "rows_of_line",
    "scales_of_block",
    "select_less",
    "splat",
    "store",
    "store_bytes",
    "store_first",
    "store_numbers",
    "store_two",
    "transpose_16x16",
    "transpose_16x16_to_panel",
    "vabs",
    "vmax",
    "vmin",
    "vround",
    "vsqrt",
]
