"""Checks of arguments: one function and one wording for each kind of argument.

`checked_x(name, value, …)` returns the value as a plain Python or NumPy type, or raises InputError
with one line, `name value: must be …`, and the name as its `argument`. Compiled kernels do not
check bounds, so every integer that becomes an index or a size passes through here first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import InputError, MinigptError, short_repr
from .kernels.events import CompilerError
from .kernels.layout import IGNORED
from .processors import available_processors

if TYPE_CHECKING:
    from .config import GPTConfig

MAX_THREADS = 256
MAX_INT64 = 2**63 - 1
MAX_INTEGER = 2**53 - 1  # every JSON reader returns integers up to here exactly

Choice = TypeVar("Choice", bound=str)


def is_integer(value: object) -> TypeGuard[int | np.integer[Any]]:
    """Whether `value` is a Python or NumPy integer; True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_float(value: object) -> float:
    """A Python or NumPy number as a float; NaN, which is in no range, for anything else."""
    if not (is_integer(value) or isinstance(value, float | np.floating)):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int beyond the largest float
        return math.inf if value > 0 else -math.inf


def checked_integer(
    name: str, value: object, minimum: int, maximum: int | None = None, what: str = ""
) -> int:
    """An integer from `minimum` to `maximum`, or of any size from `minimum` where that is None.

    what  ends the message, as an explanation of the range: "the context", "or None"
    """
    if is_integer(value):
        number = int(value)
        if minimum <= number and (maximum is None or number <= maximum):
            return number
    bounds = f"from {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    explanation = f", {what}" if what else ""
    raise InputError(f"{name} {short_repr(value)}: must be an integer {bounds}{explanation}", name)


def checked_number(name: str, value: object, allowed: str, minimum: float, maximum: float) -> float:
    """A finite number from `minimum` to `maximum`, both included.

    allowed  the range in words, for the message: "a number of at least 0". For an open end pass
             the next float: `math.nextafter(0, 1)` for "above 0"
    """
    number = as_float(value)
    if minimum <= number <= maximum and math.isfinite(number):
        return number
    raise InputError(f"{name} {short_repr(value)}: must be {allowed}", name)


def checked_choice(name: str, value: object, choices: Sequence[Choice]) -> Choice:
    """One of the strings in `choices`."""
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    raise InputError(f"{name} {short_repr(value)}: must be one of {', '.join(choices)}", name)


def checked_strings(name: str, value: object) -> list[str]:
    """A string or a list of strings, none of them empty, as a list."""
    if not isinstance(value, str | list | tuple):
        raise InputError(
            f"{name}: {type(value).__name__}; must be a string or a list of strings", name
        )
    strings = [value] if isinstance(value, str) else list(value)
    for item in strings:
        if not isinstance(item, str) or not item:
            raise InputError(
                f"{name} {short_repr(item)}: must be a string of at least one character", name
            )
    return strings


def checked_text(name: str, value: object) -> str:
    """A str that UTF-8 can encode: one without a lone surrogate."""
    if not isinstance(value, str):
        raise InputError(f"{name}: {type(value).__name__}; must be a str", name)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: has {value[error.start]!a}, a lone surrogate, at {error.start}; "
            "must consist of characters",
            name,
        ) from None
    return value


def checked_count(name: str, value: object, minimum: int) -> int:
    """An integer from `minimum` to MAX_INTEGER; only an error about the maximum names it."""
    number = checked_integer(name, value, minimum)
    return number if number <= MAX_INTEGER else checked_integer(name, value, minimum, MAX_INTEGER)


def checked_bool(name: str, value: object) -> bool:
    """True or False, of Python or NumPy."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"{name} {short_repr(value)}: must be True or False", name)


def check_callable(name: str, value: object) -> None:
    """Raises InputError for a callback that is neither None nor a function."""
    if value is not None and not callable(value):
        raise InputError(f"{name} {short_repr(value)}: must be a function or None", name)


def check_kind(name: str, value: object, kind: str, *attributes: str) -> None:
    """Raises InputError unless `value` has the attributes that are used of a `kind`: "a GPTModel".

    A class itself is refused, whose attributes are those of no object.
    """
    if isinstance(value, type) or not all(hasattr(value, each) for each in attributes):
        raise InputError(f"{name} {short_repr(value)}: must be {kind}", name)


def check_model(name: str, value: object) -> None:
    """Raises InputError for anything but a GPTModel."""
    check_kind(name, value, "a GPTModel", "engine", "config")


def check_tokenizer(name: str, value: object) -> None:
    """Raises InputError for anything but a GPTTokenizer."""
    check_kind(name, value, "a GPTTokenizer", "vocab_size", "stream_decoder")


def checked_folder(folder: object) -> Path:
    """The path of a folder to write; raises InputError for anything that is not a path."""
    path = _as_path(folder)
    if not path:
        raise InputError(f"folder {short_repr(folder)}: must be the path of a folder", "folder")
    return Path(path)


def checked_file_name(name: str, file: object) -> str:
    """The name of one file, a str or os.PathLike, as a str."""
    path = _as_path(file)
    if not path:
        raise InputError(f"{name} {short_repr(file)}: must be a file name", name)
    return path


def checked_file_names(name: str, files: object) -> list[str]:
    """The names of a file or of a list of files, at least one."""
    if _as_path(files):
        return [checked_file_name(name, files)]
    if not isinstance(files, Sequence) or files == "":
        raise InputError(
            f"{name}: {type(files).__name__}; must be a file name or a list of file names", name
        )
    if not files:
        raise InputError(f"{name}: none; give at least one file", name)
    return [checked_file_name(name, file) for file in files]


def _as_path(value: object) -> str:
    """A str or os.PathLike as a str; "" for anything else."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    return path if isinstance(path, str) else ""


