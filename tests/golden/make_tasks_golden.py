"""Make golden/tasks: a small model, task files, and the scores that transformers gives.

    python tests/golden/make_tasks_golden.py

It needs torch and transformers, as make_golden.py does, and the tests do not. The folder holds a
random model of 2 layers and 64 positions, a vocabulary of the bytes and a few merges, and

| file          |                                                                             |
|---------------|-----------------------------------------------------------------------------|
| words.jsonl   | passages and last words, half of which the model finds by greedy decoding   |
| choices.jsonl | questions with two to four choices; some texts are longer than the context  |
| expected.json | for each continuation, in order: [ln p, number of tokens, greedy or not]    |

The scores are computed in the simplest way: one continuation at a time, in float64, in a pass over
context and continuation, with the tokens of transformers' GPT2Tokenizer.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from make_golden import HERE, Case, as_saved_today, build, shape, write_json
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2LMHeadModel, GPT2Tokenizer
from transformers.utils.logging import disable_progress_bar

FOLDER = HERE / "tasks"
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "e r", "Ġ t", "Ġt he", "Ġ a"]
TOKENS = [*sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES), "<|endoftext|>"]
WORDS = [
    "the",
    "hello",
    "wader",
    "a",
    "here",
    "h\u00e9llo",
    "teller",
    "42",
    "\u6c34",
    "law,",
    "it's",
]
N_POSITIONS = 64
MIN_MARGIN = 1e-3  # between logits: rounding must not decide which token is the best

Score = tuple[float, int, bool]


def passage(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def score(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, context: str, word: str) -> Score:
    """ln p of `word`, which begins with a space, after `context`; its tokens; greedy or not."""
    before, ids = (tokenizer(text)["input_ids"] for text in (context, context + word))
    assert ids[: len(before)] == before
    target = torch.tensor(ids[len(before) :])
    read = torch.tensor([ids[:-1][-N_POSITIONS:]])
    with torch.inference_mode():
        logits = model(read).logits[0, -len(target) :]
    positions = torch.arange(len(target))
    others = logits.clone()
    others[positions, target] = -torch.inf
    lead = logits[positions, target] - others.max(-1).values
    assert (lead.abs() > MIN_MARGIN).all()
    log_p = logits.log_softmax(-1)[positions, target]
    return float(log_p.sum()), len(target), bool((lead > 0).all())


def passage_with_greedy_word(
    model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, rng: random.Random
) -> str:
    """A passage and a last word of two tokens that greedy decoding writes."""
    while True:
        context = passage(rng, rng.randrange(3, 30))
        ids = tokenizer(context)["input_ids"]
        for _ in range(2):
            with torch.inference_mode():
                last = model(torch.tensor([ids[-N_POSITIONS:]])).logits[0, -1]
            ids.append(int(last.argmax()))
        word = tokenizer.decode(ids[-2:])
        if re.fullmatch(" [a-z]+", word) and score(model, tokenizer, context, word)[2]:
            return context + word


def main() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    config = shape(2, 2, 8, len(TOKENS), N_POSITIONS) | {"activation_function": "gelu"}
    case = Case("tasks", config, as_saved_today, prompt=0)
    model = build(case)
    case.store(model, case, FOLDER)
    (FOLDER / "generation_config.json").unlink()
    write_json(FOLDER / "vocab.json", {token: i for i, token in enumerate(TOKENS)})
    (FOLDER / "merges.txt").write_bytes(("#version: 0.2\n" + "\n".join(MERGES) + "\n").encode())
    tokenizer = GPT2Tokenizer(str(FOLDER / "vocab.json"), str(FOLDER / "merges.txt"))
    model.double()

    rng = random.Random(5)
    texts = [passage_with_greedy_word(model, tokenizer, rng) for _ in range(4)]
    texts += [passage(rng, n) for n in (2, 7, 20, 60)]
    words = [
        dict(zip(("context", "continuation"), text.rsplit(" ", 1), strict=True)) for text in texts
    ]
    choices = [
        {
            "query": begin + passage(rng, n),
            "choices": [passage(rng, rng.randrange(1, 12)) for _ in range(2 + n % 3)],
            "gold": n % 2,
        }
        for n in (1, 2, 3, 5, 8, 13, 21, 34)
        for begin in ("", "Question: ")
    ]
    expected: dict[str, list[Score]] = {"words": [], "choices": []}
    for question in words:
        word = " " + question["continuation"]
        expected["words"].append(score(model, tokenizer, question["context"], word))
    for question in choices:
        answer = "\nAnswer:" if question["query"].startswith("Question") else ""
        for choice in question["choices"]:
            context = question["query"] + answer
            expected["choices"].append(score(model, tokenizer, context, " " + choice))
    write_lines(FOLDER / "words.jsonl", words)
    write_lines(FOLDER / "choices.jsonl", choices)
    (FOLDER / "expected.json").write_bytes((json.dumps(expected) + "\n").encode())
    print(sum(greedy for _, _, greedy in expected["words"]), "of", len(words), "words are right")


def write_lines(path: Path, questions: list[dict[str, Any]]) -> None:
    path.write_bytes("".join(json.dumps(question) + "\n" for question in questions).encode())


if __name__ == "__main__":
    main()
