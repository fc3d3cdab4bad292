"""Packs the frozen linear layers of a transformers model in place, and puts them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ruprompt_fast.backends.packing.formats import LinearWeight, WeightFormats
from ruprompt_fast.backends.packing.lending import ReleasedWeight
from ruprompt_fast.backends.packing.packable import dropouts, has_hooks, linear_places, reason_to_skip
from ruprompt_fast.backends.packing.packed_layer import PackedConv1D, PackedLayer, PackedLinear
from ruprompt_fast.errors import FrozenWeightsError
from ruprompt_fast.integration.activations import OnePassActivation, fused_pairs, slow_activations

if TYPE_CHECKING:
    from ruprompt_fast.backends.base import Quantization

_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class NoDropout(nn.Identity):
    """Replaces a dropout module in a model that does not train; a call takes a quarter of the time."""

    p = 0.0


@dataclass(frozen=True)
class _Replacement:
    """A module of the model, and the one that replaces it.

    Attributes:
        original: the model's own.
        replacement: what takes its place.
        packed: what ``replacement`` computed with at first, if it is a packed layer.
        released: the original's weight, if its memory was released.
    """

    original: nn.Module
    replacement: nn.Module
    packed: LinearWeight | None = None
    released: ReleasedWeight | None = None

    @property
    def layer(self) -> PackedLayer | None:
        """The packed layer, if it is one."""
        return self.replacement if isinstance(self.replacement, PackedLayer) else None

    def sees_write(self) -> bool:
        """Whether the plain form of a packed weight was written to."""
        return isinstance(self.replacement, PackedLayer) and self.replacement.is_written

    def is_unchanged(self, thorough: bool) -> bool:
        """Whether the packed weight is still that of the model."""
        layer, released = self.layer, self.released
        if layer is None or released is None or released.is_assigned or layer.packed is not self.packed:
            return False
        return not (layer.is_lent if thorough else layer.is_written)


class PackedModel:
    """A model whose linear layers are packed; made by :func:`packed_model`.

    Attributes:
        model: the model.
        formats: the forms of its weights.
        quantization: how they are quantized, or None.
        packed: the packed layers' names.
        skipped: the names of the linear layers that were left unchanged, with the reason.
    """

    def __init__(self, model: PreTrainedModel, formats: WeightFormats, quantization: Quantization | None) -> None:
        self.model = model
        self.formats = formats
        self.packed: tuple[str, ...] = ()
        self.skipped: dict[str, str] = {}
        self.quantization = quantization
        self._replacements: list[_Replacement] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the packed weights take."""
        return sum(layer.num_bytes for layer in self.model.modules() if isinstance(layer, PackedLayer))

    @property
    def watched(self) -> list[Tensor]:
        """The parameters whose memory is released; other code may hold them and write to them."""
        return [each.released.parameter for each in self._replacements if each.released is not None]

    def is_outdated(self) -> bool:
        """Whether something has written to the plain form of a packed weight."""
        return any(each.sees_write() for each in self._replacements)

    def undo(self) -> None:
        """Put the model's own modules back, the same objects with the same parameters.

        Weights come back bitwise identical, or as :meth:`~torch.nn.Module.to`, ``load_state_dict`` or writing to the
        packed layers' ``weight`` have changed them since. After ``quantization="int8"`` they come back as
        ``value * scale``: what rounding took away is lost, except where another module kept the plain weight, as a tied
        token table does. A tied layer shares its partner's parameter again. A second call does nothing. A module that
        other code has replaced meanwhile stays replaced; if other code has wrapped it, it is put back in the wrapper.
        """
        replacements, self._replacements = self._replacements, []
        for each in replacements:
            _restore(each)
        _put_back(self.model, replacements)

    def prepare_again(self, *, thorough: bool = False) -> PackedModel:
        """Pack the model as it is now, reusing what has not changed. This object cannot be used afterwards.

        Args:
            thorough: pack every weight again whose plain form other code holds.

        Raises:
            FrozenWeightsError: something has written to a parameter whose memory is released. The next call continues
                without what was written.
        """
        self._check_released()
        replacements, self._replacements = self._replacements, []
        kept: dict[int, PackedLayer] = {}
        for each in replacements:
            if each.layer is not None and each.is_unchanged(thorough):
                each.original.register_parameter("bias", each.layer.bias)
                kept[id(each.original)] = each.layer
            else:
                _restore(each)
        _put_back(self.model, replacements)
        return _pack(PackedModel(self.model, self.formats, self.quantization), kept)

    def _check_released(self) -> None:
        released = [each.released for each in self._replacements if each.released is not None]
        written = [each for each in released if each.is_written]
        for each in written:
            each.release()
        if written:
            raise FrozenWeightsError(
                f"{len(written)} weights, the first of shape {list(written[0].parameter.shape)}, were written to "
                "through parameters that are held since before the model was served; their numbers are packed "
                "elsewhere, and what was written is lost. Take them from the model (layer.weight) instead, assign "
                "them, or use load_state_dict(); the next call continues with the weights as they were."
            )

    def _replace(self, parent: nn.Module, name: str, module: nn.Module, **details: Any) -> None:
        original = cast(nn.Module, parent._modules[name])
        for hooks in _HOOKS:  # the two share their hooks
            setattr(module, hooks, getattr(original, hooks))
        module.train(original.training)
        self._replacements.append(_Replacement(original, module, **details))
        parent._modules[name] = module


