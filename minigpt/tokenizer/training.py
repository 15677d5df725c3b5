"""Training of a vocabulary: the merges of byte-level BPE, the most frequent pair first.

    tokenizer = train_tokenizer(texts, vocab_size=8192)
    tokenizer.save_pretrained(folder)

1. The texts are split into pre-tokens as in bpe.py, and equal pre-tokens are counted once.
2. A pre-token is its bytes, each a symbol. All adjacent pairs are counted, each as often as its
   pre-token occurs: "aaa" holds "a a" twice.
3. The most frequent pair becomes a merge, and is replaced everywhere by a new symbol; repeat until
   there are enough merges.

    pre-tokens: low ×5, lower ×2, newest ×6
    w e, 8 times, becomes a symbol:        l o w ×5    l o we r ×2    n e we s t ×6
    l o, 7 times:                          lo w ×5     lo we r ×2     n e we s t ×6
    e we, 6 times, as n e, we s and s t:   lo w ×5     lo we r ×2     n ewe s t ×6

Of equally frequent pairs the one with the lower ids is merged first: the lower left id, then the
lower right one. The ids are the 256 bytes in the order of GPT-2's vocabulary, then the merged
tokens in the order of the merges, then `<|endoftext|>`. So the counts of the pre-tokens alone
determine the merges: neither the order of the texts nor Python's hashing matters. (Texts with more
than MAX_PRETOKENS distinct pre-tokens are the exception: see there.)

A pair that occurs once is not merged. No two merges make the same token: a run of bytes that no
merge has crossed the ends of consists of the same symbols everywhere.

Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (ACL
2016), algorithm 1.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from statistics import median_low

from ..arguments import check_callable, checked_bool, checked_integer, checked_text
from ..errors import InputError, short_repr, warn
from ..texts import cut
from .bpe import Merges, byte_symbols, chunks, pretokenize
from .tokenizer import GPTTokenizer
from .vocabulary import END_OF_TEXT, AddedToken, Vocabulary

MIN_VOCAB_SIZE = 257  # the bytes and the end-of-text token
MAX_VOCAB_SIZE = 0x110000  # a symbol is a character: see `_PairIndex`

# Distinct pre-tokens that are counted: so many take 0.8 GB. 20 MB of English stories have 48
# thousand. Where there are more, the rarer half is dropped, and counted from 0 again: then the
# counts of rare pre-tokens, and the merges they decide, depend on the order of the texts.
MAX_PRETOKENS = 1 << 20
_CHUNK = 1 << 20  # characters that are pre-tokenized at once, which bounds the memory
# Bytes. A longer pre-token, which no language has, is cut into parts of this length: each merge
# within it would read all of it again.
_MAX_PRETOKEN_BYTES = 256

Progress = Callable[[int, int], None]  # called with (merges learned, merges asked for)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    progress: Progress | None = None,
    allow_special: bool = False,
) -> GPTTokenizer:
    """Train a tokenizer on texts.

    texts          read once, one at a time, and cut at each `<|endoftext|>`, which is a token of
                   its own: its letters are not counted
    vocab_size     number of its tokens: the 256 bytes, the merges, and `<|endoftext|>`;
                   MIN_VOCAB_SIZE … MAX_VOCAB_SIZE
    progress       called with (merges learned, merges asked for) after each merge
    allow_special  True where texts with `<|endoftext|>` are meant. Default: a warning says that
                   they are cut, and another one if they then give fewer tokens than `vocab_size`

    Its `save_pretrained` writes files for minigpt, transformers and the tokenizers library. Raises
    InputError for a text that is not a str or holds a lone surrogate, a `vocab_size` out of its
    range, and for texts with too few pairs to make so many tokens.
    """
    vocab_size = checked_integer("vocab_size", vocab_size, MIN_VOCAB_SIZE, MAX_VOCAB_SIZE)
    check_callable("progress", progress)
    allow_special = checked_bool("allow_special", allow_special)
    is_cut = False

    def report_cut() -> None:
        nonlocal is_cut
        if not (is_cut or allow_special):
            warn(
                f"the texts: hold {END_OF_TEXT} and are cut there, as it is a token of its own; "
                "--special (allow_special=True in Python) says that this is meant"
            )
        is_cut = True

    counts = count_pretokens(texts, report_cut)
    merges = learn_merges(counts, vocab_size - MIN_VOCAB_SIZE, progress)
    if len(merges) < vocab_size - MIN_VOCAB_SIZE:
        shortage = (
            f"vocab_size {vocab_size}: more than the texts give: their pairs that occur twice "
            f"make {MIN_VOCAB_SIZE + len(merges)} tokens"
        )
        if allow_special or not is_cut:
            raise InputError(f"{shortage}; ask for no more, or give more text")
        warn(shortage)  # with the letters of the marks there may have been enough
    return GPTTokenizer(_vocabulary(merges))


def count_pretokens(
    texts: Iterable[str], report_cut: Callable[[], None] | None = None
) -> Counter[str]:
    """How often each pre-token occurs in `texts`; the memory does not grow with their number.

    report_cut  called for each text that holds `<|endoftext|>` and is cut there

    Raises InputError for a text that is not a str, or holds a lone surrogate.
    """
    if isinstance(texts, str):
        raise InputError("texts: a str, whose texts are characters; must be several, or [text]")
    if not isinstance(texts, Iterable):
        raise InputError(f"texts {short_repr(texts)}: must be several texts", "texts")
    counts: Counter[str] = Counter()
    for number, text in enumerate(texts):
        text = checked_text(f"texts[{number}]", text)
        if report_cut and END_OF_TEXT in text:
            report_cut()
        for part in cut(text, END_OF_TEXT):
            for chunk in chunks(part, _CHUNK):
                counts.update(pretokenize(chunk))
                if len(counts) > MAX_PRETOKENS:
                    counts = _without_rarer_half(counts)
    return counts


def learn_merges(
    counts: dict[str, int], number: int, progress: Progress | None = None
) -> list[tuple[str, str]]:
    """The first `number` merges, or fewer where the pairs run out.

    counts  {pre-token: how often it occurs}

    A merge is two tokens, left and right, in byte symbols. The ids are 0 to 255 for the bytes, and
    then one for each merge, in order.
    """
    tokens = byte_tokens()
    index = _PairIndex(counts)
    merges: list[tuple[str, str]] = []
    while len(merges) < number and (pair := index.pop_most_frequent()):
        index.merge(pair, chr(len(tokens)))
        left, right = (tokens[ord(symbol)] for symbol in pair)
        tokens.append(left + right)
        merges.append((left, right))
        if progress:
            progress(len(merges), number)
    return merges


def byte_tokens() -> list[str]:
    """The tokens of single bytes in the order of their ids, which is GPT-2's."""
    return sorted(byte_symbols())


