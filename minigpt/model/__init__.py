"""The GPT, compiled: forward and backward, the KV cache, the engine and the learner.

block.py      a transformer block, forward and backward, shared by inference and training
forward.py    inference: embedding, blocks and logits, from the addresses of packed weights
backward.py   training: embedding, blocks and head, forward and backward
dims.py       the dimensions and constants that these read
engine.py     Engine: runs tokens through a model; kv_cache.py: KVCache, the tokens read so far
learner.py    Learner: weights, gradients and AdamW; optimizer.py: the settings of a step
"""