def packed_model(model: PreTrainedModel, formats: WeightFormats, quantization: Quantization | None) -> PackedModel:
    """Replace the linear layers (``nn.Linear``, ``Conv1D``) of a model by :class:`PackedLayer`, for inference.

    The plain weights are released: a parameter that other code holds keeps its shape, reads as NaN and cannot be
    written to. The output layer is packed too; where its weight is the token table, that table stays, because rows are
    read from it. A GELU, SiLU or ReLU that alone reads a packed layer's output is fused with the layer, and a GELU
    elsewhere takes one pass; dropout of a model in evaluation mode is skipped. A packed model gives no gradients.

    Layers of another class (also subclasses), on a device or in a dtype that has no form here, in memory that other
    processes share, with hooks, or whose weight the parent module reads itself, are left unchanged:
    :attr:`PackedModel.skipped` names them.

    Args:
        model: a model in evaluation mode; it is changed in place.
        formats: the forms of the weights on its device.
        quantization: ``"int8"`` keeps weights as int8 with one scale per output channel, a quarter of float32's memory.
            Activations stay in the model's dtype. A layer whose weight is not finite is left unchanged.
    """
    return _pack(PackedModel(model, formats, quantization), {})


def _pack(handle: PackedModel, kept: dict[int, PackedLayer]) -> PackedModel:
    """Pack a model; the layers whose identities are in ``kept`` are packed already and have no plain weight."""
    try:
        _pack_layers(handle, kept)
    except BaseException:
        handle.undo()
        for place in linear_places(handle.model):
            _fill(place.module, kept)
        raise
    return handle


def _pack_layers(handle: PackedModel, kept: dict[int, PackedLayer]) -> None:
    model = handle.model
    fusions = {
        (id(pair.parent), pair.linear): pair
        for pair in fused_pairs(model)
        if not has_hooks(pair.parent.get_submodule(pair.act))
    }
    places = []
    for place in linear_places(model):
        reason = reason_to_skip(place, handle.formats, handle.quantization, id(place.module) in kept)
        if reason is None:
            places.append(place)
        else:
            _fill(place.module, kept)
            handle.skipped[place.path] = reason
    in_use = _parameters_in_use(model, {id(place.module) for place in places})
    for index, place in enumerate(places):
        pair = fusions.get((id(place.parent), place.name))
        weight = place.module.weight
        is_last = all(later.module.weight is not weight for later in places[index + 1 :])
        activation = pair.activation if pair else None
        before = kept.get(id(place.module))
        if before is None:
            kind: type[PackedLayer] = PackedConv1D if type(place.module) is Conv1D else PackedLinear
            layer = kind(
                weight,
                place.module.bias,
                formats=handle.formats,
                activation=activation,
                quantization=handle.quantization,
                tied=id(weight) in in_use,
            )
        else:
            layer = before.with_activation(activation)
        released = None
        if id(weight) not in in_use and is_last:
            if before is None:
                layer.watch_memory(weight)
            # The parameter itself stays, so references to it stay valid: unpacking fills it again.
            released = ReleasedWeight(cast(nn.Parameter, weight))
        handle._replace(place.parent, place.name, layer, packed=layer.packed, released=released)
        if pair is not None:
            handle._replace(pair.parent, pair.act, nn.Identity())
    for parent, name, activation in list(slow_activations(model)):
        if not has_hooks(parent.get_submodule(name)):
            handle._replace(parent, name, OnePassActivation(activation))
    for parent, name in list(dropouts(model)):
        handle._replace(parent, name, NoDropout())
    handle.packed = tuple(place.path for place in places)


def _parameters_in_use(model: nn.Module, packed_ids: set[int]) -> set[int]:
    """Identities of the parameters that modules other than the packed ones own."""
    return {
        id(parameter)
        for module in model.modules()
        if id(module) not in packed_ids
        for parameter in module._parameters.values()
    }


def _put_back(model: nn.Module, replacements: Sequence[_Replacement]) -> None:
    """Put the originals where their replacements are now: other code may have wrapped a replacement."""
    originals = {id(each.replacement): each.original for each in replacements}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            original = originals.get(id(child))
            if child is None or original is None:
                continue
            original.train(child.training)
            if "forward" in vars(child):
                original.forward = child.forward
            parent._modules[name] = original


def _restore(each: _Replacement) -> None:
    """Give the original of a packed layer its weight back, unless other code has given it another one."""
    layer, released = each.layer, each.released
    if layer is None:
        return
    original = cast(nn.Linear, each.original)
    original.register_parameter("bias", layer.bias)
    is_assigned = released is not None and released.is_assigned
    if is_assigned and layer.packed is each.packed and not layer.is_written:
        return
    _fill(original, {id(original): layer})


def _fill(original: nn.Linear | Conv1D, layers: dict[int, PackedLayer]) -> None:
    layer = layers.get(id(original))
    if layer is None:
        return
    weight = layer.weight
    if isinstance(weight, nn.Parameter):
        original.weight = weight
    else:
        original.weight.data = weight
