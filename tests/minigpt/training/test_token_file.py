"""Token files: every id comes back, memory is bounded, and no damaged file is read."""

from __future__ import annotations

import re
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizer import END, byte_tokenizer

from minigpt.errors import CheckpointError, InputError
from minigpt.tokenizer.tokenizer import GPTTokenizer
from minigpt.training import token_file as token_files
from minigpt.training.token_file import read_tokens, write_tokens


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    """A tokenizer of single bytes."""
    return byte_tokenizer(tmp_path_factory.mktemp("toy"))


def test_ids_come_back_as_they_were_written(gpt2: GPTTokenizer, tmp_path: Path) -> None:
    texts = ["Once upon a time.", "", "Ünder\n\n the 海 <|endoftext|>.", " "]
    reported: list[tuple[int, int]] = []
    header = write_tokens(texts, gpt2, tmp_path / "t", lambda *counts: reported.append(counts))
    tokens = read_tokens(tmp_path / "t")
    end = gpt2.eos_token_id
    assert tokens.tolist() == [i for text in texts if text for i in [*gpt2.encode(text), end]]
    text_bytes = len("".join(texts).encode())
    assert header == (50257, len(tokens), text_bytes)
    assert struct.unpack("<3Q", (tmp_path / "t").read_bytes()[8:32]) == header
    assert reported[-1] == (text_bytes, len(tokens))
    assert not tokens.flags.writeable


@pytest.mark.parametrize(("size", "dtype"), [(257, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_ids_take_two_bytes_if_they_can(tmp_path: Path, size: int, dtype: str) -> None:
    tokenizer = byte_tokenizer(tmp_path, size)
    write_tokens(["ab"], tokenizer, tmp_path / "t")
    tokens = read_tokens(tmp_path / "t")
    assert tokens.dtype == np.dtype(dtype)
    assert tokens.tolist() == [*tokenizer.encode("ab"), size - 1]
    assert (tmp_path / "t").stat().st_size == 32 + tokens.nbytes


@pytest.mark.parametrize(("size", "longer"), [(257, 258), (65536, 65537)])
def test_tokens_that_are_named_without_an_id_count_if_they_occur(
    tmp_path: Path, size: int, longer: int
) -> None:
    """The model of such a tokenizer may have no row for its `<pad>`: the vocabulary of its token
    file must not be larger than the model's for a token that is not there."""
    byte_tokenizer(tmp_path, size)
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}', encoding="utf-8")
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.stored_vocab_size, tokenizer.vocab_size) == (size, longer)
    header = write_tokens(["a <pad>"], tokenizer, tmp_path / "t")
    assert header.vocab_size == (size if longer < 65537 else longer)  # else u16 would be read
    assert read_tokens(tmp_path / "t").tolist() == [*tokenizer.encode("a <pad>"), size - 1]
    header = write_tokens(["a<pad>"], tokenizer, tmp_path / "t", allow_special=True)
    assert header.vocab_size == longer
    assert read_tokens(tmp_path / "t").tolist()[1:] == [size, size - 1]


def test_a_document_of_several_chunks_has_the_ids_of_the_whole(
    gpt2: GPTTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"Page {i} of the book,\n\n   and so on. " for i in range(300))
    monkeypatch.setattr(token_files, "_CHUNK", 100)
    write_tokens([text], gpt2, tmp_path / "t")
    assert read_tokens(tmp_path / "t").tolist() == [*gpt2.encode(text), gpt2.eos_token_id]


def test_memory_does_not_grow_with_the_number_of_documents(
    toy: GPTTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 documents of 1 KB, whose ids as a list would take 4 MB, ten at once."""
    monkeypatch.setattr(token_files, "_CHUNK", 10_000)

    def stream() -> Iterator[str]:
        for i in range(500):
            yield f"{i} is a number. " * 64

    write_tokens(stream(), toy, tmp_path / "t")  # loads what long texts need
    tracemalloc.start()
    write_tokens(stream(), toy, tmp_path / "t")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read_tokens(tmp_path / "t")) > 450_000
    assert peak < 300_000


def test_a_file_is_written_whole_or_not_at_all(toy: GPTTokenizer, tmp_path: Path) -> None:
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


def test_a_vocabulary_without_an_end_of_text_token(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"has no {END}")):
        write_tokens(["a"], byte_tokenizer(tmp_path, end="other"), tmp_path / "t")


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
        (token_file()[:-1], "has 37 bytes, and 38 by its header"),
        (token_file() + b"\0", "has 39 bytes"),
        (token_file(tokens=2**64 - 1), "by its header"),
        (token_file(tokens=2**63, ids=b""), "by its header"),
        (token_file(vocab_size=0), "vocabulary of 0"),
        (token_file(vocab_size=2**32 + 1), "vocabulary of 4294967297"),
        (token_file(vocab_size=65537), "and 44 by its header"),
        (token_file(vocab_size=299), "id 299 at 1 is not below 299"),
        (
            token_file(vocab_size=65537, ids=struct.pack("<3I", 0, 1, 2**32 - 1)),
            "id 4294967295 at 2 is not below 65537",
        ),
    ],
)
def test_a_damaged_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_tokens(path)
    assert str(error.value).startswith(f"{path}: ")


def test_the_file_of_the_test_above_is_good_without_its_damage(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(token_file())
    assert read_tokens(tmp_path / "t").tolist() == [0, 299, 7]
    (tmp_path / "t").write_bytes(token_file(tokens=0, ids=b""))
    assert read_tokens(tmp_path / "t").size == 0
    with pytest.raises(CheckpointError, match="no such file"):
        read_tokens(tmp_path / "none")


def test_special_tokens_are_read_on_request(toy: GPTTokenizer, tmp_path: Path) -> None:
    texts = ["a<|endoftext|>b"]
    write_tokens(texts, toy, tmp_path / "plain")
    assert len(read_tokens(tmp_path / "plain")) == len(texts[0]) + 1
    write_tokens(texts, toy, tmp_path / "special", allow_special=True)
    assert read_tokens(tmp_path / "special").tolist() == [
        *toy.encode("a"),
        256,
        *toy.encode("b"),
        256,
    ]
