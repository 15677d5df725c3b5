"""From logits to a token, from tokens to a text, many sequences in one batch.

sampler.py      the distribution of the next token, and the draw from it
scheduler.py    sequences that join and leave a running batch
generate.py     a batch to its end, or one sequence as it comes
text_stream.py  the same as text, up to a stop string
"""
