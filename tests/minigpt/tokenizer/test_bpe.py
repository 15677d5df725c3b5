"""BPE in Python: merges equal those of a naive algorithm, and the memo is bounded."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.tokenizer.bpe import (
    MEMO_MAX_LENGTH,
    MEMO_SIZE,
    Merges,
    PretokenIds,
    _unicode_pretoken,
    byte_symbols,
    merge,
    pretokenize,
    token_bytes,
)


def naive_merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """A naive algorithm: search all pairs, merge all occurrences of the best, repeat."""
    while found := [pair for pair in pairwise(symbols) if pair in ranks]:
        best = min(found, key=ranks.__getitem__)
        merged: list[str] = []
        for symbol in symbols:
            merged.append(symbol)
            # a symbol just merged is longer than best's left part, so it cannot join again
            if tuple(merged[-2:]) == best:
                merged[-2:] = ["".join(best)]
        symbols = merged
    return symbols


@given(st.data())
def test_merge_equals_the_naive_algorithm(data: st.DataObject) -> None:
    """Any merges in any order, also those that no training gives."""
    alphabet = ["a", "b", "c"]
    symbols = list(alphabet)
    for _ in range(data.draw(st.integers(0, 12))):
        parts = data.draw(st.tuples(st.sampled_from(symbols), st.sampled_from(symbols)))
        if "".join(parts) not in symbols and len("".join(parts)) < 9:
            symbols.append("".join(parts))
    pairs = [(a, b) for a in symbols for b in symbols if a + b in symbols]
    ranks = {pair: rank for rank, pair in enumerate(data.draw(st.permutations(pairs)))}
    pretoken = data.draw(st.lists(st.sampled_from(alphabet), max_size=40))

    number = {symbol: i for i, symbol in enumerate(symbols)}
    merges = Merges(
        ranks={number[a] << 32 | number[b]: rank for (a, b), rank in ranks.items()},
        merged=[number[a + b] for a, b in ranks],
    )
    merged = merge([number[symbol] for symbol in pretoken], merges)
    assert [symbols[i] for i in merged] == naive_merge(pretoken, ranks)


@settings(max_examples=300)
@given(st.text(st.sampled_from([*map(chr, range(128)), " ", " ", "'", "s", "\n"])))
def test_pretokens_of_ascii_are_those_of_unicode(text: str) -> None:
    """ASCII texts are split by another pattern, with the same result."""
    assert pretokenize(text) == _unicode_pretoken().findall(text)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_pretokens_concatenate_to_the_text(text: str) -> None:
    assert "".join(pretokenize(text)) == text


def test_byte_symbols_are_distinct_and_no_white_space() -> None:
    symbols = byte_symbols()
    assert len(set(symbols)) == 256
    assert not any(symbol.isspace() for symbol in symbols)
    assert [token_bytes(symbol) for symbol in symbols] == [bytes([b]) for b in range(256)]


def test_the_memo_is_bounded() -> None:
    ids = PretokenIds(list(range(256)), Merges({}, []))
    for number in range(MEMO_SIZE + 10):
        ids[str(number)]
    assert len(ids) == 10
    assert ids["a" * (MEMO_MAX_LENGTH + 1)] == [97] * (MEMO_MAX_LENGTH + 1)
    assert len(ids) == 10
