"""The kernels of a GPT, compiled by Numba. Nothing here imports minigpt.

Reading order:

    reference.py     every formula in plain NumPy, forward beside backward
    layout.py        how weights and activations are stored in memory
    jit.py           how functions are compiled and cached
    team.py          threads: tasks and barriers; team_limit.py: how many take part
    simd/            vectors and register tiles; the only folder that knows instructions
    view.py          matrices of activations in flat arrays
    gemm/            matrix products over tiles; packing and quantizing their operands
    embedding.py layernorm.py matmul.py activation.py attention.py kv_cache.py
                     the kernels of a forward pass, each beside its backward
    crossentropy.py adamw.py
                     the kernels of training
    bpe/             byte-pair encoding of long texts
    memory_read.py   a plain read of memory, to measure its speed

and, small: cache_dir.py (the user's cache folder), code_hash.py (what its entries depend on),
events.py (what a program can learn of its kernels), threads.py (threads and locks that bear signals
and forks), amx_permission.py. docs/kernels.md derives the matrix product step by step.
"""
