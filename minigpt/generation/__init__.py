"""From logits to a token, from tokens to a text, many sequences in one batch.

sampler.py      the distribution of the next token, and the draw from it
scheduler.py    sequences that join and leave a running batch
generate.py     a batch of prompts to completion, or the tokens of one prompt as a stream
text_stream.py  the continuation of one prompt as text, up to a stop string
"""