class _PairIndex:
    """Pre-tokens as symbols, and for each pair how often it occurs, and where.

    A symbol is the character whose code point is its id; a pre-token is a str of them, and a pair a
    str of two. So merging a pair is `str.replace`, which goes from left to right like GPT-2's
    encoder, and pairs compare like their ids.

    Every merge makes a new symbol, so all pairs with a symbol come into being at once, and only get
    rarer from then on. A frequency in the heap may be outdated, but is never too low.

    pretokens  the pre-tokens as they are after the merges so far
    counts     how often each of them occurs
    frequency  {pair: how often it occurs in all texts}
    positions  {pair: indices of the pre-tokens in which it came into being}
    heap       (−frequency when pushed, pair): the most frequent first, of equals the lowest
    """

    def __init__(self, counts: dict[str, int]) -> None:
        self.pretokens: list[str] = []
        self.counts: list[int] = []
        self.frequency: defaultdict[str, int] = defaultdict(int)
        self.positions: defaultdict[str, list[int]] = defaultdict(list)
        for pretoken, count in counts.items():
            for symbols in _as_symbols(pretoken):
                for pair in _pairs(symbols):
                    self.frequency[pair] += count
                    self.positions[pair].append(len(self.pretokens))
                self.pretokens.append(symbols)
                self.counts.append(count)
        self.heap = [(-frequency, pair) for pair, frequency in self.frequency.items()]
        heapify(self.heap)

    def pop_most_frequent(self) -> str | None:
        """Take the most frequent pair out of the heap; None where no pair occurs twice."""
        while self.heap:
            negated, pair = heappop(self.heap)
            frequency = self.frequency[pair]
            if frequency == -negated and frequency > 1:
                return pair
            if frequency > 1:
                heappush(self.heap, (-frequency, pair))
        return None

    def merge(self, pair: str, symbol: str) -> None:
        """Replace `pair` by the new `symbol` in all pre-tokens."""
        new_pairs: set[str] = set()
        for i in self.positions.pop(pair):
            pretoken, count = self.pretokens[i], self.counts[i]
            if pair not in pretoken:
                continue  # another merge took one of its symbols, or the pre-token is listed twice
            self.pretokens[i] = pretoken.replace(pair, symbol)
            # only the pairs between the first occurrence and the last, and beside them, change
            part = pretoken[max(pretoken.find(pair) - 1, 0) : pretoken.rfind(pair) + 3]
            for old in _pairs(part):
                self.frequency[old] -= count
            for new in _pairs(part.replace(pair, symbol)):
                self.frequency[new] += count
                if symbol in new:
                    self.positions[new].append(i)
                    new_pairs.add(new)
        for new in new_pairs:
            heappush(self.heap, (-self.frequency[new], new))


