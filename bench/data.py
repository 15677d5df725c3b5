"""How fast texts become a token file, and a token file batches.

    python bench/data.py -m FOLDER [--batch 4 --length 256] TEXT...

MB are a million bytes of text in UTF-8. The peak of the memory is the process's own, without the
pages of the token file that the system keeps for it anyway, where the system tells it (Linux).
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
from minigpt.training.batches import batch
from minigpt.training.token_file import read_header, read_tokens, write_tokens

STEPS = 200  # batches that are timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a file, as `documents` takes it")
    parser.add_argument("-m", "--model", required=True, help="a folder with a tokenizer")
    parser.add_argument("--batch", type=int, default=4, help="rows of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    options = parser.parse_args()

    tokenizer = GPTTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        result = measured(options.texts, tokenizer, Path(folder) / "tokens", options)
    print(json.dumps({**result, "machine": machine()}, indent=2))


def measured(
    texts: list[str], tokenizer: GPTTokenizer, file: Path, options: argparse.Namespace
) -> dict[str, float | None]:
    """Seconds and rates of each step, in the order in which a training takes them."""
    tokenizer.encode("What is compiled, or loaded for a long text, is not timed. " * 10_000)
    start = time.perf_counter()
    text_bytes = sum(len(document.encode("utf-8")) for document in documents(texts))
    read_s = time.perf_counter() - start

    start = time.perf_counter()
    write_tokens(documents(texts), tokenizer, file)
    write_s = time.perf_counter() - start
    peak = peak_bytes()

    start = time.perf_counter()
    tokens = read_tokens(file)
    open_s = time.perf_counter() - start

    start = time.perf_counter()
    for position in range(STEPS):
        batch(tokens, options.batch, options.length, 0, position)
    batch_s = (time.perf_counter() - start) / STEPS

    count = read_header(file).tokens
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
    """The most memory that the process had so far; None where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


if __name__ == "__main__":
    main()
