"""Activation modules of transformers models: which one-pass function each of them is, and where it can be fused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from transformers.activations import ACT2CLS

from ruprompt_fast.ops.activation import Activation, activate


def _class_of(name: str) -> type[nn.Module]:
    return cast(type[nn.Module], ACT2CLS[name])


# transformers writes one function in several ways; by the exact class, so that a subclass keeps its own.
_FUNCTIONS: dict[type[nn.Module], Activation] = {
    _class_of("gelu_new"): "gelu_tanh",
    _class_of("gelu_fast"): "gelu_tanh",
    _class_of("gelu_pytorch_tanh"): "gelu_tanh",
    _class_of("gelu"): "gelu",
    _class_of("relu"): "relu",
    _class_of("silu"): "silu",
    _class_of("swish"): "silu",
}

# Modules whose forward applies the activation to the output of one linear layer and uses neither for anything else:
# (name of the linear layer, name of the activation) by the class's module and name.
_GATED = ("gate_proj", "act_fn")
_FUSED_PAIRS: dict[tuple[str, str], tuple[str, str]] = {
    ("gpt2", "GPT2MLP"): ("c_fc", "act"),
    ("gpt_neox", "GPTNeoXMLP"): ("dense_h_to_4h", "act"),
    ("opt", "OPTDecoderLayer"): ("fc1", "activation_fn"),
    ("phi", "PhiMLP"): ("fc1", "activation_fn"),
    ("llama", "LlamaMLP"): _GATED,
    ("mistral", "MistralMLP"): _GATED,
    ("qwen2", "Qwen2MLP"): _GATED,
    ("qwen3", "Qwen3MLP"): _GATED,
    ("gemma", "GemmaMLP"): _GATED,
    ("gemma2", "Gemma2MLP"): _GATED,
    ("gemma3", "Gemma3MLP"): _GATED,
}


class OnePassActivation(nn.Module):
    """An activation in one pass over its input; transformers' ``NewGELUActivation`` takes eight."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """The function, element by element."""
        return activate(x, self.activation)

    def extra_repr(self) -> str:
        """The function's name."""
        return self.activation


@dataclass(frozen=True)
class FusedPair:
    """A linear layer and the activation that alone reads its output: children ``linear`` and ``act`` of ``parent``."""

    parent: nn.Module
    linear: str
    act: str
    activation: Activation


def fused_pairs(model: nn.Module) -> Iterator[FusedPair]:
    """Every place of a model where an activation can be fused with the linear layer before it."""
    for parent in model.modules():
        family = type(parent).__module__.removeprefix("transformers.models.").partition(".")[0]
        names = _FUSED_PAIRS.get((family, type(parent).__name__))
        if names is None or not has_own_forward(parent):
            continue
        act = parent._modules.get(names[1])
        activation = _FUNCTIONS.get(type(act)) if act is not None and has_own_forward(act) else None
        if activation is not None:
            yield FusedPair(parent, *names, activation)


def slow_activations(model: nn.Module) -> Iterator[tuple[nn.Module, str, Activation]]:
    """Parent, name and function of the activations that transformers computes in many passes."""
    slow = (_class_of("gelu_new"), _class_of("gelu_fast"))
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None and type(child) in slow and has_own_forward(child):
                yield parent, name, _FUNCTIONS[type(child)]


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module runs its class's own ``forward``, which other code may have replaced."""
    return "forward" not in vars(module) and type(module).forward.__module__ == type(module).__module__
