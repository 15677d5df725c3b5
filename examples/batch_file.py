"""Continue each line of a file, many lines in one running batch.

    python examples/batch_file.py FILE [TOKENS]

Prints a JSON object per line, in the order in which the texts end. A batch is faster than one line
after the other: a pass reads the weights once for all its sequences. When a text ends, the next
line takes its slot. The text of a line does not depend on the other lines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from minigpt import GPTModel, GPTTokenizer, Scheduler

prompts = {}
try:
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    max_new_tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 32
    tokenizer = GPTTokenizer.from_pretrained()
    scheduler = Scheduler(GPTModel.from_pretrained(), slots=8)
    for line in lines:
        if line.strip():
            request = scheduler.add(tokenizer.encode(line), max_new_tokens, temperature=0.8, seed=1)
            prompts[request] = line
except (IndexError, OSError, ValueError) as error:  # minigpt's InputError is a ValueError
    sys.exit(f"python examples/batch_file.py FILE [TOKENS]: {error}")

while scheduler.num_unfinished:
    for event in scheduler.step():
        if event.finished:
            text = tokenizer.decode(event.request.token_ids, skip_special_tokens=True)
            print(json.dumps({"prompt": prompts[event.request], "text": text}), flush=True)