def checked_threads(threads: object) -> int:
    """The number of threads: `threads`, or one for each processor of this process for None.

    Raises MinigptError where no thread could compute, because kernels cannot be compiled.
    """
    from .kernels.jit import check_compiler  # here: what needs no kernels should load no Numba

    try:
        check_compiler()
    except CompilerError as error:
        raise MinigptError(str(error)) from error
    if threads is None:
        return min(MAX_THREADS, available_processors())
    return checked_integer("threads", threads, 1, MAX_THREADS)


# ---- ids and targets -------------------------------------------------------------------------


def checked_token_ids(name: str, value: object, vocab_size: int) -> tuple[int, ...]:
    """A token id, or several, each below `vocab_size`; each once, in their order."""
    if isinstance(value, np.ndarray):
        value = value.ravel()
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        value = [value]
    ids: dict[int, None] = {}
    for token_id in value:
        if not (is_integer(token_id) and 0 <= int(token_id) < vocab_size):
            raise InputError(
                f"{name} {short_repr(token_id)}: must be an integer from 0 to {vocab_size - 1}, "
                "several of these, or None",
                name,
            )
        ids[int(token_id)] = None
    return tuple(ids)


def checked_ids(ids: Any, vocab_size: int | None) -> npt.NDArray[np.int64]:
    """`ids`, flat integers of any number below `vocab_size`, as int64 [T].

    ids         a sequence, an array, or an iterator, which is read to its end
    vocab_size  None for any integers from 0 on; those beyond int64 become its largest
    """
    if isinstance(ids, Iterable) and not isinstance(ids, Sequence | np.ndarray | Mapping | Set):
        ids = list(ids)
    try:
        array = _as_array(ids)
    except (ValueError, OverflowError, TypeError):  # ragged, or no numbers at all
        raise InputError("ids: must be a flat sequence of integers") from None
    if vocab_size is None and array.dtype.kind == "O" and all(map(is_integer, array.flat)):
        array = np.array([min(max(i, -1), MAX_INT64) for i in array.flat]).reshape(array.shape)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(
            f"ids: {array.dtype} of shape {list(array.shape)}; must be a flat sequence of integers"
        )
    for extreme in (int(array.min()), int(array.max())) if array.size else ():
        if extreme < 0 or (vocab_size is not None and extreme >= vocab_size):
            allowed = "on" if vocab_size is None else f"to {vocab_size - 1}"
            raise InputError(f"ids: {extreme} is not a token; ids go from 0 {allowed}")
    if array.dtype == np.uint64:
        array = np.minimum(array, np.uint64(MAX_INT64))
    return array.astype(np.int64)


