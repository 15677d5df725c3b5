"""From the tensors of a checkpoint to the weights of a model: names, shapes, checks, packing.

table.py    the names and shapes of all tensors, and how memory stores them
checks.py   a checkpoint's headers against that table
loading.py  tensors converted and packed, in chunks
packed.py   Weights: the packed tensors of a model
unpack.py   a packed matrix in its own shape again
"""
