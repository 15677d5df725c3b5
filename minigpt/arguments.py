"""Checks of arguments, one wording for each kind.

`checked_x(name, value, …)` returns the value as a plain Python or NumPy type, or raises InputError
with one line: `name value: must be …`. Compiled kernels read memory unchecked, so every integer
that becomes an index or a size passes through here first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .errors import InputError, short_repr
from .kernels.layout import IGNORED

if TYPE_CHECKING:
    from .config import GPTConfig

Choice = TypeVar("Choice", bound=str)


def is_integer(value: object) -> bool:
    """Whether `value` is a Python or NumPy integer; True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_float(value: object) -> float:
    """A Python or NumPy number as a float; NaN, which is in no range, for anything else."""
    if not (is_integer(value) or isinstance(value, float | np.floating)):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf


def checked_integer(
    name: str, value: object, least: int, most: int | None = None, what: str = ""
) -> int:
    """An integer from `least` to `most`.

    what  explains the upper bound in the message: "the context"
    """
    if is_integer(value):
        number = int(value)  # type: ignore[call-overload]
        if least <= number and (most is None or number <= most):
            return number
    bounds = f"from {least}" if most is None else f"from {least} to {most}"
    raise InputError(
        f"{name} {short_repr(value)}: must be an integer {bounds}" + (f", {what}" if what else "")
    )


def checked_number(name: str, value: object, allowed: str, low: float, high: float) -> float:
    """A finite number from `low` to `high`, both included.

    allowed  the range in words, for the message: "a number of at least 0". An open end is the next
             float: `math.nextafter(0, 1)` for "above 0"
    """
    number = as_float(value)
    if low <= number <= high and math.isfinite(number):
        return number
    raise InputError(f"{name} {short_repr(value)}: must be {allowed}")


def checked_choice(name: str, value: object, choices: Sequence[Choice]) -> Choice:
    """One of some strings."""
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    raise InputError(f"{name} {short_repr(value)}: must be one of {', '.join(choices)}")


# ---- ids and targets -------------------------------------------------------------------------


def is_list_of_prompts(ids: object) -> bool:
    """Whether `ids` is a list whose items are sequences themselves, and not one flat prompt."""
    return isinstance(ids, list | tuple) and any(
        isinstance(item, list | tuple) or (isinstance(item, np.ndarray) and item.ndim)
        for item in ids
    )


def checked_prompts(ids: Any, config: GPTConfig) -> list[np.ndarray]:
    """`ids`, integers [B, T], [T] or a list of B prompts [T_i], as int64 arrays [T_i].

    Every prompt has 1 to n_positions tokens, and every id is below vocab_size.
    """
    if is_list_of_prompts(ids):
        return [checked_prompt(item, config, f"ids[{i}]") for i, item in enumerate(ids)]
    if isinstance(ids, np.ndarray) and ids.ndim == 2:
        if len(ids) == 0:
            raise InputError("ids: no sequences in it; give at least one")
        return [checked_prompt(row, config, f"ids[{i}]") for i, row in enumerate(ids)]
    return [checked_prompt(ids, config)]


def checked_prompt(ids: Any, config: GPTConfig, name: str = "ids") -> np.ndarray:
    """`ids`, integers [T] with 1 ≤ T ≤ n_positions, every one below vocab_size, as int64 [T]."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(
                f"{name}: {ids.dtype} of shape {list(ids.shape)}; must be integers [T] or [B, T]"
            )
    elif not isinstance(ids, list | tuple):
        raise InputError(f"{name}: {type(ids).__name__}; must be an array or a list of integers")
    elif not all(map(is_integer, ids)):
        wrong = next(item for item in ids if not is_integer(item))
        raise InputError(f"{name}: holds a {type(wrong).__name__}; must hold integers only")
    if len(ids) == 0:
        raise InputError(f"{name}: empty; a prompt needs at least one token")
    if len(ids) > config.n_positions:
        raise InputError(
            f"{name}: {len(ids)} tokens, where this model's context is {config.n_positions}; "
            "shorten the prompt"
        )
    for extreme in (min(ids), max(ids)):
        if not 0 <= extreme < config.vocab_size:
            raise InputError(
                f"{name}: {short_repr(int(extreme))} is not a token; "
                f"they go from 0 to {config.vocab_size - 1}"
            )
    return np.array(ids, np.int64)


def checked_batch(ids: Any, config: GPTConfig) -> np.ndarray:
    """`ids`, integers [B, T] or [T], as int64 [B, T]; rows of unequal length are an error."""
    prompts = checked_prompts(ids, config)
    lengths = {len(prompt) for prompt in prompts}
    if len(lengths) > 1:
        raise InputError(
            f"ids: rows of {min(lengths)} to {max(lengths)} tokens; must all be of one length"
        )
    return np.stack(prompts)


def checked_targets(
    targets: Any, shape: tuple[int, ...], config: GPTConfig
) -> tuple[np.ndarray, int]:
    """`targets` as int64 of the ids' shape [B, T], and the number of them that are not -100."""
    try:
        array = np.asarray(targets)
    except ValueError:  # rows of unequal length
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
                f"targets: {short_repr(int(extreme))} is no token and not {IGNORED}; "
                f"tokens go from 0 to {config.vocab_size - 1}"
            )
    return array.astype(np.int64), int(counts.sum())