def _pairs(symbols: str) -> list[str]:
    return [symbols[i : i + 2] for i in range(len(symbols) - 1)]


_BYTE_IDS = bytes(map(byte_tokens().index, byte_symbols()))  # byte → its id


def _as_symbols(pretoken: str) -> list[str]:
    """The bytes of a pre-token as symbols, in parts of at most _MAX_PRETOKEN_BYTES: mostly one."""
    symbols = pretoken.encode("utf-8").translate(_BYTE_IDS).decode("latin-1")
    size = _MAX_PRETOKEN_BYTES
    return [symbols[i : i + size] for i in range(0, len(symbols), size)]


# ---- texts ----


def _without_rarer_half(counts: Counter[str]) -> Counter[str]:
    median = median_low(counts.values())
    return Counter({pretoken: count for pretoken, count in counts.items() if count > median})


# ---- files ----


def _vocabulary(merges: list[tuple[str, str]]) -> Vocabulary:
    """The vocabulary that `files.read_vocabulary` reads from the files of these merges."""
    tokens = [*byte_tokens(), *(left + right for left, right in merges), END_OF_TEXT]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    end = AddedToken(END_OF_TEXT, ids[END_OF_TEXT], special=True)
    return Vocabulary(
        tokens=tokens,
        byte_ids=list(_BYTE_IDS),
        merges=Merges(
            ranks={ids[left] << 32 | ids[right]: rank for rank, (left, right) in enumerate(merges)},
            merged=[ids[left + right] for left, right in merges],
        ),
        added={END_OF_TEXT: end},
        stored_size=len(tokens),
        eos_id=end.id,
        add_prefix_space=False,
        files=_files(ids, merges),
    )


def _files(ids: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, bytes]:
    """{name: content} of the files of this vocabulary.

    vocab.json and merges.txt are GPT-2's own files, which everything reads; tokenizer.json says the
    same to the tokenizers library; tokenizer_config.json tells transformers the class.
    """
    plain = {token: token_id for token, token_id in ids.items() if token != END_OF_TEXT}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end = {"id": ids[END_OF_TEXT], "content": END_OF_TEXT, "special": True}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [end],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": plain, "merges": [" ".join(merge) for merge in merges]},
    }
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    }
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    return {
        "vocab.json": _json(ids),
        "merges.txt": "".join(f"{line}\n" for line in lines).encode(),
        "tokenizer_config.json": _json(config),
        "tokenizer.json": _json(tokenizer),
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
