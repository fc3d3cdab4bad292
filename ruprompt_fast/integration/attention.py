"""The attention function that transformers' modules call while the engine or the trainer runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from ruprompt_fast.errors import AttentionError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# transformers reads a meaning into names that contain flash, sdpa, flex_attention or "paged|".
NAME = "ruprompt_fast"

# What is different in a model's configs while ours runs.
_OURS = {"_attn_implementation_internal": NAME, "pad_token_id": None}

# Arguments that modules pass to every attention function and ours ignores: pages already say where tokens are.
_IRRELEVANT = {
    "cache_position",
    "head_mask",
    "is_causal",
    "layer_head_mask",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_ids",
    "return_dict",
    "use_cache",
}


@dataclass(slots=True, eq=False)
class AttentionCall:
    """What one layer asks of its attention in one forward pass over N packed tokens.

    Attributes:
        layer: the layer's index.
        query: [N, heads, head_dim].
        key: [N, kv_heads, head_dim].
        value: [N, kv_heads, value_dim].
        scaling: the factor of the scores.
        sliding_window: how many of the last positions a token sees, with its own; None for all.
        softcap: the bound of the scores' soft cap, or None.
        position_bias: what is added to the scores, as T5 does, or None.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    sliding_window: int | None
    softcap: float | None
    position_bias: Tensor | None


class Attending(Protocol):
    """What computes attention during one forward pass; :func:`attend` gets it as the keyword ``attending``."""

    def attend(self, call: AttentionCall, /) -> Tensor:
        """Attention of one layer, [N, heads, value_dim].

        Raises:
            AttentionError: the layer asks for something that is not supported here.
        """
        ...


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    attending: Attending | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Hand one layer's query [1, heads, N, D], key and value [1, kv_heads, N, D] to ``attending``.

    Returns:
        [1, N, heads, value_dim], and no weights.

    Raises:
        AttentionError: nobody attends (the model was called outside the engine and the trainer), or the layer asks for
            something that is not supported here; ignoring it would give wrong numbers.
    """
    layer = getattr(module, "layer_idx", None)
    if attending is None or layer is None:
        raise AttentionError(
            f"attention {NAME!r} runs inside the engine and the trainer only; set another attn_implementation to call "
            "the model itself."
        )
    unknown = {name for name, given in kwargs.items() if given is not None} - _IRRELEVANT
    if unknown or attention_mask is not None or dropout or query.shape[0] != 1:
        what = ", ".join(sorted(unknown)) or "a mask, dropout or a batch dimension"
        raise AttentionError(f"{type(module).__name__} asks its attention for {what}, which ours does not know.")
    call = AttentionCall(
        layer,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window,
        softcap,
        position_bias,
    )
    return attending.attend(call).unsqueeze(0), None


def refuse_position_bias(call: AttentionCall) -> None:
    """Refuse a position bias where attention is computed without one.

    Raises:
        AttentionError: the layer adds a bias to its scores.
    """
    if call.position_bias is not None:
        raise AttentionError(f"layer {call.layer} adds a position bias to its scores, which is not known here.")


AttentionInterface.register(NAME, attend)


class AttentionSwitch:
    """Switches a model between its own attention and :func:`attend`.

    With ours a model does not look for padding in its inputs either: there is none, and on a GPU some thirty models
    would wait for the device to find out.

    Args:
        model: the model; its modules read the implementation from their configs at every call.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        configs = {id(config): config for config in map(_config, model.modules()) if config is not None}
        self._configs: list[Any] = list(configs.values())

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Within the block, the model's layers call :func:`attend`."""
        before = [{name: vars(config)[name] for name in _OURS if name in vars(config)} for config in self._configs]
        for config, values in zip(self._configs, before, strict=True):
            vars(config).update((name, _OURS[name]) for name in values)
        try:
            yield
        finally:
            for config, values in zip(self._configs, before, strict=True):
                vars(config).update(values)


def _config(module: nn.Module) -> PretrainedConfig | None:
    config = getattr(module, "config", None)
    return config if hasattr(config, "_attn_implementation_internal") else None
