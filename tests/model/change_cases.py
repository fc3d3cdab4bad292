"""Every way to change what a model computes, and a low-rank adapter that is switched as PEFT's are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ruprompt_fast.backends.packing.packed_layer import PackedLayer

Change = Callable[[PreTrainedModel], Any]

_LINEARS = (nn.Linear, Conv1D, PackedLayer)


class Adapter(nn.Module):
    """A linear layer with a low-rank term beside it: PEFT's LoRA as far as a served model sees it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        width = base.weight.shape[0] if isinstance(base, Conv1D) else base.weight.shape[1]
        outputs = base.weight.shape[1] if isinstance(base, Conv1D) else base.weight.shape[0]
        if isinstance(base, PackedLayer):
            width, outputs = base.in_features, base.out_features
        generator = torch.Generator().manual_seed(7)
        self.lora_A = nn.Parameter(torch.randn(4, width, generator=generator).to(base.weight.dtype))
        self.lora_B = nn.Parameter(torch.randn(outputs, 4, generator=generator).to(base.weight.dtype) * 0.2)
        self.scaling = {"default": 1.0}
        self.active_adapters: list[str] = ["default"]
        self.merged_adapters: list[str] = []
        self._disable_adapters = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base_layer(x)
        if self._disable_adapters or self.merged_adapters:
            return out
        for name in self.active_adapters:
            out = out + self.scaling[name] * (x @ self.lora_A.T @ self.lora_B.T)
        return out

    def merge(self, sign: float = 1.0) -> None:
        delta = self.scaling["default"] * (self.lora_B @ self.lora_A)
        weight = self.base_layer.weight
        self.base_layer.weight.data += sign * (delta if weight.shape == delta.shape else delta.T).data
        self.merged_adapters = ["default"] if sign > 0 else []


def find(model: nn.Module, *parts: str, last: bool = True) -> nn.Module:
    """The module whose name ends with one of these; the last of them by default."""
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] in parts]
    return found[-1 if last else 0]


def norm(model: nn.Module) -> nn.Module:
    """A norm in the midst of the model."""
    return next(each for each in model.modules() if "Norm" in type(each).__name__ and each.weight.shape == (32,))


def attention(model: nn.Module) -> nn.Module:
    """An attention module."""
    return find(model, "attn", "self_attn", "attention", last=False)


def _is_projection(name: str) -> bool:
    return name in {"c_attn", "query_key_value", "v_proj"}


def projection(model: nn.Module) -> Any:
    """What projects to the values of the first layer."""
    parent, name = projection_place(model)
    return getattr(parent, name)


def projection_place(model: nn.Module) -> tuple[nn.Module, str]:
    """The place of :func:`projection`."""
    return next(
        (parent, name) for parent in model.modules() for name, _ in parent.named_children() if _is_projection(name)
    )


def inject(model: nn.Module) -> Adapter:
    """Put an adapter around the projection."""
    parent, name = projection_place(model)
    adapter = Adapter(getattr(parent, name))
    setattr(parent, name, adapter.to(adapter.base_layer.weight.dtype))
    return adapter.eval()


def _quiet(change: Change) -> Change:
    def run(model: PreTrainedModel) -> Any:
        with torch.no_grad():
            return change(model)

    return run


def _fused_step(model: PreTrainedModel) -> None:
    weight = norm(model).weight
    weight.requires_grad_(True)
    weight.grad = torch.linspace(-1, 1, len(weight)).to(weight)
    torch.optim.AdamW([weight], lr=0.5, fused=True).step()
    weight.grad = None


def _swap(model: PreTrainedModel) -> None:
    weight = norm(model).weight
    torch.utils.swap_tensors(weight, nn.Parameter(torch.full_like(weight, 3.0)))


def _numpy(weight: Tensor) -> None:
    weight.detach().view(torch.uint8).numpy()[:] = torch.full_like(weight, 2.5).view(torch.uint8).numpy()


