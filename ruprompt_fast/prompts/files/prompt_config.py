"""What a prompt remembers about the model it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from ruprompt_fast.errors import PromptFileError, shown
from ruprompt_fast.prompts.providers.kv_shape import KVShape

if TYPE_CHECKING:
    from ruprompt_fast.prompts.files.base_model import BaseModel

_TYPES: dict[str, type] = {"embedding_dim": int, "prompt_length": int, "pretrained_model_name": str, "is_safe": bool}
_DEEP_KIND = "prefix_tuning"
_DEEP_SIZES = ("num_layers", "num_key_value_heads", "head_dim")
_DEEP_TYPES: dict[str, type] = {"kind": str, **dict.fromkeys(_DEEP_SIZES, int)}


@dataclass
class PromptConfig:
    """The ``config`` of ``prompt.json``, and what the model is.

    Attributes:
        embedding_dim: width of the rows, whatever they hold; None before initialization.
        prompt_length: number of rows; None before initialization.
        pretrained_model_name: the model that the prompt was made for, a hub id or a path; None before initialization.
        kv_shape: sizes of the keys and values that the rows of a deep prompt hold; None for other prompts.
        base_model: what that model is; None if it is not known. It is beside the ``config`` of ``prompt.json``, in
            which ruPrompts knows its own entries only.
        is_safe: kept for ruPrompts' files, where it is always False.
        extra: further entries of a file, kept when the prompt is saved again.
    """

    embedding_dim: int | None = None
    prompt_length: int | None = None
    pretrained_model_name: str | None = None
    is_safe: bool = False
    kv_shape: KVShape | None = None
    base_model: BaseModel | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def row_width(self) -> int | None:
        """Width of the rows, if it is known."""
        return self.embedding_dim if self.kv_shape is None else self.kv_shape.row_width

    def as_dict(self) -> dict[str, Any]:
        """The entries as stored."""
        return {
            **self.extra,
            "embedding_dim": self.embedding_dim,
            "prompt_length": self.prompt_length,
            "pretrained_model_name": self.pretrained_model_name,
            "is_safe": self.is_safe,
            **self._deep_entries(),
        }

    def _deep_entries(self) -> dict[str, Any]:
        if self.kv_shape is None:
            return {}
        return {"kind": _DEEP_KIND, **{name: getattr(self.kv_shape, name) for name in _DEEP_SIZES}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> PromptConfig:
        """Read the entries.

        Raises:
            PromptFileError: an entry has another type than it should have, or contradicts another one.
        """
        if not isinstance(stored, Mapping):
            raise PromptFileError(f"expected config to be an object; found {type(stored).__name__}.")
        values = _checked(stored, _TYPES)
        kv_shape = None if stored.get("kind") is None else _read_kv_shape(_checked(stored, _DEEP_TYPES))
        known = _TYPES if kv_shape is None else {**_TYPES, **_DEEP_TYPES}
        extra = {name: value for name, value in stored.items() if name not in known}
        if kv_shape is not None and values.get("embedding_dim") not in (None, kv_shape.row_width):
            raise PromptFileError(
                f"expected config.embedding_dim to be {kv_shape.row_width}, the width of a row for {kv_shape}; found "
                f"{values['embedding_dim']}."
            )
        return cls(**values, kv_shape=kv_shape, extra=extra)


def is_size(value: Any) -> TypeGuard[int]:
    """Whether a value of a file is a positive whole number; True and False are none."""
    return type(value) is int and value > 0


def _checked(stored: Mapping[str, Any], types: Mapping[str, type]) -> dict[str, Any]:
    """Those of the entries that have a value."""
    values = {name: stored[name] for name in types if stored.get(name) is not None}
    for name, value in values.items():
        expected = types[name]
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise PromptFileError(f"expected config.{name} to be {expected.__name__}; found {shown(value)}.")
    return values


def _read_kv_shape(deep: dict[str, Any]) -> KVShape:
    kind = deep.pop("kind")
    if kind != _DEEP_KIND or deep.keys() != set(_DEEP_SIZES) or min(deep.values()) < 1:
        raise PromptFileError(
            f"expected a config of embedding rows, or one with kind={_DEEP_KIND!r} and positive {sorted(_DEEP_SIZES)}; "
            f"found kind={shown(kind)} and {shown(deep)}. A newer version may have written it: update this package."
        )
    return KVShape(**deep)
