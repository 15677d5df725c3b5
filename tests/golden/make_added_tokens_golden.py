"""Make added_tokens.json: vocabularies, and what the tokenizers library and transformers read.

    python tests/golden/make_added_tokens_golden.py

Needs tokenizers and transformers 5, which the tests do not. `texts` are random texts with random
added tokens, and their ids by the tokenizers library; `named` are random names in the files of a
folder, and the special tokens that transformers' GPT2Tokenizer has for them.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer

from minigpt.tokenizer.bpe import byte_symbols

END = "<|endoftext|>"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
PARTS = ("added_tokens", "pre_tokenizer", "decoder", "model")
CORPUS = ["the cat and the other cat went there together, she said, and then they sat there"] * 3
ROLES = ["bos_token", "eos_token", "sep_token", "cls_token", "mask_token"]
POOL = ["</s>", "<s>", "<pad>", "<unk>", "<a>", "<b>", "hi", "<d e>"]


def main() -> None:
    chance = random.Random(13)
    data = {
        "texts": [texts(chance) for _ in range(20)],
        "named": [named(chance) for _ in range(40)],
    }
    lines = (
        f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in data.items()
    )
    file = Path(__file__).with_name("added_tokens.json")
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")


def texts(chance: random.Random) -> dict[str, Any]:
    """A tokenizer.json whose vocabulary lacks most bytes, texts, and their ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=chance.random() < 0.2)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=40, special_tokens=[END], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)

    def word(length: int) -> str:
        return "".join(chance.choices("at  he", k=chance.randint(1, length)))

    for content in sorted({word(4) for _ in range(chance.choice([1, 3, 6]))}):
        token = AddedToken(content, **{flag: chance.random() < 0.35 for flag in FLAGS})
        special = chance.random() < 0.5
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    rows = []
    for _ in range(12):
        text = word(20)
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text).ids
        tokenizer.encode_special_tokens = False
        rows.append([text, plain, tokenizer.encode(text).ids])
    data = json.loads(tokenizer.to_str())
    return {"tokenizer": {name: data[name] for name in PARTS}, "rows": rows}


def named(chance: random.Random) -> dict[str, Any]:
    """Files of a folder that name special tokens, some without an id, and what they are."""

    def flags(content: str) -> dict[str, Any]:
        return {"content": content, **{flag: chance.random() < 0.35 for flag in FLAGS}}

    def value(mark: dict[str, str]) -> object:
        content = chance.choice(POOL)
        return content if chance.random() < 0.6 else {**mark, **flags(content)}

    tokens = [*byte_symbols(), "hi", *chance.sample(["</s>", "<pad>", END, "<unk>"], 1)]
    config: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<new>"}
    for role in chance.sample(ROLES, chance.choice([0, 1, 2])):
        config[role] = value({"__type": "AddedToken"})
    if chance.random() < 0.3:
        key = chance.choice(["extra_special_tokens", "additional_special_tokens"])
        config[key] = chance.sample(POOL, 2)
    elif chance.random() < 0.2:
        config["extra_special_tokens"] = {"user_token": "<user>", "other": chance.choice(POOL)}
    files: dict[str, Any] = {"tokenizer_config.json": config}
    if chance.random() < 0.5:
        files["special_tokens_map.json"] = {
            role: value({}) for role in chance.sample(ROLES, chance.choice([1, 2]))
        }
    kind, new = chance.randrange(3), chance.sample(["<c>", "<y>", "<z>"], 2)
    ids = {token: len(tokens) + number for number, token in enumerate(new)}
    if kind == 0:
        files["added_tokens.json"] = ids
    elif kind == 1:
        config["added_tokens_decoder"] = {
            str(token_id): {**flags(token), "special": True} for token, token_id in ids.items()
        }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocab = {token: token_id for token_id, token in enumerate(tokens)}
        (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\nh i\n", encoding="utf-8")
        for file, data in files.items():
            (folder / file).write_text(json.dumps(data), encoding="utf-8")
        tokenizer = GPT2Tokenizer.from_pretrained(folder)
    added = {
        token_id: [token.content, token.special, *(getattr(token, flag) for flag in FLAGS)]
        for token_id, token in tokenizer.added_tokens_decoder.items()
    }
    return {
        "last": tokens[-1],
        "files": files,
        "size": len(tokenizer),
        "eos": tokenizer.eos_token_id,
        "added": added,
    }


if __name__ == "__main__":
    main()
