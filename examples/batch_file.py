"""Continue each line of a file, many lines in one batch.

    python examples/batch_file.py FILE [TOKENS]

Prints a JSON object per line, in the order of the file. A batch is faster than one line after the
other: the weights are read once for all sequences in it. The text of a line does not depend on the
other lines of its batch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from minigpt import GPTModel, GPTTokenizer

SLOTS = 8

tokenizer = GPTTokenizer.from_pretrained()
model = GPTModel.from_pretrained()
lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
max_new_tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 32

prompts = [tokenizer.encode(line) for line in lines if line.strip()]
for first in range(0, len(prompts), SLOTS):
    batch = prompts[first : first + SLOTS]
    for prompt, ids in zip(
        batch, model.generate(batch, max_new_tokens=max_new_tokens), strict=True
    ):
        prompt_text, text = tokenizer.decode(prompt), tokenizer.decode(ids[len(prompt) :])
        print(json.dumps({"prompt": prompt_text, "text": text}))
