"""The module that stands for a frozen linear layer while its weight is packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ruprompt_fast.engine.lending import Lending
from ruprompt_fast.errors import FrozenLayerError
from ruprompt_fast.ops.int8_linear import Int8Weight, can_quantize
from ruprompt_fast.ops.packed_linear import Activation, PackedWeight, PlainWeight, can_pack

LinearWeight: TypeAlias = Int8Weight | PackedWeight | PlainWeight


def pack_weight(weight: Tensor, *, int8: bool = False) -> LinearWeight:
    """The fastest form of a weight [out_features, in_features] on its device and in its dtype, in int8 on request."""
    if int8 and weight.numel() and can_quantize(weight.dtype, weight.device):
        return Int8Weight(weight)
    return PackedWeight(weight) if weight.numel() and can_pack(weight.dtype, weight.device) else PlainWeight(weight)


class PackedLinear(nn.Module):
    """A frozen ``nn.Linear`` or transformers ``Conv1D``: the same function, from a packed weight.

    It has no parameter ``weight``. The attribute of that name, the state dict and what ``save_pretrained`` writes give
    the weight in plain form, unpacked on demand (or the other module's own, where the two are tied). Assigning to it,
    ``load_state_dict`` and ``to`` pack anew; on a device or in a dtype that nothing packs for, the weight stays plain.
    What is written to the plain form counts when the layer is packed the next time, and :attr:`is_written` says that
    it is due. An int8 weight that is not tied comes back as what it stands for, ``value * scale``: the rest is gone.

    Args:
        weight: [out_features, in_features], or for ``transposed`` layers [in_features, out_features].
        bias: [out_features], or None; it is kept as it is.
        transposed: whether the layer is a ``Conv1D``.
        activation: what is applied to the output, in the same pass.
        int8: whether the weight is rounded to int8, with one scale per output channel.
        tied: whether the weight is another module's parameter too, which is then what the attribute ``weight`` gives.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        bias: nn.Parameter | None = None,
        *,
        transposed: bool = False,
        activation: Activation | None = None,
        int8: bool = False,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.register_parameter("bias", bias)
        self.transposed = transposed
        self.activation = activation
        self.int8 = int8
        # In a tuple, so that it is no parameter of this module.
        self._tied = (weight,) if tied else ()
        self._lending = Lending()
        self._pack(weight)

    @classmethod
    def like(cls, other: PackedLinear, activation: Activation | None) -> PackedLinear:
        """A layer with the same weight and bias, which shares their memory, and another activation."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.register_parameter("bias", other.bias)
        layer.transposed, layer.activation, layer.int8 = other.transposed, activation, other.int8
        layer._tied, layer._lending, layer._weight = other._tied, other._lending, other._weight
        layer.out_features, layer.in_features = other.out_features, other.in_features
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """``activation(x @ weight.T + bias)`` of [..., in_features] in the weight's dtype.

        Raises:
            FrozenLayerError: ``x`` wants a gradient.
            TensorArgumentError: ``x`` has another width or dtype.
        """
        if torch.is_grad_enabled():
            return self._forward_outside_no_grad(x)
        return self._weight.linear(x, self.bias, self.activation)

    def _forward_outside_no_grad(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise FrozenLayerError(
                "a packed layer was given an input that wants a gradient, and has none to give. Run the model under "
                "torch.inference_mode() or torch.no_grad(), or unpack it before training."
            )
        with torch.no_grad():
            return self._weight.linear(x, self.bias, self.activation)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the packed weight takes."""
        return self._weight.num_bytes

    @property
    def weight(self) -> Tensor:
        """The weight in the layer's own orientation: the tied module's parameter, or an unpacked copy."""
        if self._tied:
            return self._tied[0]
        lent = self._lending.lent()
        return self._lending.lend(self.unpacked() if lent is None else lent)

    @property
    def packed(self) -> LinearWeight:
        """What the layer computes with; another object whenever the weight was packed anew."""
        return self._weight

    @property
    def is_lent(self) -> bool:
        """Whether other code holds the weight in plain form."""
        return self._lending.lent() is not None

    @property
    def is_written(self) -> bool:
        """Whether something has written to the plain form of the weight, which :attr:`weight` gives."""
        return self._lending.is_written(self.unpacked)

    def watch_memory(self, plain: Tensor) -> None:
        """Count what others write to the memory that the weight was packed from, as long as they hold it."""
        self._lending.watch(plain)

    def unpacked(self) -> Tensor:
        """The weight in the layer's own orientation, in new memory: as it was packed bit for bit, or what int8 left."""
        # A tensor made in inference mode could never be trained.
        with torch.inference_mode(False), torch.no_grad():
            dense = self._weight.dense()
            return dense.t().contiguous() if self.transposed else dense

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would make it a parameter: transformers' tie_weights() assigns the embedding's here.
        if name == "weight":
            self._tied = (value,) if isinstance(value, nn.Parameter) else ()
            self._pack(value)
            self._lending.watch(value)
        else:
            super().__setattr__(name, value)

    def _pack(self, weight: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._weight = pack_weight(weight.detach().t() if self.transposed else weight.detach(), int8=self.int8)
        self.out_features, self.in_features = self._weight.shape

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.is_written:
            self._pack(self.weight)
        packed = self._weight
        target = fn(torch.empty(0, dtype=packed.dtype, device=packed.device))
        if target.dtype is packed.dtype and target.device == packed.device:
            return self
        if isinstance(packed, Int8Weight) and can_quantize(target.dtype, target.device):
            self._weight = packed.with_dtype(target.dtype)
            return self
        with torch.inference_mode(False), torch.no_grad():
            self._weight = pack_weight(fn(packed.dense()), int8=self.int8)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight = self.weight
        destination[prefix + "weight"] = weight if keep_vars else weight.detach()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "weight"
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        expected = (self.in_features, self.out_features) if self.transposed else (self.out_features, self.in_features)
        if key not in state_dict:
            if strict:
                missing_keys.append(key)
        elif tuple(state_dict[key].shape) != expected:
            error_msgs.append(f"size mismatch for {key}: {list(state_dict[key].shape)}, expected {list(expected)}")
        else:
            weight = state_dict[key].to(device=self._weight.device, dtype=self._weight.dtype)
            self._pack(weight)
            self._lending.refill(self.unpacked())

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation}, weight={type(self._weight).__name__}, dtype={self._weight.dtype}"
        )
