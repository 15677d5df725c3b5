"""Learning a vocabulary from texts: the merges of byte-level BPE, the most frequent pair first.

    tokenizer = train_tokenizer(texts, vocab_size=8192)
    tokenizer.save_pretrained(folder)

1. The texts are split into words as bpe.py does, and equal words are counted once.
2. A word is its bytes, each a symbol. All pairs of neighbours are counted, over all words, each
   as often as its word occurs: "aaa" holds "a a" twice.
3. The most frequent pair becomes a merge, and its two symbols become one, everywhere; again,
   until there are enough.

    words: low ×5, lower ×2, newest ×6
    w e, 8 times, becomes a symbol:   l o w ×5    l o we r ×2    n e we s t ×6
    l o, 7 times:                     lo w ×5     lo we r ×2     n e we s t ×6
    e we, 6 times, as n e, we s, s t: lo w ×5     lo we r ×2     n ewe s t ×6

Of equally frequent pairs the one with the lower ids comes first: the lower left id, then the
lower right one. A token's id is its age, the 256 bytes in the order of GPT-2's vocabulary before
all, `<|endoftext|>` after all. So the merges follow from the counts of the words alone: neither
the order of the texts nor Python's hashing matters. (Texts of more than MOST_WORDS different words
are the exception: see there.)

A pair that occurs once is no pattern, and is not merged. No two merges make the same token: where
none has crossed the ends of a run of bytes, it stands in the same symbols as everywhere else.

Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units" (ACL
2016), algorithm 1.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from statistics import median_low

from ..arguments import is_integer
from ..errors import InputError, short_repr
from .bpe import Merges, byte_symbols, pieces, words
from .tokenizer import GPTTokenizer
from .vocabulary import END_OF_TEXT, AddedToken, Vocabulary

SMALLEST = 257  # the bytes and the end of text
LARGEST = 0x110000  # as many symbols as there are characters: see `_PairIndex`

# Different words; so many take 0.8 GB. 20 MB of English stories have 48 thousand. Where there are
# more, the rarer half is forgotten, and counted anew from there: then the counts of rare words, and
# merges that hang on these, depend on the order of the texts.
MOST_WORDS = 1 << 20
_STRETCH = 1 << 20  # characters that are split at once, which bounds the memory their words take
# Bytes. A longer word, which is no word of any language, is learned from in pieces of this length:
# as a whole it would be read again for each merge within it.
_LONGEST = 256

Progress = Callable[[int, int], None]  # (merges learned, merges asked for)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, progress: Progress | None = None
) -> GPTTokenizer:
    """A tokenizer of `vocab_size` ids, learned from `texts`, which are read once, one by one.

    `save_pretrained` writes it as the files that this package, transformers and the tokenizers
    library read. A `<|endoftext|>` in a text is text like any other.

    Raises InputError for a text that is no str or holds a lone surrogate, a `vocab_size` outside
    SMALLEST … LARGEST, and for texts with too few pairs to make so many tokens.
    """
    if not is_integer(vocab_size) or not SMALLEST <= vocab_size <= LARGEST:
        raise InputError(
            f"vocab_size: {short_repr(vocab_size)}; must be an integer from {SMALLEST}, the 256 "
            f"bytes and {END_OF_TEXT}, to {LARGEST}"
        )
    merges = learn_merges(count_words(texts), vocab_size - SMALLEST, progress)
    if len(merges) < vocab_size - SMALLEST:
        raise InputError(
            f"vocab_size: {vocab_size} is more than the texts give: their pairs that occur twice "
            f"make {SMALLEST + len(merges)} tokens; ask for no more, or give more text"
        )
    return GPTTokenizer(_vocabulary(merges))


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs in `texts`; the memory does not grow with their number.

    Raises InputError for a text that is no str, or holds a lone surrogate.
    """
    if isinstance(texts, str):
        raise InputError("texts: a str, whose texts are characters; must be several, or [text]")
    counts: Counter[str] = Counter()
    for number, text in enumerate(texts):
        _check_text(text, number)
        for stretch in pieces(text, _STRETCH):
            counts.update(words(stretch))
            if len(counts) > MOST_WORDS:
                counts = _without_rarer_half(counts)
    return counts