def _as_array(values: Any) -> np.ndarray:
    """`values` as np.asarray gives them, but integers of mixed NumPy types as integers.

    NumPy promotes int8 beside uint64 to float64. Raises ValueError for masked arrays, of which it
    drops the mask.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError("a masked array")
    array = np.asarray(values)
    if array.dtype.kind == "f" and isinstance(values, list | tuple):
        objects = np.array(values, object)
        if objects.size and all(map(is_integer, objects.flat)):
            flat = [int(value) for value in objects.flat]
            dtype = np.int64 if max(flat) < 2**63 else object
            return np.array(flat, dtype).reshape(objects.shape)
    return array


def gathered(ids: Any, name: str = "ids") -> Any:
    """`ids` as an array, a list or a tuple: these unchanged, iterators and other sequences read.

    A masked array is refused, of which NumPy drops the mask.
    """
    items = ids if isinstance(ids, list | tuple) else [ids]
    if any(isinstance(item, np.ma.MaskedArray) for item in items):
        raise InputError(f"{name}: a masked array; take its compressed() or filled() numbers")
    if isinstance(ids, list | tuple | np.generic):
        return ids
    if hasattr(ids, "__array__"):  # an array, or a tensor of another library
        try:
            return np.asarray(ids)
        except (TypeError, ValueError, RuntimeError) as error:  # on a GPU, for instance
            raise InputError(f"{name}: {type(ids).__name__}: is no array: {error}") from None
    if isinstance(ids, Iterable) and not isinstance(ids, str | bytes | bytearray | Mapping | Set):
        return list(ids)
    return ids


def is_list_of_prompts(ids: object) -> bool:
    """Whether `ids` is a list of sequences rather than one flat prompt."""
    return isinstance(ids, list | tuple) and any(map(_is_sequence, ids))


def _is_sequence(item: object) -> bool:
    """Whether an item of a list is a prompt of its own, not an id of a flat prompt."""
    if isinstance(item, str | bytes | np.generic) or not isinstance(item, Iterable):
        return False
    return getattr(item, "ndim", 1) > 0


def checked_prompts(ids: Any, config: GPTConfig, minimum: int = 1) -> list[np.ndarray]:
    """`ids`, integers [B, T], [T] or a list of B prompts [T_i], as int64 arrays [T_i].

    Every prompt has `minimum` to n_positions tokens, and every id is below vocab_size.
    """
    ids = gathered(ids)
    if is_list_of_prompts(ids) or (isinstance(ids, np.ndarray) and ids.ndim == 2):
        if len(ids) == 0:
            raise InputError("ids: no sequences in it; give at least one")
        return [checked_prompt(item, config, minimum, f"ids[{i}]") for i, item in enumerate(ids)]
    return [checked_prompt(ids, config, minimum)]


def checked_prompt(ids: Any, config: GPTConfig, minimum: int = 1, name: str = "ids") -> np.ndarray:
    """`ids`, integers [T], as int64 [T]; `minimum` ≤ T ≤ n_positions, every id below vocab_size."""
    ids = gathered(ids)
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InputError(
                f"{name}: {ids.dtype} of shape {list(ids.shape)}; must be integers [T] or [B, T]"
            )
    elif not isinstance(ids, list | tuple):
        raise InputError(f"{name}: {type(ids).__name__}; must be an array or a list of integers")
    elif not all(map(is_integer, ids)):
        wrong = next(item for item in ids if not is_integer(item))
        raise InputError(f"{name}: holds a {type(wrong).__name__}; must hold integers only")
    else:
        ids = list(map(int, ids))  # plain ones, which compare as they count
    if len(ids) < minimum:
        raise InputError(f"{name}: empty; must have at least one token")
    if len(ids) > config.n_positions:
        raise InputError(
            f"{name}: {len(ids)} tokens, where this model's context is {config.n_positions}; "
            "shorten the prompt"
        )
    for extreme in (min(ids), max(ids)) if len(ids) else ():
        if not 0 <= extreme < config.vocab_size:
            raise InputError(
                f"{name}: {short_repr(int(extreme))} is not a token; "
                f"ids go from 0 to {config.vocab_size - 1}"
            )
    return np.array(ids, np.int64)


def checked_batch(ids: Any, config: GPTConfig) -> np.ndarray:
    """`ids`, integers [B, T] or [T], as int64 [B, T]; sequences of unequal length are an error."""
    prompts = checked_prompts(ids, config)
    lengths = {len(prompt) for prompt in prompts}
    if len(lengths) > 1:
        raise InputError(
            f"ids: sequences of {min(lengths)} to {max(lengths)} tokens; must all have one length"
        )
    return np.stack(prompts)


def checked_targets(
    targets: Any, shape: tuple[int, ...], config: GPTConfig
) -> tuple[np.ndarray, int]:
    """`targets` as int64 of the ids' shape [B, T], and the number of them that are not -100."""
    targets = gathered(targets, "targets")
    try:
        array = _as_array(targets)
    except ValueError:  # sequences of unequal length
        raise InputError(f"targets: ragged; must be of the ids' shape, {list(shape)}") from None
    if array.dtype.kind not in "iu":
        raise InputError(f"targets: {array.dtype}; must be integers of the shape {list(shape)}")
    if array.ndim == 1:
        array = array[None]
    if array.shape != shape:
        raise InputError(f"targets: shape {list(array.shape)}; must be the ids', {list(shape)}")
    counts = array != IGNORED
    if not counts.any():
        raise InputError(f"targets: all are {IGNORED}; at least one must be a token")
    for extreme in (array[counts].min(), array[counts].max()):
        if not 0 <= extreme < config.vocab_size:
            raise InputError(
                f"targets: {short_repr(int(extreme))} is neither a token nor {IGNORED}; "
                f"tokens go from 0 to {config.vocab_size - 1}"
            )
    return array.astype(np.int64), int(counts.sum())
