"""Speed of tokenizing texts into a token file, and of reading batches from it.

    python bench/data.py -m FOLDER [--batch 4 --length 256] TEXT...

MB are a million bytes of text in UTF-8. Peak memory is the process's resident set, as Linux reports
it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from machine import machine

from minigpt import GPTTokenizer
from minigpt.texts import documents
from minigpt.training.batches import sequences
from minigpt.training.token_file import read_tokens, write_tokens

STEPS = 200  # timed batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a text file, or a .jsonl file")
    parser.add_argument("-m", "--model", required=True, help="a folder with a tokenizer")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    options = parser.parse_args()

    tokenizer = GPTTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        result = measured(options.texts, tokenizer, Path(folder) / "tokens", options)
    print(json.dumps({**result, "machine": machine()}, indent=2))


def measured(
    texts: list[str], tokenizer: GPTTokenizer, file: Path, options: argparse.Namespace
) -> dict[str, float | None]:
    """Seconds and rates of reading, tokenizing, opening the token file, and making batches."""
    # Compiling and loading for long texts is not timed.
    tokenizer.encode("Once upon a time there was a long text. " * 10_000)
    start = time.perf_counter()
    text_bytes = sum(len(document.encode("utf-8")) for document in documents(texts))
    read_s = time.perf_counter() - start

    start = time.perf_counter()
    count = write_tokens(documents(texts), tokenizer, file).tokens
    write_s = time.perf_counter() - start
    peak = peak_bytes()

    start = time.perf_counter()
    tokens = read_tokens(file)
    open_s = time.perf_counter() - start

    start = time.perf_counter()
    for position in range(STEPS):
        sequences(tokens, options.batch, options.length, 0, position * options.batch)
    batch_s = (time.perf_counter() - start) / STEPS

    return {
        "text_bytes": text_bytes,
        "tokens": count,
        "read_mb_per_s": text_bytes / read_s / 1e6,
        "write_s": write_s,
        "write_mb_per_s": text_bytes / write_s / 1e6,
        "write_tokens_per_s": count / write_s,
        "peak_bytes": peak,
        "open_s": open_s,
        "batch_s": batch_s,
        "batch_tokens_per_s": options.batch * options.length / batch_s,
    }


def peak_bytes() -> int | None:
    """The process's peak memory so far; None on systems other than Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


if __name__ == "__main__":
    main()
