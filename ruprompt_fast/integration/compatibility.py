"""The compatibility check: whether the engine computes what a model computes. Runs once, when the model is loaded."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ruprompt_fast.errors import AttentionError, UnsupportedModelError, described
from ruprompt_fast.integration.attention import AttentionCall, AttentionSwitch, refuse_position_bias
from ruprompt_fast.integration.context_length import context_length
from ruprompt_fast.prompts import KVShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.embedding import SplicedEmbedding

_SEQUENCE_LENS = (13, 7)
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Their frequencies depend on the longest sequence of the batch, so a request would depend on its neighbours.
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")
# How far packed logits may be from the model's own, in the Frobenius norm: a wrong mask or position is off by tenths.
_RELATIVE_ERROR = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_compatibility(model: PreTrainedModel, embedding: SplicedEmbedding) -> list[KVShape]:
    """Run two short sequences packed through our attention, and each alone through the model's own.

    Returns:
        The shapes of each layer's key and value of a token.

    Raises:
        UnsupportedModelError: the model cannot run on the engine; the message says why.
    """
    _check_architecture(model)
    table_size, dtype = embedding.weight.shape[0], embedding.weight.dtype
    if dtype not in _RELATIVE_ERROR:
        raise UnsupportedModelError(f"the engine computes in float32, bfloat16 or float16; the model is {dtype}.")
    total = sum(_SEQUENCE_LENS)
    device = embedding.weight.device
    input_ids = torch.arange(3, 3 + 7 * total, 7, device=device) % min(table_size, _vocab_size(model))
    sequences = input_ids.split(list(_SEQUENCE_LENS))
    recorder = _Recorder(device)
    rows = embedding.weight.new_empty((0, embedding.row_width))
    with torch.inference_mode(), embedding.rows_for_call(rows):
        try:
            expected = torch.cat([_logits(model, ids, torch.arange(len(ids), device=device)) for ids in sequences])
        except Exception as error:  # any error of a model's own forward; generate may know how to call it
            raise UnsupportedModelError(f"{type(model).__name__} does not run by itself: {described(error)}") from error
        positions = torch.cat([torch.arange(length, device=device) for length in _SEQUENCE_LENS])
        with AttentionSwitch(model).ours():
            try:
                actual = _logits(model, torch.cat(sequences), positions, attending=recorder)
            except Exception as error:  # the model has just run by itself, so the cause is our attention
                raise UnsupportedModelError(
                    f"{type(model).__name__} does not route its attention through transformers' registry "
                    f"({type(error).__name__}: {error})"
                ) from error
    _check_layers(model, recorder)
    if dtype is torch.float16:
        _check_range(model, recorder, expected, actual)
    distance = (actual.double() - expected.double()).norm() / expected.double().norm()
    if not distance <= _most_distance(dtype, device):
        raise UnsupportedModelError(
            f"{type(model).__name__} computes other logits when sequences are packed (relative error {distance:.2g})."
            + _softcap_advice(model, recorder)
        )
    return [recorder.shapes[layer] for layer in range(len(recorder.shapes))]


def _softcap_advice(model: PreTrainedModel, recorder: _Recorder) -> str:
    """What to do where the model's own attention leaves out the cap of its scores, as some versions' Gemma 2 does."""
    if not recorder.has_softcap or model.config.get_text_config()._attn_implementation != "sdpa":
        return ""
    return (
        " Its attention scores have a soft cap, which attn_implementation='sdpa' leaves out: load the model with "
        'attn_implementation="eager".'
    )


def _most_distance(dtype: torch.dtype, device: torch.device) -> float:
    """How far the logits may be from the model's own, relatively."""
    if device.type == "cuda" and dtype is torch.float32 and _multiplies_in_tf32():
        dtype = torch.float16  # as many digits
    return _RELATIVE_ERROR[dtype]


def _multiplies_in_tf32() -> bool:
    """Whether torch rounds float32 matrices on a GPU to TF32 before it multiplies them."""
    matmul: Any = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # since torch 2.9, which may refuse the older question
    return bool(matmul.allow_tf32 if precision is None else precision == "tf32")


