"""Sort texts by how well the model predicts them.

    python examples/score_texts.py [FILE…]

A text's perplexity is e to the mean cross-entropy of its tokens: 1 is a perfect prediction, and the
size of the vocabulary is a blind guess. Bits per byte compare across tokenizers. Without files the
program scores a few sentences, of which the bundled model knows fairy tales best.
"""

from __future__ import annotations

import sys
from pathlib import Path

from minigpt import GPTModel, GPTTokenizer, perplexity

SENTENCES = [
    "Once upon a time there was a king who had three daughters, and the youngest was the fairest.",
    "The quarterly report shows that revenue from cloud services grew by eleven percent.",
    "king daughters the a was who there upon fairest youngest three and time had the once",
]

tokenizer = GPTTokenizer.from_pretrained()
model = GPTModel.from_pretrained()

results = []
for name in sys.argv[1:] or SENTENCES:
    try:
        text = Path(name).read_text(encoding="utf-8") if sys.argv[1:] else name
        result = perplexity(model, tokenizer.encode(text), len(text.encode()))
    except (OSError, ValueError) as error:  # minigpt's InputError is a ValueError
        sys.exit(f"python examples/score_texts.py [FILE…]: {name}: {error}")
    results.append((result.perplexity, result.bits_per_byte, name))

print("perplexity  bits/byte  text")
for value, bits, name in sorted(results):
    print(f"{value:10.1f}  {bits:9.2f}  {name}")
