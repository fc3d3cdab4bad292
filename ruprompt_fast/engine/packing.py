"""Packs the frozen linear layers of a transformers model in place, and puts them back."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ruprompt_fast.engine.packed_layer import PackedLinear
from ruprompt_fast.ops.int8_linear import can_quantize
from ruprompt_fast.ops.packed_linear import Activation, can_pack
from ruprompt_fast.routing.activations import OnePassActivation, fused_pairs, slow_activations


class NoDropout(nn.Identity):
    """What stands for a dropout module in a model that does not train; it costs a quarter of the call."""

    p = 0.0


@dataclass(frozen=True)
class _Place:
    """A linear layer where it stands: child ``name`` of ``parent``, at ``path`` of the model."""

    path: str
    parent: nn.Module
    name: str
    module: nn.Linear | Conv1D


class PackedModel:
    """A model whose linear layers are packed; made by :func:`pack_model`.

    Attributes:
        model: the model.
        packed: the packed layers' names.
        skipped: the names of the linear layers that are left as they were, with the reason.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.packed: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}
        self._originals: list[tuple[nn.Module, str, nn.Module]] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the packed weights take."""
        return sum(layer.num_bytes for layer in self.model.modules() if isinstance(layer, PackedLinear))

    def unpack(self) -> PreTrainedModel:
        """Put the model's own modules back, the same objects with the same parameters, and return the model.

        Weights come back bit for bit, or as :meth:`~torch.nn.Module.to` or ``load_state_dict`` have changed them since.
        After ``int8=True`` they come back as the model has been computing with them, ``value * scale``: what rounding
        took away is gone, except where another module kept the plain weight, as a tied token table does. A tied layer
        shares its partner's parameter again. Does nothing the second time. A module that something else has replaced
        meanwhile stays replaced.
        """
        for parent, name, original in self._originals:
            standing = parent._modules.get(name)
            if isinstance(standing, PackedLinear):
                _restore(cast(nn.Linear, original), standing)
            elif not isinstance(standing, (OnePassActivation, nn.Identity)):
                continue
            parent._modules[name] = original
        self._originals.clear()
        return self.model

    def _replace(self, parent: nn.Module, name: str, module: nn.Module) -> None:
        original = parent._modules[name]
        self._originals.append((parent, name, cast(nn.Module, original)))
        parent._modules[name] = module


def pack_model(model: PreTrainedModel, *, int8: bool = False) -> PackedModel:
    """Replace every linear layer (``nn.Linear``, ``Conv1D``) of a model by a :class:`PackedLinear`, for inference.

    The plain weights are released. The output layer is packed too; where its weight is the token table, that table
    stays, because rows are read from it. A GELU, SiLU or ReLU that alone reads a packed layer is computed in the same
    pass, and a GELU elsewhere in one pass; dropout of a model in evaluation mode is passed by. A packed model gives no
    gradients.

    Layers of another class (also subclasses), on another device, in another dtype than float32 or bfloat16, or whose
    weight the module around them reads itself, are left as they are: :attr:`PackedModel.skipped` names them.

    Args:
        model: a model in evaluation mode; it is changed in place.
        int8: keep weights as int8 with one scale per output channel, a quarter of float32's memory. Activations stay in
            the model's dtype. A layer whose weight is not finite is left as it is.
    """
    handle = PackedModel(model)
    fusions = {(id(pair.parent), pair.linear): pair for pair in fused_pairs(model)}
    places = []
    for place in _linear_places(model):
        reason = _reason_to_skip(place, int8)
        if reason is None:
            places.append(place)
        else:
            handle.skipped[place.path] = reason
    kept = _parameters_in_use(model, {id(place.module) for place in places})
    for index, place in enumerate(places):
        pair = fusions.get((id(place.parent), place.name))
        weight = place.module.weight
        layer = _packed(place.module, pair.activation if pair else None, int8, tied=id(weight) in kept)
        handle._replace(place.parent, place.name, layer)
        if pair is not None:
            handle._replace(pair.parent, pair.act, nn.Identity())
        shared = any(later.module.weight is weight for later in places[index + 1 :])
        if id(weight) not in kept and not shared:
            # The parameter itself stays, and with it every reference to it: unpacking fills it again.
            weight.data = torch.empty(0, dtype=weight.dtype)
    for parent, name, activation in list(slow_activations(model)):
        handle._replace(parent, name, OnePassActivation(activation))
    for parent, name in list(_dropouts(model)):
        handle._replace(parent, name, NoDropout())
    handle.packed = tuple(place.path for place in places)
    return handle


def _linear_places(model: nn.Module) -> Iterator[_Place]:
    for path, parent in model.named_modules():
        for name, child in parent._modules.items():
            if isinstance(child, (nn.Linear, Conv1D)):
                yield _Place(f"{path}.{name}" if path else name, parent, name, child)


def _dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for parent in model.modules():
        for name, child in parent._modules.items():
            if type(child) is nn.Dropout and not child.training and not _has_hooks(child):
                yield parent, name


def _reason_to_skip(place: _Place, int8: bool) -> str | None:
    module, weight = place.module, place.module.weight
    if type(module) is not nn.Linear and type(module) is not Conv1D:
        return f"{type(module).__name__} is a class of its own"
    takes = can_quantize if int8 else can_pack
    if not takes(weight.dtype, weight.device) or weight.numel() == 0:
        return f"nothing packs {weight.dtype} {list(weight.shape)} on {weight.device}"
    if module.bias is not None and (module.bias.dtype is not weight.dtype or module.bias.device != weight.device):
        return f"its bias is {module.bias.dtype} on {module.bias.device}"
    if _has_hooks(module):
        return "it has hooks"
    if _reads_weight(type(place.parent), place.name):
        return f"{type(place.parent).__name__} reads its weight"
    if int8 and not bool(torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all()):
        return "its weight contains NaN or infinity"
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _reads_weight(parent: type[nn.Module], name: str) -> bool:
    """Whether the forward of a class reads ``self.<name>.weight``, as T5's does for its dtype at every call."""
    try:
        source = inspect.getsource(parent.forward)
    except (OSError, TypeError):
        return False
    return f"self.{name}.weight" in source


def _parameters_in_use(model: nn.Module, packed_ids: set[int]) -> set[int]:
    """Identities of the parameters that modules other than the packed ones own."""
    return {
        id(parameter)
        for module in model.modules()
        if id(module) not in packed_ids
        for parameter in module._parameters.values()
    }


def _packed(module: nn.Linear | Conv1D, activation: Activation | None, int8: bool, tied: bool) -> PackedLinear:
    layer = PackedLinear(
        module.weight, module.bias, transposed=type(module) is Conv1D, activation=activation, int8=int8, tied=tied
    )
    return layer.train(module.training)


def _restore(original: nn.Linear, layer: PackedLinear) -> None:
    """Give an original module its parameters back from the layer that stood for it."""
    weight = layer.weight
    if isinstance(weight, nn.Parameter):
        original.weight = weight
    else:
        original.weight.data = weight
    original.register_parameter("bias", layer.bias)
    original.train(layer.training)
