"""Added and special tokens: found as by the tokenizers library, named as by transformers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from toy_vocabulary import load_json, toy_vocab, write_toy

from minigpt.tokenizer.added_tokens import AddedTokens
from minigpt.tokenizer.bpe import byte_symbols
from minigpt.tokenizer.tokenizer import GPTTokenizer
from minigpt.tokenizer.vocabulary import AddedToken

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "added_tokens.json").read_text(encoding="ascii"))
NAMES = ("content", "special", "single_word", "lstrip", "rstrip", "normalized")
END = "<|endoftext|>"


# ---- in a text ----


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=range(len(GOLDEN["texts"])))
def test_ids_equal_those_of_the_tokenizers_library(tmp_path: Path, case: dict[str, Any]) -> None:
    """Random added tokens that overlap; make_added_tokens_golden.py wrote the ids."""
    tokenizer = load_json(tmp_path, case["tokenizer"])
    for text, plain, special in case["rows"]:
        assert tokenizer.encode(text) == plain, text
        assert tokenizer.encode(text, allow_special=True) == special, text


def split(text: str, *tokens: AddedToken, allow_special: bool = True) -> list[str]:
    """The segments of a text, added tokens in brackets."""
    segments = AddedTokens(tokens).split(text, allow_special)
    return [s if isinstance(s, str) else f"[{s.content}]" for s in segments]


def test_tokens_that_are_not_normalized_come_first() -> None:
    ab, bc = AddedToken("ab", 0, normalized=True), AddedToken("bc", 1)
    assert split("abc ab", ab, bc) == ["a", "[bc]", " ", "[ab]"]


def test_no_token_is_found_inside_a_special_one() -> None:
    b, special = AddedToken("b", 0), AddedToken("abc", 1, special=True)
    assert split("abc b", b, special) == ["[abc]", " ", "[b]"]
    assert split("abc b", b, special, allow_special=False) == ["abc ", "[b]"]


def test_a_match_that_is_no_single_word_hides_shorter_ones() -> None:
    ab, a = AddedToken("ab", 0, single_word=True), AddedToken("a", 1)
    assert split("abc ab a", ab, a) == ["abc ", "[ab]", " ", "[a]"]


def test_many_added_tokens_take_neither_long_nor_much(tmp_path: Path) -> None:
    """A regular expression of so many alternatives takes minutes."""
    began = time.perf_counter()
    tokens = AddedTokens(AddedToken(f"<{number}>", number) for number in range(200_000))
    segments = list(tokens.split("<b>bold</b> <17> <199999> <200000>" * 1000, True))
    assert sum(isinstance(segment, AddedToken) for segment in segments) == 2000
    assert time.perf_counter() - began < 20


# ---- named in the files ----


@pytest.mark.parametrize("case", GOLDEN["named"], ids=range(len(GOLDEN["named"])))
def test_names_and_ids_equal_those_of_transformers(tmp_path: Path, case: dict[str, Any]) -> None:
    """Tokens without an id get the next free ones, in the order of transformers."""
    tokens = [*byte_symbols(), "hi", case["last"]]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh i\n", encoding="utf-8")
    for name, data in case["files"].items():
        (tmp_path / name).write_text(json.dumps(data), encoding="utf-8")
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (case["size"], case["eos"])
    added = {
        str(token.id): [getattr(token, name) for name in NAMES]
        for token in tokenizer._vocabulary.added.values()
    }
    assert added == case["added"]


def bare(folder: Path, **files: Any) -> GPTTokenizer:
    """The toy vocabulary without an end-of-text token, and NAME.json for each NAME=object."""
    write_toy(folder, vocab={token: i for token, i in toy_vocab().items() if token != END}, **files)
    return GPTTokenizer.from_pretrained(folder)


def test_an_end_that_is_named_gets_the_next_free_id(tmp_path: Path) -> None:
    tokenizer = bare(tmp_path, tokenizer_config={"eos_token": END})
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (261, 260)
    assert tokenizer.encode(f"low{END}", allow_special=True) == [257, 260]
    assert tokenizer.decode([257, 260]) == "low"
    tokenizer.save_pretrained(tmp_path / "saved")
    assert GPTTokenizer.from_pretrained(tmp_path / "saved").eos_token_id == 260


def test_a_vocabulary_in_which_no_name_lacks_an_id_is_not_enlarged(tmp_path: Path) -> None:
    """Not even by the defaults of GPT2Tokenizer: the model may have no row for them."""
    tokenizer = bare(tmp_path, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (260, None)
    tokenizer = bare(tmp_path, special_tokens_map={"eos_token": "low"})
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (260, 257)


def test_other_classes_have_no_defaults(tmp_path: Path) -> None:
    """transformers' GPT2Tokenizer would give <|endoftext|> the id 260."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    tokenizer = bare(tmp_path, tokenizer_config=config)
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (261, 260)


def test_names_may_be_empty_or_null(tmp_path: Path) -> None:
    write_toy(tmp_path, tokenizer_config={"eos_token": None, "pad_token": "", "unk_token": END})
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (261, 260)


def test_flags_in_a_file_win_over_a_default(tmp_path: Path) -> None:
    """<|endoftext|> is also what GPT2Tokenizer has as bos_token and unk_token, without flags."""
    write_toy(tmp_path, special_tokens_map={"eos_token": {"content": END, "lstrip": True}})
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode(f"low {END}", allow_special=True) == [257, 260]


def test_flags_of_special_tokens_map(tmp_path: Path) -> None:
    write_toy(tmp_path, special_tokens_map={"mask_token": {"content": "<mask>", "lstrip": True}})
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("low <mask>", allow_special=True) == [257, 261]
    assert tokenizer.encode("low <mask>") == tokenizer.encode("low") + tokenizer.encode(" <mask>")
