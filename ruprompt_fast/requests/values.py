"""Readers of settings: each returns a value as plain Python, or refuses it with the setting's name.

Tensors, arrays and NumPy's scalars are read as the numbers and lists that they hold. Everything has bounds: a number
must be one that can be computed with, a list may have as many entries as can have a meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from ruprompt_fast.errors import SettingError, shown
from ruprompt_fast.integration.context_length import UNBOUNDED_CONTEXT

LARGEST_INT = 2**63 - 1
"""The largest integer of an int64 tensor."""

LARGEST_BIAS = 1e20
"""The largest number that is added to a score; a few of them, scaled by a penalty, still fit float32."""

MOST_STOP_STRINGS = 256
MOST_STOP_CHARS = 1024
MOST_ENDS = 128
"""Maximum number of end-of-text tokens: each makes beam search keep one more candidate of every beam."""

_LEAST_SEQUENCE_IDS = 1 << 16
_DEEPEST = 3
_LISTS = (list, tuple, set, frozenset, range)


@dataclass(frozen=True)
class Limits:
    """What settings may ask of a model.

    Attributes:
        vocab_size: token ids that have a score.
        context: positions of the model.
    """

    vocab_size: int = LARGEST_INT
    context: int = UNBOUNDED_CONTEXT


Reader: TypeAlias = Callable[[str, Any, Limits], Any]
"""Takes a setting's name, its value, which is not None, and the limits; returns the value as plain Python.

Raises:
    SettingError: the value cannot work.
"""

Bound: TypeAlias = int | Callable[[Limits], int]


def plain(value: Any) -> Any:
    """The number or list in a tensor, an array or a NumPy scalar; anything else as it is."""
    if not isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value
    size = value.numel() if isinstance(value, Tensor) else value.size
    if size > _LEAST_SEQUENCE_IDS:
        return value
    try:
        return value.tolist()
    except (RuntimeError, TypeError, ValueError):  # no data, as on the device "meta", or not dense
        return value


def is_int(value: object) -> bool:
    """Whether this is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def integer(least: int = -LARGEST_INT - 1, most: Bound = LARGEST_INT) -> Reader:
    """A reader of integers within bounds."""

    def read(name: str, value: Any, limits: Limits) -> int:
        found, largest = plain(value), most if isinstance(most, int) else most(limits)
        if not is_int(found) or not least <= found <= largest:
            lower = f" of at least {least}" if least > -LARGEST_INT - 1 else ""
            upper = f" and at most {largest}" if lower else f" of at most {largest}"
            raise SettingError(f"{name} must be an integer{lower}{upper}; found {shown(value)}.")
        return int(found)

    return read


def number(fits: Callable[[float], bool] = lambda value: True, expected: str = "a number") -> Reader:
    """A reader of floats.

    Args:
        fits: whether a number can work.
        expected: describes such numbers, for the message.
    """

    def read(name: str, value: Any, limits: Limits) -> float:
        found = as_float(plain(value))
        if found is None or not fits(found):
            raise SettingError(f"{name} must be {expected}; found {shown(value)}.")
        return found

    return read