def _check_architecture(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder model.")
    missing = {"position_ids", "logits_to_keep"} - set(inspect.signature(model.forward).parameters)
    if missing:
        raise UnsupportedModelError(f"{name} takes no {' or '.join(sorted(missing))}.")
    other = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if other:
        raise UnsupportedModelError(f"{name} has layers of type {', '.join(sorted(other))}.")
    if dependent := batch_dependence(model):
        raise UnsupportedModelError(f"{name} has {dependent}, which depend on the whole batch.")


def batch_dependence(model: PreTrainedModel) -> str:
    """What makes one sequence's numbers depend on the rest of its batch; empty if nothing is known to."""
    config = model.config.get_text_config()
    kinds = [kind for kind in _BATCH_DEPENDENT_ROPE if any(kind in rope for rope in _rope_types(config))]
    if kinds:
        return f"{kinds[0]} rotary positions"
    return "experts with a capacity" if getattr(config, "expert_capacity", None) else ""


def _rope_types(config: Any) -> list[str]:
    """The kinds of rotary embedding; a config holds one description, or one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [str(description.get("rope_type", "default")) for description in nested or [parameters]]


def _check_layers(model: PreTrainedModel, recorder: _Recorder) -> None:
    config = model.config.get_text_config()
    num_layers = config.num_hidden_layers
    if sorted(recorder.shapes) != list(range(num_layers)):
        raise UnsupportedModelError(
            f"{type(model).__name__} has {num_layers} layers, of which {len(recorder.shapes)} called our attention."
        )
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    # The check's sequences are too short to notice a window; in a config without types it may apply to every layer.
    slides = window is not None and window < (context_length(model.config) or window + 1)
    if types is None and slides and not any(recorder.windows.values()):
        raise UnsupportedModelError(f"{type(model).__name__} slides its window through masks only.")
    for layer, kind in enumerate(types or ()):
        if kind == "sliding_attention" and recorder.windows[layer] is None:
            raise UnsupportedModelError(
                f"layer {layer} of {type(model).__name__} slides its window through masks only."
            )


def _check_range(model: PreTrainedModel, recorder: _Recorder, *logits: Tensor) -> None:
    """Raises :class:`UnsupportedModelError` if a model's numbers are too large for float16."""
    if bool(torch.stack([recorder.is_finite, *(torch.isfinite(each).all() for each in logits)]).all()):
        return
    largest = torch.finfo(torch.float16).max
    raise UnsupportedModelError(
        f"{type(model).__name__} overflows in float16, which ends at {largest:.0f}: on two short sequences it computes "
        "NaN or infinity. Load it in float32 (dtype=torch.float32), or in bfloat16 on a GPU from sm_80 on."
    )


def _vocab_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _logits(model: PreTrainedModel, input_ids: Tensor, positions: Tensor, **extra: Any) -> Tensor:
    run: Any = model
    return run(input_ids=input_ids[None], position_ids=positions[None], use_cache=False, **extra).logits[0]  # type: ignore[no-any-return]


class _Recorder:
    """Plain attention over the check's packed sequences; records what every layer asks for.

    Args:
        device: the model's.
    """

    def __init__(self, device: torch.device) -> None:
        self.shapes: dict[int, KVShape] = {}
        self.windows: dict[int, int | None] = {}
        self.has_softcap = False
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)
        self._device = device
        self._visible: dict[int | None, Tensor] = {}

    def attend(self, call: AttentionCall) -> Tensor:
        refuse_position_bias(call)
        layer, query, key, value = call.layer, call.query, call.key, call.value
        if layer in self.shapes:
            raise AttentionError(f"layer {layer} attends more than once, and has one place for keys and values.")
        self.shapes[layer] = KVShape(1, key.shape[1], key.shape[2], value.shape[2])
        self.windows[layer] = call.sliding_window
        self.has_softcap |= call.softcap is not None
        for part in (query, key, value):
            self.is_finite &= torch.isfinite(part).all()
        heads_per_group = query.shape[1] // key.shape[1]
        key, value = (part.float().repeat_interleave(heads_per_group, 1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query.float() * call.scaling, key)
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        scores = scores.masked_fill(~self._visible_in(call.sliding_window), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).to(query.dtype)

    def _visible_in(self, sliding_window: int | None) -> Tensor:
        """Which token sees which in a window, on the model's device; copied there once, not for every layer."""
        if sliding_window not in self._visible:
            self._visible[sliding_window] = _visible(sliding_window).to(self._device)
        return self._visible[sliding_window]


def _visible(sliding_window: int | None) -> Tensor:
    """Which packed token sees which: bool [tokens, tokens]."""
    sequence = torch.repeat_interleave(torch.arange(len(_SEQUENCE_LENS)), torch.tensor(_SEQUENCE_LENS))
    distance = torch.arange(len(sequence))[:, None] - torch.arange(len(sequence))[None, :]
    window = sliding_window or len(sequence)
    return (sequence[:, None] == sequence[None, :]) & (distance >= 0) & (distance < window)
