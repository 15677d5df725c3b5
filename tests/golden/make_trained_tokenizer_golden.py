"""Make trained_tokenizer.json: merges and ids of the tokenizers library.

    python tests/golden/make_trained_tokenizer_golden.py

The file holds texts, the merges that the library's trainer learns from them, the SHA-256 of each
file that minigpt writes for the same texts, and the ids of the texts of tokenizer_ids.json that the
library gives with these files. Needs tokenizers and transformers, which the tests do not.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from minigpt.tokenizer.training import train_tokenizer

HERE = Path(__file__).parent
VOCAB_SIZE = 400
SYLLABLES = ["ba", "lo", "mi", "ne", "tur", "sha", "ing", "o", "é", "ß", "Ж", "中文", "שלום", "ไทย"]
SIGNS = [" ", " ", " ", " ", "  ", "\n", ", ", ". ", "'s ", "'ll ", "!!! ", "— ", " 1", "24", "😀"]


def main() -> None:
    chance = random.Random(5)
    texts = [_text(chance) for _ in range(20)]
    odd = [
        row["text"] for row in json.loads((HERE / "tokenizer_ids.json").read_text(encoding="ascii"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(texts, VOCAB_SIZE).save_pretrained(folder)
        digests = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(folder).iterdir())
        }
        ids = _ids_of_all_readers(Path(folder), odd)
    golden = {
        "texts": texts,
        "vocab_size": VOCAB_SIZE,
        "merges": _library_merges(texts),
        "files": digests,
        "ids": ids,
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in golden.items())
    (HERE / "trained_tokenizer.json").write_text(f"{{\n{lines}\n}}\n", encoding="ascii")


def _text(chance: random.Random) -> str:
    """A text of few syllables, so that many pairs are equally frequent."""
    words = [
        "".join(chance.choices(SYLLABLES, k=chance.randint(1, 3))) + chance.choice(SIGNS)
        for _ in range(100)
    ]
    return "".join(words)


def _library_merges(texts: list[str]) -> list[str]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1,  # <|endoftext|> comes last, and the trainer would put it first
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return [" ".join(merge) for merge in merges]


def _ids_of_all_readers(folder: Path, texts: list[str]) -> list[list[int]]:
    """The ids of each text; asserts that all readers of the folder give the same."""
    single = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pair = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    pair.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pair.add_special_tokens(["<|endoftext|>"])
    transformers = AutoTokenizer.from_pretrained(folder)
    ids: list[list[int]] = [single.encode(text).ids for text in texts]
    for text, expected in zip(texts, ids, strict=True):
        assert pair.encode(text).ids == expected, text
        assert transformers.encode(text) == expected, text
        assert single.decode(expected, skip_special_tokens=False) == text, text
    return ids


if __name__ == "__main__":
    main()
