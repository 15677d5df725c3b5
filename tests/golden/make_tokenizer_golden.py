"""Make tokenizer_ids.json: texts and the ids that OpenAI's tiktoken gives them.

    python tests/golden/make_tokenizer_golden.py FOLDER

FOLDER holds OpenAI's encoder.json and vocab.bpe. Needs tiktoken, which the tests do not. Run it
again only to add texts: the ids of a text never change.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

# Only old characters of Unicode: whether a newer one is a letter depends on the Unicode version of
# a library, and so do the pre-tokens.
PARTS = [
    *[
        "a",
        "B",
        "the",
        " the",
        "ing",
        "é",
        "ß",
        "ſ",
        "İ",
        "Ж",
        "שלום",
        "中",
        "文字",
        "한국어",
        "ไทย",
    ],
    *["1", "23", "2024", "½", "٣", "Ⅷ", "²", "!", "?!", "...", "—", "#", "_", "\\", '"', "€"],
    *["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "''", "'"],
    *[" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\x85", "\x0b"],
    *["\0", "\x1c", "\x1f", "\x7f", "\u200b", "\u0301", "\ufeff", "\ufffd", "\ufffe", "\U0010ffff"],
    *[
        "😀",
        "👍🏽",
        "👩‍👩‍👧",
        "🇩🇪",
        "<|endoftext|>",
        "http://x.org/?q=1",
        "def f(x):",
        "    return",
    ],
]
TEXTS = [
    "",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "I've said it's John's, they'll say we're wrong; DON'T!",
    "  leading, trailing  ",
    "for i in range(10):\n    if i % 2:\n        print(i)\n\n\n",
    "a" * 300,
    " " * 300,
    " " * 299 + "x",
    "\n" * 100,
    "ab" * 150,
    "0123456789" * 20,
    "!?" * 100,
    "😀" * 50,
    "".join(map(chr, range(0x180))),
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
]


def main(folder: Path) -> None:
    encoding = tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(
            str(folder / "vocab.bpe"), str(folder / "encoder.json")
        ),
        special_tokens={"<|endoftext|>": 50256},
    )
    chance = random.Random(2)
    texts = [*TEXTS, *("".join(chance.choices(PARTS, k=30)) for _ in range(100))]
    texts.append("".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=1000)))
    table = [{"text": text, "ids": encoding.encode_ordinary(text)} for text in texts]
    lines = ",\n".join(json.dumps(row) for row in table)
    Path(__file__).with_name("tokenizer_ids.json").write_text(f"[\n{lines}\n]\n", encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
