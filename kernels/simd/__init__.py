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
    AMX_ROWS,
    AMX_WHOLE_SCRATCH,
    amx_add_products_16,
    amx_add_products_32,
    amx_add_products_of_int4,
    amx_add_products_of_int8,
    amx_begin,
    amx_end,
)
from .llvm import AMX, AMX_INT8, BF16_PRODUCTS
from .memory import (
    array_at,
    get,
    load,
    load_first,
    load_strided,
    place,
    put,
    store,
    store_bytes,
    store_first,
    store_numbers,
    store_two,
)
from .shared import atomic_add, atomic_load, atomic_store, pause
from .squares import turn_square, turn_square_to_panel
from .tiles import TILE_ROWS, TILE_VECTORS, sum_of_products
from .vectors import (
    as_bfloat16,
    fma,
    lane_numbers,
    power_of_two,
    select_less,
    splat,
    vabs,
    vgreatest,
    vmax,
    vmin,
    vround,
    vsqrt,
    vsum,
)
from .whole import (
    WHOLE_TILE_ROWS,
    WHOLE_TILE_VECTORS,
    rows_of_line,
    scales_of_block,
    sum_of_whole_products,
)

__all__ = [
    "AMX",
    "AMX_INT8",
    "AMX_ROWS",
    "AMX_WHOLE_SCRATCH",
    "BF16_PRODUCTS",
    "TILE_ROWS",
    "TILE_VECTORS",
    "WHOLE_TILE_ROWS",
    "WHOLE_TILE_VECTORS",
    "amx_add_products_16",
    "amx_add_products_32",
    "amx_add_products_of_int4",
    "amx_add_products_of_int8",
    "amx_begin",
    "amx_end",
    "array_at",
    "as_bfloat16",
    "atomic_add",
    "atomic_load",
    "atomic_store",
    "fma",
    "get",
    "lane_numbers",
    "load",
    "load_first",
    "load_strided",
    "pause",
    "place",
    "power_of_two",
    "put",
    "rows_of_line",
    "scales_of_block",
    "select_less",
    "splat",
    "store",
    "store_bytes",
    "store_first",
    "store_numbers",
    "store_two",
    "sum_of_products",
    "sum_of_whole_products",
    "turn_square",
    "turn_square_to_panel",
    "vabs",
    "vgreatest",
    "vmax",
    "vmin",
    "vround",
    "vsqrt",
    "vsum",
]
