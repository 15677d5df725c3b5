"""Tokenizer files: found, read into a Vocabulary, and written back.

`tokenizer.json` is read if present; else `vocab.json` and `merges.txt`; else the same two under
OpenAI's names, `encoder.json` and `vocab.bpe`; and beside any of them `added_tokens.json`,
`special_tokens_map.json` and `tokenizer_config.json`. One of these files may be named in place of
its folder. A GGUF file holds a tokenizer of its own.
What they say is parsed and checked in parsing.py. `chat_template.jinja` is kept with them, unread.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import errors
from ..checkpoint import files as checkpoint_files
from ..checkpoint import strict_json, write_file
from ..checkpoint.files import read_small_file
from ..checkpoint.gguf_parts import is_gguf
from ..errors import SourceError, TokenizerError
from ..kernels import events
from . import bpe, json_fields, parsing, special_tokens, token_ids, tokenizer_json, vocabulary
from .bpe import Merges
from .disk_cache import load_or_build
from .parsing import parse_files
from .vocabulary import AddedToken, Vocabulary

if TYPE_CHECKING:
    from ..checkpoint.gguf import GGUF

MAX_FILE_BYTES = 64 << 20  # GPT-2's files have one million, the largest known 20

_FORMS = (  # of vocabulary and merges; the first that is present is read
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
)
_SIDE_FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
CHAT_TEMPLATE = "chat_template.jinja"
_FILE_NAMES = ("tokenizer.json", "vocab.json", "merges.txt", *_SIDE_FILES, CHAT_TEMPLATE)
# {name of a file: name it is saved under}
_SAVED_AS = {
    **{name: name for name in _FILE_NAMES},
    "encoder.json": "vocab.json",
    "vocab.bpe": "merges.txt",
}

# The modules that a cached vocabulary depends on: the parser, what it imports, and this one.
_PARSER_MODULES = (
    *(parsing, tokenizer_json, special_tokens, token_ids, json_fields, vocabulary, bpe),
    *(strict_json, checkpoint_files, errors, events),
)
PARSER_CODE = (__name__, *(module.__name__ for module in _PARSER_MODULES))


def read_vocabulary(source: Path | GGUF) -> Vocabulary:
    """The checked vocabulary of a folder's tokenizer files, or of a GGUF file or its parsed header.

    source  may be one of the files: tokenizer.json, under any name that ends in .json, vocab.json
            or merges.txt

    A large one that was read before comes from the disk cache. Raises TokenizerError, naming the
    file, for one that is missing, damaged, too large, or of another kind than GPT-2's.
    """
    folder, form, files = _read_files(source)
    plain = load_or_build(
        "vocabularies", PARSER_CODE, files, lambda: _to_plain(parse_files(folder, form, files))
    )
    saved = {_SAVED_AS.get(name, "tokenizer.json"): data for name, data in files.items()}
    return _from_plain(plain, saved)


def _to_plain(vocabulary: Vocabulary) -> tuple[Any, ...]:
    """The fields of a vocabulary but `files`, in lists, tuples and dicts, for the disk cache."""
    return (
        vocabulary.tokens,
        vocabulary.byte_ids,
        vocabulary.merges.ranks,
        vocabulary.merges.merged,
        [tuple(vars(token).values()) for token in vocabulary.added.values()],
        vocabulary.stored_size,
        vocabulary.eos_id,
        vocabulary.add_prefix_space,
    )


def _from_plain(plain: tuple[Any, ...], files: dict[str, bytes]) -> Vocabulary:
    tokens, byte_ids, ranks, merged, added, stored_size, eos_id, add_prefix_space = plain
    return Vocabulary(
        tokens=tokens,
        byte_ids=byte_ids,
        merges=Merges(ranks, merged),
        added={content: AddedToken(content, *rest) for content, *rest in added},
        stored_size=stored_size,
        eos_id=eos_id,
        add_prefix_space=add_prefix_space,
        files=files,
    )


def tokenizer_files(source: Path | GGUF) -> dict[str, bytes]:
    """{name: content} of the tokenizer files of a model source, under the names they are saved as.

    They are not checked. For a GGUF file: the files with the same content. Raises SourceError for
    one that cannot be read.
    """
    if not isinstance(source, Path) or source.is_file():
        from ..checkpoint.gguf_gpt2 import gguf_tokenizer

        return gguf_tokenizer(source)
    files: dict[str, bytes] = {}
    for name, saved_as in _SAVED_AS.items():
        if saved_as not in files and (source / name).is_file():
            files[saved_as] = read_small_file(source / name, MAX_FILE_BYTES, SourceError)
    return files


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Write the files that `vocabulary` was read from into `folder`, byte for byte.

    OpenAI's file names become Hugging Face's. Each file is replaced atomically. Raises
    TokenizerError where the folder cannot be written, or holds files of another tokenizer beside
    which these would mean something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TokenizerError(f"{folder}: cannot be written: {error.strerror}") from None
    foreign = _names_in(folder).intersection(_FILE_NAMES) - vocabulary.files.keys()
    if foreign:
        raise TokenizerError(
            f"{folder}: holds {min(foreign)} of another tokenizer: save into a fresh folder"
        )
    for name, data in vocabulary.files.items():
        write_file(folder / name, data)


def _names_in(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise TokenizerError(f"{folder}: cannot be read: {error.strerror}") from None


def _read_files(source: Path | GGUF) -> tuple[Path, tuple[str, ...], dict[str, bytes]]:
    """(folder, form, {name: content}): where the files are, the names of those with vocabulary and
    merges, and all that are present.

    For a GGUF file, the files with the same content, as if they were in a folder of its name.
    """
    if not isinstance(source, Path) or (source.is_file() and is_gguf(source)):
        path = source if isinstance(source, Path) else source.file.path
        files = tokenizer_files(source)
        if not files:
            raise TokenizerError(
                f"{path}: holds no tokenizer; name a source that has one with --tokenizer"
            )
        return path, ("vocab.json", "merges.txt"), files
    folder = source.parent if source.is_file() else source
    present = _names_in(folder)
    form = _named_form(source) if source.is_file() else _first_form(source, present)
    if form[-1] not in present:
        raise TokenizerError(f"{folder}: holds {form[0]}, but no {form[-1]}")
    names = [*form, *(name for name in (*_SIDE_FILES, CHAT_TEMPLATE) if name in present)]
    return (
        folder,
        form,
        {name: read_small_file(folder / name, MAX_FILE_BYTES, TokenizerError) for name in names},
    )


def _first_form(folder: Path, present: set[str]) -> tuple[str, ...]:
    """The names of the files with vocabulary and merges, of those that are `present`."""
    form = next((form for form in _FORMS if form[0] in present), None)
    if form is None:
        raise TokenizerError(
            f"{folder}: holds no tokenizer, neither tokenizer.json nor vocab.json and merges.txt; "
            "name a source that has one with --tokenizer"
        )
    return form


def _named_form(file: Path) -> tuple[str, ...]:
    """The names of the files with vocabulary and merges, of which `file` is one."""
    form = next((form for form in _FORMS if file.name in form), None)
    if form is None and file.suffix.lower() != ".json":
        raise TokenizerError(
            f"{file}: is no file of a tokenizer; name its folder, or a tokenizer.json in it"
        )
    return form or (file.name,)
