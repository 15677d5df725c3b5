"""The bundled model: it ships with the package, is small, and predicts stories well."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt import GPTModel, GPTTokenizer
from minigpt.bundled import BUNDLED_MODEL
from minigpt.evaluation.perplexity import perplexity

# Mrs. Molesworth, "The Cuckoo Clock" (1877), which is not in its training data
UNSEEN = (
    "Griselda obediently wished her aunts good-night, and went quietly upstairs. But once out of "
    "sight, at the first landing, she changed her pace. She turned to the left instead of to the "
    "right, which led to her own room, and flew rather than ran along the dimly-lighted passage, "
    "at the end of which a door led into the great saloon. She opened the door. All was quite "
    "dark. It was impossible to fly or run across the great saloon! Even in daylight this would "
    "have been a difficult matter. Griselda felt her way as best she could, past the Chinese "
    "cabinet and the pot-pourri jar, till she got to the ante-room door. It was open, and now, "
    "knowing her way better, she hurried in. But what was the use? All was silent, save the "
    "tick-tick of the cuckoo clock in the corner."
)


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return GPTModel.from_pretrained()


@pytest.fixture(scope="module")
def tokenizer() -> GPTTokenizer:
    return GPTTokenizer.from_pretrained()


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in BUNDLED_MODEL.iterdir()) < 12e6


def test_setup_cfg_lists_its_files() -> None:
    setup = (Path(__file__).resolve().parents[2] / "setup.cfg").read_text(encoding="utf-8")
    assert f"{BUNDLED_MODEL.name}/*" in setup


def test_it_is_int8_and_fits_its_tokenizer(model: GPTModel, tokenizer: GPTTokenizer) -> None:
    assert model.dtype == "int8"
    assert model.config.vocab_size == tokenizer.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_it_predicts_an_unseen_story(model: GPTModel, tokenizer: GPTTokenizer) -> None:
    """A model of single letters needs more than two bits per byte."""
    found = perplexity(model, tokenizer.encode(UNSEEN), len(UNSEEN.encode()))
    assert found.bits_per_byte < 1.6


def test_it_writes_words(model: GPTModel, tokenizer: GPTTokenizer) -> None:
    """Function words are frequent in any English text."""
    ids = tokenizer.encode("Once upon a time there was a little girl", return_tensors="np")
    text = tokenizer.decode(model.generate(ids, max_new_tokens=60, temperature=0.7, seed=1)[0])
    words = text.lower().replace(",", " ").replace(".", " ").split()
    common = {"the", "and", "a", "to", "of", "was", "in", "he", "she", "it", "that", "her", "his"}
    assert len(words) > 30
    assert sum(word in common for word in words) > len(words) / 6
