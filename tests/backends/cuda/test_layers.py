"""A model whose layers run in fewer kernels computes what it computed before, and comes back as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_models import FAMILIES, VOCAB, sharp_model, tiny_model
from tolerances import relative_error
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ruprompt_fast.backends.cuda import fused_norms
from ruprompt_fast.backends.cuda.fused_blocks import FusedBlock
from ruprompt_fast.backends.cuda.fused_norms import FusedNorm
from ruprompt_fast.backends.cuda.layers import FusedLayers, prepare_layers
from ruprompt_fast.backends.packing.packed_layer import PackedLayer
from ruprompt_fast.errors import FrozenWeightsError
from ruprompt_fast.ops.cuda.cards import V100
from ruprompt_fast.ops.cuda.int8_linear import Int8Weight

DECODERS = [family for family in FAMILIES if family != "t5"]
FUSED = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]
# A GELU in one pass rounds once where transformers' eight passes round eight times.
LOGITS_ERROR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def prepare(model: PreTrainedModel, quantization: str | None = None) -> FusedLayers:
    return prepare_layers(model, quantization, V100)


def logits_of(model: PreTrainedModel) -> Tensor:
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(ids).logits


@contextmanager
def counted() -> Iterator[list[str]]:
    """The norms that are computed within the block."""
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("norm", "add_norm"):
            own: Callable[..., object] = getattr(fused_norms, name)
            patch.setattr(fused_norms, name, lambda *args, own=own, name=name: (calls.append(name), own(*args))[1])
        yield calls


@pytest.mark.parametrize("dtype", LOGITS_ERROR, ids=str)
@pytest.mark.parametrize("family", DECODERS)
def test_logits_and_the_way_back(family: str, dtype: torch.dtype) -> None:
    model = sharp_model(family).to(dtype)
    before, modules = logits_of(model), dict(model.named_modules())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared = prepare(model)
    assert not prepared.watched
    assert not prepared.is_outdated()
    error = relative_error(logits_of(model), before)
    assert error <= (LOGITS_ERROR[dtype] if family == "gpt2" else 0.0)
    for _ in range(2):
        prepared.undo()
        assert dict(model.named_modules()) == modules
        assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(logits_of(model), before)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], state[name]) for name in state)


@pytest.mark.parametrize("family", FUSED)
def test_every_residual_is_added_by_the_norm_after_it(family: str) -> None:
    """Says which code is not known any more, if transformers has changed it."""
    model = tiny_model(family)
    prepared = prepare(model)
    assert prepared.num_blocks == 2
    with counted() as calls:
        logits_of(model)
    assert calls.count("add_norm") == 4
    is_layer_norm = [type(module) is nn.LayerNorm for module in model.modules()]
    others = 0 if any(is_layer_norm) else prepared.num_norms - 4
    assert calls.count("norm") == others


def test_what_is_not_known_is_left_alone() -> None:
    model = tiny_model("gpt_neox")
    assert (prepare(model).num_norms, prepare(model).num_blocks) == (0, 0)

    model = tiny_model("llama")
    kind = type(model.model.norm)

    class OwnNorm(kind):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return 2 * super().forward(hidden_states)

    class OwnBlock(type(model.model.layers[0])):
        def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
            return -super().forward(hidden_states, **kwargs)

    model.model.norm.__class__ = OwnNorm
    model.model.layers[1].__class__ = OwnBlock
    own = model.model.layers[0].input_layernorm
    own.forward = lambda x: x
    before = logits_of(model)
    prepared = prepare(model)
    assert (prepared.num_norms, prepared.num_blocks) == (3, 0)
    assert torch.equal(logits_of(model), before)
    prepared.undo()
    assert own.forward(3) == 3


def doubled(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return 2 * output


def added_in_place(module: nn.Module, args: object, output: Tensor) -> None:
    output += 0.5


def added_before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    args[0].add_(0.5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_hooks_that_come_later_run(family: str) -> None:
    model, plain = sharp_model(family), sharp_model(family)
    prepare(model)
    names = [name for name, module in plain.named_modules() if fused_norms.fused_norm(module)]
    names += ["transformer.h.0", "transformer.h.1"] if family == "gpt2" else ["model.layers.0", "model.layers.1"]
    for name in names:
        for hook in (doubled, added_in_place, added_before):
            handles = []
            for each in (model, plain):
                module = each.get_submodule(name)
                register = module.register_forward_pre_hook if hook is added_before else module.register_forward_hook
                handles.append(register(hook))
            assert relative_error(logits_of(model), logits_of(plain)) <= 2e-6, (name, hook)
            for handle in handles:
                handle.remove()


def test_gradients_and_autocast_take_the_own_way() -> None:
    for family in ("gpt2", "llama"):
        model, plain = sharp_model(family), sharp_model(family)
        prepare(model)
        gradients = []
        for each in (model, plain):
            each.get_input_embeddings().weight.grad = None
            each(torch.arange(3, 12)[None]).logits.logsumexp(-1).sum().backward()
            gradients.append(each.get_input_embeddings().weight.grad)
        assert relative_error(*gradients) <= 2e-6
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(logits_of(model), logits_of(plain)) <= LOGITS_ERROR[torch.bfloat16]


def test_a_norm_in_another_dtype_takes_the_own_way() -> None:
    model, plain = (sharp_model("llama").to(torch.bfloat16) for _ in range(2))
    for each in (model, plain):
        each.model.layers[1].post_attention_layernorm.float()
        each.model.layers[1].mlp.float()
    prepare(model)
    hidden = torch.randn(1, 3, 32).bfloat16()
    actual, expected = (each.model.layers[1](hidden, **rotary(each, hidden)) for each in (model, plain))
    assert expected.dtype is torch.float32
    assert torch.equal(actual, expected)


def rotary(model: PreTrainedModel, hidden: Tensor) -> dict[str, object]:
    positions = torch.arange(hidden.shape[1])[None]
    return {"attention_mask": None, "position_embeddings": model.model.rotary_emb(hidden, positions)}


def test_copies_are_independent() -> None:
    model = sharp_model("llama")
    before = logits_of(model)
    prepare(model)
    twin = copy.deepcopy(model)
    fused = [vars(module)["forward"] for module in twin.modules() if "forward" in vars(module)]
    own = {id(module) for module in twin.modules()}
    assert fused
    assert all(id(each.module if isinstance(each, FusedNorm) else each.block) in own for each in fused)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    assert torch.equal(logits_of(twin), before)
    assert not torch.equal(logits_of(model), before)


def test_what_other_code_has_put_around_it_stays() -> None:
    model = tiny_model("llama")
    prepared = prepare(model)
    norm = model.model.norm
    wrapped = norm.forward
    norm.forward = lambda x: wrapped(x)
    mine = norm.forward
    prepared.undo()
    assert norm.forward is mine
    assert not isinstance(vars(model.model.layers[0]).get("forward"), FusedBlock)


def rounded_to_int8(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every linear weight replaced by its int8 form, unpacked; ties are cut."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            weight = module.weight.detach()
            plain = Int8Weight(weight.t() if type(module) is Conv1D else weight).dense()
            module.weight = nn.Parameter(plain.t().contiguous() if type(module) is Conv1D else plain)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama", "llama_tied", "gemma3"])
def test_int8_computes_with_the_rounded_weights(family: str, dtype: torch.dtype) -> None:
    model, rounded = sharp_model(family).to(dtype), rounded_to_int8(sharp_model(family).to(dtype))
    before, table = logits_of(model), model.get_input_embeddings().weight.clone()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    prepared = prepare(model, "int8")
    layers = [module for module in model.modules() if isinstance(module, PackedLayer)]
    assert layers
    assert not prepared.packed.skipped
    assert all(isinstance(layer.packed, Int8Weight) for layer in layers)
    assert len(prepared.watched) == len(layers) - model.config.tie_word_embeddings
    logits = logits_of(model)
    assert relative_error(logits, logits_of(rounded)) <= 4 * LOGITS_ERROR[dtype]
    assert 0 < relative_error(logits, before) < 0.1
    assert torch.equal(model.get_input_embeddings().weight, table)
    prepared.undo()
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameters[name] for name in after)
    for name in set(prepared.packed.packed) - ({"lm_head"} if model.config.tie_word_embeddings else set()):
        assert torch.equal(model.get_submodule(name).weight, rounded.get_submodule(name).weight)


def test_int8_again_after_a_change() -> None:
    model = sharp_model("gpt2").half()
    prepared = prepare(model, "int8")
    kept = model.transformer.h[0].attn.c_attn.packed
    changed = torch.zeros_like(model.transformer.h[1].mlp.c_proj.weight)
    model.transformer.h[1].mlp.c_proj.weight.copy_(changed)
    assert prepared.is_outdated()
    again = prepared.prepare_again(thorough=False)
    assert not again.is_outdated()
    assert model.transformer.h[0].attn.c_attn.packed is kept
    assert not model.transformer.h[1].mlp.c_proj.packed.dense().any()
    assert again.num_blocks == 2
    before = logits_of(model)
    again.watched[0].data.as_strided((1,), (1,)).fill_(1)
    with pytest.raises(FrozenWeightsError, match="written to"):
        again.prepare_again(thorough=False)
    assert torch.equal(logits_of(model), before)
    again.undo()
    assert not any("forward" in vars(module) for module in model.modules())
