"""Frozen layers in a form that a device computes faster from, in place of a model's own, and the way back."""

from ruprompt_fast.backends.packing.formats import WeightFormats
from ruprompt_fast.backends.packing.packed_model import PackedModel, packed_model

__all__ = ["PackedModel", "WeightFormats", "packed_model"]
