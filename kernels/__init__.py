"""The mathematics, compiled by Numba. Nothing here imports anything of minigpt.

Reading order: reference.py (every formula in plain NumPy), jit.py (how functions are compiled),
simd/ (vectors and tiles), team.py (threads), then the kernels: embedding, layernorm, matmul,
codes, activation, attention, crossentropy, adamw. Apart from these, splitting and merging make ids
of a text.
"""
