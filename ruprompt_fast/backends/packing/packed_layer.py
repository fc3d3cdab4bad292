"""The modules that replace frozen linear layers while their weights are prepacked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ruprompt_fast.backends.packing.formats import LinearWeight, QuantizedWeight, WeightFormats
from ruprompt_fast.backends.packing.lending import Lending
from ruprompt_fast.errors import FrozenWeightsError
from ruprompt_fast.ops.activation import Activation

if TYPE_CHECKING:
    from typing_extensions import Self

    from ruprompt_fast.backends.base import Quantization


class PackedLayer(nn.Module):
    """A frozen linear layer that computes from a prepacked weight.

    It has no parameter ``weight``. The attribute of that name, the state dict and the files of ``save_pretrained`` have
    the weight in plain form, unpacked on demand (or the other module's own, where the two are tied). Assigning to it,
    ``load_state_dict`` and ``to`` pack again; on a device or in a dtype that cannot be packed, the weight stays plain.
    What is written to the plain form takes effect when the layer is packed again; :attr:`is_written` says whether that
    is due. An int8 weight that is not tied is unpacked as ``value * scale``: what rounding took away is lost.

    Args:
        weight: [out_features, in_features]; in a ``transposed`` class [in_features, out_features].
        bias: [out_features], or None; it is kept as it is.
        formats: the forms that the weight may take.
        activation: what is applied to the output, in the same pass.
        quantization: ``"int8"`` rounds the weight to int8, with one scale per output channel.
        tied: whether the weight is another module's parameter too, which is then what the attribute ``weight`` gives.
    """

    transposed: ClassVar[bool]
    bias: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        bias: nn.Parameter | None = None,
        *,
        formats: WeightFormats,
        activation: Activation | None = None,
        quantization: Quantization | None = None,
        tied: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # not the replaced layer's, which would make a weight
        self.register_parameter("bias", bias)
        self.formats = formats
        self.activation = activation
        self.quantization = quantization
        # In a tuple, so that it is no parameter of this module.
        self._tied = (weight,) if tied else ()
        self._lending = Lending()
        self._pack(weight)

    def with_activation(self, activation: Activation | None) -> Self:
        """A layer with this activation that shares the weight and the bias."""
        layer = type(self).__new__(type(self))
        nn.Module.__init__(layer)
        layer.register_parameter("bias", self.bias)
        layer.formats, layer.activation, layer.quantization = self.formats, activation, self.quantization
        layer._tied, layer._lending, layer._weight = self._tied, self._lending, self._weight
        layer.out_features, layer.in_features = self.out_features, self.in_features
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """``activation(x @ weight.T + bias)`` of [..., in_features] in the weight's dtype.

        Raises:
            FrozenWeightsError: ``x`` wants a gradient.
            TensorArgumentError: ``x`` has another width or dtype.
        """
        if torch.is_grad_enabled():
            return self._forward_outside_no_grad(x)
        return self._weight.linear(x, self.bias, self.activation)

    def _forward_outside_no_grad(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise FrozenWeightsError(
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
        """What the layer computes with; a new object whenever the weight is packed again."""
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
        """The weight in the layer's own orientation, in new memory: bitwise identical, or as int8 rounded it."""
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
            plain = weight.detach()
            self._weight = self.formats.form_of(plain.t() if self.transposed else plain, self.quantization)
        self.out_features, self.in_features = self._weight.shape

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.is_written:
            self._pack(self.weight)
        packed = self._weight
        target = fn(torch.empty(0, dtype=packed.dtype, device=packed.device))
        if target.dtype is packed.dtype and target.device == packed.device:
            return self
        is_quantized = self.quantization is not None and hasattr(packed, "with_dtype")
        if is_quantized and target.device == packed.device and self.formats.can_quantize(target.dtype, target.device):
            self._weight = cast(QuantizedWeight, packed).with_dtype(target.dtype)
            return self
        with torch.inference_mode(False), torch.no_grad():
            self._weight = self.formats.form_of(fn(packed.dense()), self.quantization)
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

    __repr__ = nn.Module.__repr__  # Conv1D's would read attributes that only it has


class PackedLinear(PackedLayer, nn.Linear):  # type: ignore[misc, override]
    """Replaces an ``nn.Linear``, and passes as one, so that adapters can be put around it."""

    transposed = False


class PackedConv1D(PackedLayer, Conv1D):  # type: ignore[misc]
    """Replaces transformers' ``Conv1D``."""

    transposed = True

    @property
    def nf(self) -> int:
        """Width of the output."""
        return self.out_features

    @property
    def nx(self) -> int:
        """Width of the input."""
        return self.in_features