def _block_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Other weights for one block."""
    torch.manual_seed(9)
    named = {name: value for name, value in model.state_dict().items() if ".1." in name and value.is_floating_point()}
    assert named
    return {name: value + 0.2 * torch.randn(value.shape).to(value) for name, value in named.items()}


def _set_data(owner: Any, factor: float) -> None:
    owner.weight.data = owner.weight.data * factor


def _add_data(owner: Any) -> None:
    owner.weight.data += 0.3


def _assign(owner: Any) -> None:
    owner.weight = nn.Parameter(owner.weight.detach() * -1.5)


def _bent(x: Tensor) -> Tensor:
    """Something that no norm after it takes out again."""
    return x + torch.linspace(-1, 1, x.shape[-1]).to(x)


def _shift(module: nn.Module, arguments: Any, output: Any) -> Any:
    return (_bent(output[0]), *output[1:]) if isinstance(output, tuple) else _bent(output)


def _replace_forward(module: Any) -> None:
    own = module.forward
    module.forward = lambda *arguments, **named: _bent(own(*arguments, **named))


def _other_activation(model: PreTrainedModel) -> None:
    for parent in model.modules():
        for name in ("act", "act_fn", "activation_fn"):
            if name in parent._modules:
                setattr(parent, name, nn.Tanh())


def _new_linear(model: PreTrainedModel) -> None:
    parent, name = projection_place(model)
    old = getattr(parent, name)
    torch.manual_seed(3)
    setattr(parent, name, nn.Linear(old.in_features, old.out_features, bias=old.bias is not None).to(old.weight.dtype))


WEIGHTS: dict[str, Change] = {
    "in place": _quiet(lambda model: norm(model).weight.mul_(1.9)),
    "through data": lambda model: norm(model).weight.data.mul_(1.9),
    "through detach": lambda model: norm(model).weight.detach().mul_(1.9),
    "copied": _quiet(lambda model: norm(model).weight.copy_(torch.linspace(-1, 2, 32))),
    "foreach": _quiet(lambda model: torch._foreach_mul_([norm(model).weight], 1.9)),
    "fused optimizer": _fused_step,
    "numpy": lambda model: _numpy(norm(model).weight),
    "set": _quiet(lambda model: norm(model).weight.set_(torch.linspace(-1, 2, 32).to(norm(model).weight))),
    "swapped": _swap,
    "storage": lambda model: (
        norm(model).weight.untyped_storage().copy_(torch.full_like(norm(model).weight, 2.5).untyped_storage())
    ),
    "data assigned": lambda model: _set_data(norm(model), 1.9),
    "parameter assigned": lambda model: _assign(norm(model)),
    "token table": _quiet(lambda model: model.get_input_embeddings().weight.mul_(1.3)),
    "token table through data": lambda model: model.get_input_embeddings().weight.data.mul_(1.3),
}

PACKED: dict[str, Change] = {
    "in place": _quiet(lambda model: projection(model).weight.mul_(-1.5)),
    "through data": lambda model: projection(model).weight.data.mul_(-1.5),
    "through detach": lambda model: projection(model).weight.detach().mul_(-1.5),
    "one number": _quiet(lambda model: projection(model).weight[5].fill_(4.0)),
    "numpy": lambda model: _numpy(projection(model).weight),
    "data assigned": lambda model: _set_data(projection(model), -1.5),
    "data added": lambda model: _add_data(projection(model)),
    "parameter assigned": lambda model: _assign(projection(model)),
    "state dict written": _quiet(
        lambda model: next(v for k, v in model.state_dict().items() if _is_projection(k.split(".")[-2])).mul_(-1.5)
    ),
    "block loaded": lambda model: model.load_state_dict(_block_of(model), strict=False),
    "block assigned": lambda model: model.load_state_dict(_block_of(model), strict=False, assign=True),
    "other layer": _new_linear,
}

BIASES: dict[str, Change] = {
    "in place": _quiet(lambda model: projection(model).bias.add_(1.5)),
    "through data": lambda model: projection(model).bias.data.add_(1.5),
    "assigned": lambda model: setattr(projection(model), "bias", nn.Parameter(projection(model).bias.detach() + 1.5)),
}

CODE: dict[str, Change] = {
    "hook": lambda model: projection(model).register_forward_hook(_shift),
    "hook of a block": lambda model: attention(model).register_forward_hook(_shift),
    "hook of an activation": lambda model: find(model, "act", "act_fn", "activation_fn").register_forward_hook(_shift),
    "forward of a norm": lambda model: _replace_forward(norm(model)),
    "forward of a layer": lambda model: _replace_forward(projection(model)),
    "activation": _other_activation,
    "adapter": inject,
    "adapter merged": lambda model: inject(model).merge(),
    "scaling": lambda model: setattr(attention(model), "scaling", attention(model).scaling * 4),
    "forward of an activation": lambda model: _replace_forward(find(model, "act", "act_fn", "activation_fn")),
}

CONVERSIONS: dict[str, Change] = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float16": lambda model: model.half(),
}
