"""Speed of encoding against tiktoken and gigatoken, in one run.

    python bench/encoding.py FOLDER TEXT... [--pairs 9] [--json FILE]

FOLDER holds GPT-2's vocabulary, or is a model with it; the first 3 MB of the texts are encoded.
Needs tiktoken, which gets the same vocabulary and must give the same ids. minigpt and tiktoken
alternate in pairs of runs, one thread each. Printed are the median speeds and the median ratio of
the pairs, which is above 1 where minigpt is faster.

Where gigatoken and tokenizers are installed, gigatoken is a second peer. Both it and minigpt are
faster the second time that they see a text, so the first call is timed by itself: with the code of
minigpt loaded by another text, and no word of this one in a memo. Batches of documents use all
threads that each engine takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from machine import machine

from minigpt import GPTTokenizer
from minigpt.tokenizer.bpe import token_bytes
from minigpt.tokenizer.files import read_vocabulary
from minigpt.tokenizer.tokenizer import COMPILED_FROM

SIZE = 3_000_000  # bytes of text
DOCUMENT = 2_000  # characters of a short text
# tiktoken's pattern: its possessive quantifiers are a third faster than the published pattern.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
Call = Callable[[], Any]


def prose(files: Iterable[str]) -> str:
    """The first SIZE bytes of the concatenated files."""
    data = b""
    for file in files:
        data += Path(file).read_bytes()
        if len(data) >= SIZE:
            break
    return data[:SIZE].decode("utf-8", errors="ignore")


def same_vocabulary(folder: str) -> Any:
    """tiktoken with the vocabulary in `folder`; it takes ids for ranks, which holds for GPT-2."""
    import tiktoken

    vocabulary = read_vocabulary(Path(folder))
    ranks = {
        token_bytes(token): token_id
        for token_id, token in enumerate(vocabulary.tokens)
        if token not in vocabulary.added
    }
    return tiktoken.Encoding("same", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def gigatoken_of(folder: str) -> Any:
    """gigatoken with the vocabulary in `folder`."""
    import gigatoken
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = read_vocabulary(Path(folder))
    ids = {token: i for i, token in enumerate(vocabulary.tokens) if token not in vocabulary.added}
    token_of = {i: token for token, i in ids.items()}
    pairs = sorted(vocabulary.merges.ranks, key=vocabulary.merges.ranks.__getitem__)
    merges = [(token_of[pair >> 32], token_of[pair & 0xFFFFFFFF]) for pair in pairs]
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return gigatoken.Tokenizer(tokenizer)


def loaded(folder: str) -> GPTTokenizer:
    """Our tokenizer, with its compiled code in use, and no words but one in its memo."""
    tokenizer = GPTTokenizer.from_pretrained(folder)
    tokenizer.encode("a " * COMPILED_FROM)
    return tokenizer


def first_calls(folder: str, text: str, size: int, count: int) -> dict[str, Any]:
    """The MB/s of the first call of new tokenizers, as `compare` gives them."""
    times = []
    for _ in range(count):
        ours, theirs = loaded(folder), gigatoken_of(folder)
        our_time = seconds(partial(ours.encode, text, return_tensors="np"))
        times.append((our_time, seconds(partial(theirs.encode, text))))
    return summary("first call, to an array", size, times, "gigatoken")


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(
    what: str, size: int, ours: Call, theirs: Call, count: int, peer: str = "tiktoken"
) -> dict[str, Any]:
    """The MB/s of both, measured in alternation, and printed as a line of the table."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(count)]
    return summary(what, size, times, peer)


def summary(what: str, size: int, times: list[tuple[float, float]], peer: str) -> dict[str, Any]:
    """The median speeds and ratio of pairs of seconds."""
    speeds = [size / statistics.median(t) / 1e6 for t in zip(*times, strict=True)]
    ratio = statistics.median(b / a for a, b in times)
    print(f"{what:<36}{speeds[0]:>8.1f}{speeds[1]:>10.1f}{ratio:>8.2f}   {peer}")
    mb_per_s = dict(zip(("minigpt", peer), speeds, strict=True))
    return {"what": what, "mb_per_s": mb_per_s, "ratio": {peer: ratio}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("text", nargs="+")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not find_spec("tiktoken"):
        sys.exit('tiktoken is not installed: pip install -e ".[bench]"')
    ours, theirs = GPTTokenizer.from_pretrained(options.folder), same_vocabulary(options.folder)
    text = prose(options.text)
    if ours.encode(text) != theirs.encode_ordinary(text):
        sys.exit("the ids differ")
    documents = [text[i : i + DOCUMENT] for i in range(0, len(text), DOCUMENT)]
    size = len(text.encode())

    print(f"{size / 1e6:.1f} MB; MB/s{'':<24}{'ours':>8}{'peer':>10}{'ratio':>8}")
    calls: dict[str, tuple[Call, Call]] = {
        "to a list": (lambda: ours.encode(text), lambda: theirs.encode_ordinary(text)),
        "to an array": (
            lambda: ours.encode(text, return_tensors="np"),
            lambda: theirs.encode_to_numpy(text, disallowed_special=()),
        ),
        f"documents of {DOCUMENT:,} characters": (
            lambda: [ours.encode(document) for document in documents],
            lambda: [theirs.encode_ordinary(document) for document in documents],
        ),
    }
    results = [compare(what, size, *both, options.pairs) for what, both in calls.items()]
    if find_spec("gigatoken") and find_spec("tokenizers"):
        fast = gigatoken_of(options.folder)
        if fast.encode(text).tolist() != ours.encode(text):
            sys.exit("the ids differ from gigatoken's")
        results.append(first_calls(options.folder, text, size, options.pairs))
        calls = {
            "later calls, to an array": (
                lambda: ours.encode(text, return_tensors="np"),
                lambda: fast.encode(text),
            ),
            f"encode_batch, {DOCUMENT:,} characters each": (
                lambda: ours.encode_batch(documents, return_tensors="np"),
                lambda: fast.encode_batch(documents),
            ),
            "the same, one thread": (
                lambda: ours.encode_batch(documents, return_tensors="np", threads=1),
                lambda: fast.encode_batch(documents, parallel=False),
            ),
        }
        results += [
            compare(what, size, *both, options.pairs, "gigatoken") for what, both in calls.items()
        ]
    if options.json:
        report = {"machine": machine(), "bytes": size, "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
