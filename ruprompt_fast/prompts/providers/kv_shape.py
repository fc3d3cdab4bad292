"""The sizes of a model's keys and values, and how the rows of a deep prompt hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ruprompt_fast.errors import PromptMismatchError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class KVShape:
    """What equal attention layers keep of a token: a key [num_key_value_heads, head_dim] and a value each.

    Attributes:
        num_layers: how many layers.
        num_key_value_heads: heads of keys and values.
        head_dim: width of a key.
        value_dim: width of a value; None where it is that of a key.
    """

    num_layers: int
    num_key_value_heads: int
    head_dim: int
    value_dim: int | None = None

    @property
    def value_width(self) -> int:
        """Width of a value."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def row_width(self) -> int:
        """Numbers that a token takes in all the layers: those of one row of a deep prompt."""
        return self.num_layers * self.num_key_value_heads * (self.head_dim + self.value_width)

    def split(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer, each [rows, num_key_value_heads, head_dim], as views with their graph.

        Args:
            rows: [rows, row_width] in PEFT's layout of prefix tuning: by layer, key before value.
        """
        parts = rows.unflatten(1, (self.num_layers, 2, self.num_key_value_heads, self.head_dim))
        return [(layer[:, 0], layer[:, 1]) for layer in parts.unbind(1)]

    def __str__(self) -> str:
        return f"{self.num_layers} layers of {self.num_key_value_heads} heads of {self.head_dim}"


def kv_shape_of(config: PretrainedConfig) -> KVShape:
    """The sizes that a model's config gives.

    Raises:
        UnsupportedModelError: an encoder-decoder, a model whose layers differ, or one without attention heads.
    """
    if config.is_encoder_decoder:
        raise _unsupported(config, "is an encoder-decoder model")
    text = config.get_text_config()
    if getattr(text, "is_heterogeneous", False):
        raise _unsupported(config, "gives some layers sizes of their own")
    other = set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES
    if other:
        raise _unsupported(config, f"has layers of type {', '.join(sorted(other))}")
    heads = getattr(text, "num_attention_heads", None)
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None)
    if head_dim is None and isinstance(heads, int) and heads:
        head_dim = text.hidden_size // heads
    sizes: list[Any] = [text.num_hidden_layers, kv_heads, head_dim]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise _unsupported(config, f"has {sizes} as layers, heads and width of a head")
    return KVShape(*sizes)


def check_kv_shape(shape: KVShape, config: PretrainedConfig, name: str = "the deep prompt") -> None:
    """Refuse a deep prompt that is for a model of other sizes.

    Args:
        shape: the prompt's.
        config: the model's config.
        name: the prompt, for the message.

    Raises:
        UnsupportedModelError: the model takes no deep prompt, see :func:`kv_shape_of`.
        PromptMismatchError: the sizes differ.
    """
    needed = kv_shape_of(config)
    if shape != needed:
        raise PromptMismatchError(
            f"{name} has keys and values of {shape}; this model has {needed}. Load the model that it was made for, or "
            "train a prompt for this one."
        )


def _unsupported(config: PretrainedConfig, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        "a deep prompt needs a decoder whose layers all keep keys and values of one number of heads and one width; "
        f"{config.model_type} {what}. Use TensorPromptProvider for it."
    )
