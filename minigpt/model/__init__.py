"""The GPT itself: forward and backward, the KV cache, the engine and the learner."""