def learn_merges(
    counts: dict[str, int], number: int, progress: Progress | None = None
) -> list[tuple[str, str]]:
    """The first `number` merges that `counts`, word → how often it occurs, give; fewer at its end.

    A merge is two tokens, left and right, in byte symbols. The ids of tokens are those of the
    bytes, 0 to 255, and then one for each merge, in their order.
    """
    tokens = byte_tokens()
    index = _PairIndex(counts)
    merges: list[tuple[str, str]] = []
    while len(merges) < number and (pair := index.pop_most_frequent()):
        index.join(pair, chr(len(tokens)))
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
    """Words as symbols, and their pairs: how often each occurs, and where.

    A symbol is the character whose code is its id; a word is a str of them, and a pair a str of
    two. So to merge a word is its `replace`, which goes from left to right like GPT-2's encoder,
    and pairs compare as their ids do.

    A symbol is always new when pairs are joined to it: all pairs that hold it come about at once,
    and from then on get rarer only. What the heap says of a pair may be too much, never too little.

    words      the words as they stand
    times      how often each of them occurs
    frequency  pair → how often it occurs in all texts
    places     pair → the numbers of the words in which it came about
    heap       (−frequency as it once was, pair): the most frequent first, of equals the lowest
    """

    def __init__(self, counts: dict[str, int]) -> None:
        self.words: list[str] = []
        self.times: list[int] = []
        self.frequency: defaultdict[str, int] = defaultdict(int)
        self.places: defaultdict[str, list[int]] = defaultdict(list)
        for word, times in counts.items():
            for piece in _as_symbols(word):
                for pair in _pairs(piece):
                    self.frequency[pair] += times
                    self.places[pair].append(len(self.words))
                self.words.append(piece)
                self.times.append(times)
        self.heap = [(-frequency, pair) for pair, frequency in self.frequency.items()]
        heapify(self.heap)

    def pop_most_frequent(self) -> str | None:
        """Takes the most frequent pair out of the heap; None where no pair occurs twice."""
        while self.heap:
            noted, pair = heappop(self.heap)
            frequency = self.frequency[pair]
            if frequency == -noted and frequency > 1:
                return pair
            if frequency > 1:
                heappush(self.heap, (-frequency, pair))
        return None

    def join(self, pair: str, symbol: str) -> None:
        """Puts the new `symbol` wherever `pair` stands."""
        made: set[str] = set()
        for i in self.places.pop(pair):
            word, times = self.words[i], self.times[i]
            if pair not in word:
                continue  # another merge took a part of it, or the word is noted twice
            self.words[i] = word.replace(pair, symbol)
            # only what stands there changes, and the pairs with its neighbours
            part = word[max(word.find(pair) - 1, 0) : word.rfind(pair) + 3]
            for old in _pairs(part):
                self.frequency[old] -= times
            for new in _pairs(part.replace(pair, symbol)):
                self.frequency[new] += times
                if symbol in new:
                    self.places[new].append(i)
                    made.add(new)
        for new in made:
            heappush(self.heap, (-self.frequency[new], new))


def _pairs(word: str) -> list[str]:
    return [word[i : i + 2] for i in range(len(word) - 1)]


_BYTE_IDS = bytes(map(byte_tokens().index, byte_symbols()))  # byte → its id


def _as_symbols(word: str) -> list[str]:
    """The bytes of a word, each as the character whose code is its id; mostly in one piece."""
    symbols = word.encode("utf-8").translate(_BYTE_IDS).decode("latin-1")
    return [symbols[i : i + _LONGEST] for i in range(0, len(symbols), _LONGEST)]


# ---- texts ----


def _without_rarer_half(counts: Counter[str]) -> Counter[str]:
    middle = median_low(counts.values())
    return Counter({word: count for word, count in counts.items() if count > middle})


def _check_text(text: str, number: int) -> None:
    if not isinstance(text, str):
        raise InputError(f"texts: number {number} is {type(text).__name__}; must be a str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"texts: number {number} holds {text[error.start]!a}, a lone surrogate, at "
            f"{error.start}: text must be made of characters"
        ) from None


# ---- files ----


def _vocabulary(merges: list[tuple[str, str]]) -> Vocabulary:
    """What `vocabulary.read_vocabulary` finds in the files that hold these merges."""
    tokens = [*byte_tokens(), *(left + right for left, right in merges), END_OF_TEXT]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    end = AddedToken(END_OF_TEXT, ids[END_OF_TEXT], special=True)
    return Vocabulary(
        tokens=tokens,
        byte_ids=list(_BYTE_IDS),
        merges=Merges(
            ranks={ids[left] << 32 | ids[right]: rank for rank, (left, right) in enumerate(merges)},
            joined=[ids[left + right] for left, right in merges],
        ),
        added={END_OF_TEXT: end},
        eos_id=end.id,
        add_prefix_space=False,
        files=_files(ids, merges),
    )


def _files(ids: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, bytes]:
    """The files of this vocabulary by name, each of which says the same.

    GPT-2's own pair, which everything reads; what makes transformers take it for GPT-2's kind; and
    the one file that the tokenizers library reads.
    """
    plain = {token: token_id for token, token_id in ids.items() if token != END_OF_TEXT}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end = {"id": ids[END_OF_TEXT], "content": END_OF_TEXT, "special": True}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    whole = {
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
        "tokenizer.json": _json(whole),
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
