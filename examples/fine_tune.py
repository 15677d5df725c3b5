"""Fine-tune the bundled model on a text, and compare its perplexity before and after.

    python examples/fine_tune.py TEXT_FILE FOLDER [STEPS]

FOLDER becomes a model source: `minigpt generate -m FOLDER "…"` continues texts in the new style. An
interrupted run resumes with `train(FOLDER)`, to the same result.
"""

from __future__ import annotations

import sys
from pathlib import Path

from minigpt import GPTModel, GPTTokenizer, TrainingConfig, perplexity, train
from minigpt.bundled import BUNDLED_MODEL

try:
    file, folder = sys.argv[1:3]
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    # An option that is None takes a default for fine-tuning; the end of the text is for validation.
    config = TrainingConfig(steps=steps, batch_size=4, context=128, lr=2e-4)
    train(folder, file, model=BUNDLED_MODEL, config=config)
except ValueError as error:  # minigpt's InputError is one
    sys.exit(f"python examples/fine_tune.py TEXT_FILE FOLDER [STEPS]: {error}")

tokenizer = GPTTokenizer.from_pretrained(folder)
text = Path(file).read_text(encoding="utf-8")
for name, source in (("before", BUNDLED_MODEL), ("after", folder)):
    model = GPTModel.from_pretrained(source)
    result = perplexity(model, tokenizer.encode(text), len(text.encode()))
    print(f"perplexity {name}: {result.perplexity:.1f}")
