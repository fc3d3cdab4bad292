"""The forms of frozen weights on the CPU: prepacked for oneDNN, or int8 in panels for a kernel of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast.backends.packing import PackedModel, WeightFormats, packed_model
from ruprompt_fast.ops.cpu.int8_linear import Int8Weight, can_quantize
from ruprompt_fast.ops.cpu.packed_linear import PackedWeight, can_pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.backends.base import Quantization

CPU_FORMATS = WeightFormats(PackedWeight, can_pack, Int8Weight, can_quantize)


def pack_model(model: PreTrainedModel, *, quantization: Quantization | None = None) -> PackedModel:
    """Pack every linear layer of a model for the CPU, in float32 or bfloat16; see :func:`packed_model`."""
    return packed_model(model, CPU_FORMATS, quantization)