def as_float(value: object) -> float | None:
    """The number as a float; None if it is not a number, or an integer too large for a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def flag(name: str, value: Any, limits: Limits) -> bool:
    """A bool."""
    found = plain(value)
    if not isinstance(found, int) or found not in (0, 1):
        raise SettingError(f"{name} must be True or False; found {shown(value)}.")
    return bool(found)


def one_of(*choices: str | bool) -> Reader:
    """A reader of one of these values."""

    def read(name: str, value: Any, limits: Limits) -> Any:
        if not isinstance(value, (str, bool)) or value not in choices:
            expected = ", ".join(map(repr, choices))
            raise SettingError(f"{name} must be one of {expected}; found {shown(value)}.")
        return value

    return read


def listed(name: str, value: Any, most: int, expected: str) -> list[Any]:
    """The entries of a list, a tuple, a set, a range, or a one-dimensional tensor or array."""
    found = plain(value)
    if not isinstance(found, _LISTS):
        raise SettingError(f"{name} must be {expected}; found {shown(value)}.")
    if len(found) > most:
        raise SettingError(f"{name} may have at most {most} entries; found {len(found)}. Leave some out.")
    return list(found)


def tokens(*, most: Bound = lambda limits: limits.vocab_size, scored: bool = False) -> Reader:
    """A reader of a token id or a list of them.

    Args:
        most: maximum number of ids.
        scored: whether each id needs a score; ids that are only compared with generated ones may be any int64.
    """

    def read(name: str, value: Any, limits: Limits) -> list[int]:
        found = plain(value)
        entries = [found] if is_int(found) else found
        expected = "a token id or a list of them"
        largest = most if isinstance(most, int) else most(limits)
        found = [_token_id(name, entry, limits, scored) for entry in listed(name, entries, largest, expected)]
        return list(dict.fromkeys(found))

    return read


def token(name: str, value: Any, limits: Limits) -> int:
    """One token id that has a score."""
    return _token_id(name, value, limits, scored=True)


def _token_id(name: str, value: Any, limits: Limits, scored: bool) -> int:
    found = plain(value)
    if not is_int(found) or not 0 <= found <= LARGEST_INT:
        raise SettingError(f"{name} must hold token ids, integers of at least 0; found {shown(value)}.")
    if scored and found >= limits.vocab_size:
        raise SettingError(f"{name} must hold token ids below {limits.vocab_size}; found {found}.")
    return int(found)


def strings(name: str, value: Any, limits: Limits) -> list[str]:
    """A string, or a list of strings."""
    entries = [value] if isinstance(value, str) else value
    found = listed(name, entries, MOST_STOP_STRINGS, "a string or a list of strings")
    for text in found:
        if not isinstance(text, str):
            raise SettingError(f"{name} must be a string or a list of strings; found {shown(value)}.")
        if len(text) > MOST_STOP_CHARS:
            raise SettingError(f"a string of {name} may have {MOST_STOP_CHARS} characters; found {len(text)}.")
    return found


def _sequence(name: str, value: Any, limits: Limits) -> tuple[int, ...]:
    entries = listed(name, value, limits.context, "lists of token ids")
    if not entries:
        raise SettingError(f"{name} must not hold an empty sequence of token ids.")
    return tuple(_token_id(name, entry, limits, scored=True) for entry in entries)


def _check_total(name: str, sequences: list[tuple[int, ...]], limits: Limits) -> None:
    most, total = max(limits.vocab_size, _LEAST_SEQUENCE_IDS), sum(map(len, sequences))
    if total > most:
        raise SettingError(f"{name} may hold at most {most} token ids, all together; found {total}.")


def sequences(name: str, value: Any, limits: Limits) -> list[list[int]]:
    """A list of lists of token ids."""
    expected = "a list of lists of token ids, with one at least"
    entries = listed(name, value, max(limits.vocab_size, _LEAST_SEQUENCE_IDS), expected)
    if not entries:
        raise SettingError(f"{name} must be {expected}; found {shown(value)}.")
    found = [_sequence(name, entry, limits) for entry in entries]
    _check_total(name, found, limits)
    return [list(sequence) for sequence in found]


def is_bias(value: float) -> bool:
    """Whether this can be added to a score."""
    return value <= LARGEST_BIAS  # false for NaN, true for minus infinity


_BIAS = f"a number of at most {LARGEST_BIAS:g}"


def sequence_biases(name: str, value: Any, limits: Limits) -> dict[tuple[int, ...], float]:
    """A dict from tuples of token ids to numbers, or a list of [ids, number]."""
    expected = "a dict from tuples of token ids to numbers, or a list of [ids, number]"
    pairs = [[key, bias] for key, bias in value.items()] if isinstance(value, Mapping) else value
    entries = listed(name, pairs, max(limits.vocab_size, _LEAST_SEQUENCE_IDS), expected)
    if not all(isinstance(entry, (list, tuple)) and len(entry) == 2 for entry in entries):
        raise SettingError(f"{name} must be {expected}; found {shown(value)}.")
    bias = number(is_bias, f"from sequences of token ids to {_BIAS} each")
    found = {_sequence(name, entry[0], limits): bias(name, entry[1], limits) for entry in entries}
    _check_total(name, list(found), limits)
    return found


def logit_biases(name: str, value: Any, limits: Limits) -> dict[int, float]:
    """A dict from token ids to numbers."""
    if not isinstance(value, Mapping):
        raise SettingError(f"{name} must be a dict from token ids to numbers; found {shown(value)}.")
    if len(value) > limits.vocab_size:
        raise SettingError(f"{name} may have at most {limits.vocab_size} entries; found {len(value)}.")
    bias = number(is_bias, f"a dict from token ids to {_BIAS} each")
    return {token(name, key, limits): bias(name, entry, limits) for key, entry in value.items()}


def decay(name: str, value: Any, limits: Limits) -> tuple[int, float]:
    """A pair of a number of tokens and a factor."""
    expected = "(start, factor), an integer of at least 0 and a number above 0"
    found = listed(name, value, 2, expected) if not isinstance(value, (set, frozenset)) else []
    factor = as_float(plain(found[1])) if len(found) == 2 else None
    if factor is None or not 0 < factor < math.inf:
        raise SettingError(f"{name} must be {expected}; found {shown(value)}.")
    return integer(0)(f"the start of {name}", found[0], limits), factor


def unsupported(*neutral: Any) -> Reader:
    """A reader of settings that must be neutral: one of the given values, or one that counts as false."""

    def read(name: str, value: Any, limits: Limits) -> Any:
        found = plain(value)
        is_plain = isinstance(found, (bool, int, float, str, list, tuple, dict))
        if not is_plain or (found and found not in neutral):
            raise SettingError(f"the generation setting {name}={shown(value)} is not supported; leave it out.")
        return found if isinstance(found, (int, float)) else None

    return read


def opaque(name: str, value: Any, limits: Limits) -> Any:
    """A setting that only transformers knows: a plain value of modest size, as in configuration files."""
    try:
        return _copied(plain(value), _DEEPEST)
    except ValueError:
        raise SettingError(
            f"{name} must be a bool, a finite number, a short string, or a short list or dict of these; found "
            f"{shown(value)}."
        ) from None


def _copied(value: Any, depth: int) -> Any:
    """A copy of a plain value; ``ValueError`` for anything else."""
    if value is None or (isinstance(value, str) and len(value) <= MOST_STOP_CHARS):
        return value
    if isinstance(value, (bool, int)) and -LARGEST_INT <= value <= LARGEST_INT:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if depth and isinstance(value, (list, tuple)) and len(value) <= MOST_STOP_CHARS:
        return [_copied(entry, depth - 1) for entry in value]
    if depth and isinstance(value, Mapping) and len(value) <= MOST_STOP_CHARS:
        return {_copied(key, 0): _copied(entry, depth - 1) for key, entry in value.items()}
    raise ValueError
