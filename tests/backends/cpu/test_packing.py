"""A model with packed linear layers computes what it computed before, and comes back as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
import transformers as tf
from tiny_models import FAMILIES, VOCAB, tiny_model
from tolerances import relative_error
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ruprompt_fast.backends.cpu.packing import CPU_FORMATS, pack_model
from ruprompt_fast.backends.packing.packed_layer import PackedConv1D, PackedLayer, PackedLinear
from ruprompt_fast.embedding import attach_prompts, detach_prompts
from ruprompt_fast.errors import FrozenWeightsError, TensorArgumentError
from ruprompt_fast.ops.cpu.int8_linear import Int8Weight
from ruprompt_fast.ops.cpu.packed_linear import can_pack
from ruprompt_fast.ops.packed_linear import PlainWeight

CPU = torch.device("cpu")
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if can_pack(dtype, CPU)]
# Logits of two layers, each rounding what it hands on to the dtype at other places than the fused ones.
LOGITS_ERROR = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def logits_of(model: PreTrainedModel) -> Tensor:
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model(ids, **decoder).logits


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype is tensor.dtype
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_the_way_back(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    before, state = logits_of(model), state_of(model)
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    handle = pack_model(model)
    assert handle.packed
    assert not any(type(module) is Conv1D for module in model.modules())
    assert relative_error(logits_of(model), before) <= LOGITS_ERROR[dtype]
    assert_same_state(model.state_dict(), state)

    handle.undo()
    assert dict(model.named_modules()) == modules
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameters[name] for name in after)
    assert_same_state(model.state_dict(), state)
    assert torch.equal(logits_of(model), before)
    handle.undo()
    assert dict(model.named_modules()) == modules


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"t5"}))
def test_every_linear_layer_is_packed(family: str) -> None:
    model = tiny_model(family)
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    handle = pack_model(model)
    assert sorted(handle.packed) == sorted(linear)
    assert not handle.skipped
    assert all(isinstance(model.get_submodule(name), PackedLayer) for name in linear)
    packed_numbers = sum(model.get_submodule(name).weight.numel() for name in linear)
    assert handle.num_bytes == 4 * packed_numbers


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama_tied"])
def test_plain_weights_are_released(family: str) -> None:
    model = tiny_model(family)
    tied = model.config.tie_word_embeddings
    storages = {
        name: weakref.ref(module.weight.untyped_storage())
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    table = model.get_input_embeddings().weight
    pack_model(model)
    gc.collect()
    kept = {name for name, storage in storages.items() if storage() is not None}
    assert kept == ({"lm_head"} if tied else set())
    assert model.get_input_embeddings().weight is table
    assert table.numel() > 0


def test_activations_are_fused() -> None:
    fused = {"gpt2": "gelu_tanh", "gpt_neox": "gelu", "opt": "relu", "llama": "silu", "gemma3": "gelu_tanh"}
    for family, activation in fused.items():
        model = tiny_model(family)
        pack_model(model)
        found = [m.activation for m in model.modules() if isinstance(m, PackedLayer) and m.activation]
        assert found == [activation] * 2, family


def test_gelu_that_cannot_be_fused_takes_one_pass() -> None:
    torch.manual_seed(0)
    config = tf.GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
    )
    model = tf.GPTNeoForCausalLM(config).eval()
    act = model.transformer.h[0].mlp.act
    before = logits_of(model)
    handle = pack_model(model)
    assert model.transformer.h[0].mlp.act is not act
    assert relative_error(logits_of(model), before) <= LOGITS_ERROR[torch.float32]
    handle.undo()
    assert model.transformer.h[0].mlp.act is act


def test_layers_that_are_left_alone_are_named() -> None:
    class OwnLinear(nn.Linear):
        pass

    model = tiny_model("llama")
    block = model.model.layers[0]
    block.mlp.up_proj = OwnLinear(32, 64, bias=False)
    block.mlp.down_proj.double()
    block.self_attn.q_proj.register_forward_hook(lambda *_: None)
    handle = pack_model(model)
    names = ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
    assert {name.removeprefix("model.layers.0."): reason for name, reason in handle.skipped.items()} == dict(
        zip(
            names,
            (
                "OwnLinear is a class of its own",
                "nothing packs torch.float64 [32, 64] on cpu",
                "it has hooks",
            ),
            strict=True,
        )
    )
    assert type(block.mlp.up_proj) is OwnLinear
    t5 = pack_model(tiny_model("t5"))
    assert all(name.endswith("DenseReluDense.wo") for name in t5.skipped)
    assert set(t5.skipped.values()) == {"T5DenseActDense reads its weight"}


def test_save_pretrained_writes_the_plain_model(tmp_path: Path) -> None:
    for family in ("gpt2", "llama"):
        model = tiny_model(family)
        model.save_pretrained(tmp_path / family / "plain")
        pack_model(model)
        model.save_pretrained(tmp_path / family / "packed")
        plain, packed = ((tmp_path / family / kind / "model.safetensors").read_bytes() for kind in ("plain", "packed"))
        assert plain == packed
        loaded = type(model).from_pretrained(tmp_path / family / "packed")
        assert_same_state(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_load_state_dict_packs_anew(family: str) -> None:
    model, other = tiny_model(family), tiny_model(family, seed=1)
    handle = pack_model(model)
    assert not any(model.load_state_dict(other.state_dict()))
    assert relative_error(logits_of(model), logits_of(other)) <= LOGITS_ERROR[torch.float32]
    handle.undo()
    assert_same_state(handle.model.state_dict(), other.state_dict())


def test_load_state_dict_reports_what_does_not_fit() -> None:
    layer = PackedLinear(torch.ones(3, 5), formats=CPU_FORMATS)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: \[5, 3\], expected \[3, 5\]"):
        layer.load_state_dict({"weight": torch.ones(5, 3)})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        layer.load_state_dict({})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "scale"'):
        layer.load_state_dict({"weight": torch.ones(3, 5), "scale": torch.ones(1)})


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_conversion_packs_anew(family: str) -> None:
    model, expected = tiny_model(family), tiny_model(family).to(torch.bfloat16).float().double()
    handle = pack_model(model)
    model.to(torch.bfloat16)
    assert model.lm_head.weight.dtype is torch.bfloat16
    model.float().double()
    assert relative_error(logits_of(model), logits_of(expected)) <= 1e-12
    handle.undo()
    assert_same_state(handle.model.state_dict(), expected.state_dict())


def test_conversion_to_what_it_is_already_keeps_the_packed_weights() -> None:
    model = tiny_model("llama")
    pack_model(model)
    packed = model.lm_head._weight
    model.to("cpu", torch.float32)
    assert model.lm_head._weight is packed
    model.half()
    assert isinstance(model.lm_head._weight, PlainWeight) or can_pack(torch.float16, CPU)


def test_copies_are_independent() -> None:
    model = tiny_model("gpt2")
    before = logits_of(model)
    pack_model(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits_of(twin), logits_of(model))
    model.load_state_dict(tiny_model("gpt2", seed=1).state_dict())
    assert relative_error(logits_of(twin), before) <= LOGITS_ERROR[torch.float32]


def test_ties_hold_while_packed() -> None:
    model = tiny_model("gpt2")
    pack_model(model)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    before = logits_of(model)
    model.tie_weights()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert "lm_head.weight" not in dict(model.named_parameters(remove_duplicate=False))
    assert relative_error(logits_of(model), 2 * before) <= 2e-6
    model.resize_token_embeddings(VOCAB + 5)
    assert logits_of(model).shape[-1] == VOCAB + 5


def test_prompts_attach_to_a_packed_model() -> None:
    for family in ("gpt2", "llama"):
        model = tiny_model(family)
        before = logits_of(model)
        attach_prompts(model, [])
        handle = pack_model(model)
        assert relative_error(logits_of(model), before) <= LOGITS_ERROR[torch.float32]
        detach_prompts(model)
        handle.undo()
        assert torch.equal(logits_of(model), before)


def test_packing_inside_inference_mode() -> None:
    model = tiny_model("gpt2")
    with torch.inference_mode():
        handle = pack_model(model)
        handle.undo()
    model(torch.tensor([[3, 4]])).logits.sum().backward()
    assert model.transformer.h[0].mlp.c_fc.weight.grad is not None


def test_gradients_are_refused() -> None:
    layer = PackedLinear(torch.ones(3, 5), nn.Parameter(torch.ones(3)), formats=CPU_FORMATS)
    with pytest.raises(FrozenWeightsError, match="unpack it before training"):
        layer(torch.ones(2, 5, requires_grad=True))
    assert not layer(torch.ones(2, 5)).requires_grad
    with torch.no_grad():
        assert torch.equal(layer(torch.ones(2, 5, requires_grad=True)), torch.full((2, 3), 6.0))


def test_bad_inputs_are_named() -> None:
    layer = PackedConv1D(torch.ones(5, 3), formats=CPU_FORMATS)
    assert (layer.in_features, layer.out_features) == (5, 3)
    with pytest.raises(TensorArgumentError, match=r"the input must be \[\.\.\., 5\]"):
        layer(torch.ones(2, 4))
    assert "in_features=5, out_features=3, bias=False" in repr(layer)


def rounded_to_int8(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every linear weight replaced by its int8 form, unpacked; ties are cut."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            weight = module.weight.detach()
            plain = Int8Weight(weight.t() if type(module) is Conv1D else weight).dense()
            module.weight = nn.Parameter(plain.t().contiguous() if type(module) is Conv1D else plain)
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "llama_tied", "gemma3", "opt"])
def test_int8_computes_with_the_rounded_weights(family: str) -> None:
    model, rounded = tiny_model(family), rounded_to_int8(tiny_model(family))
    before, table = logits_of(model), model.get_input_embeddings().weight.clone()
    handle = pack_model(model, quantization="int8")
    assert not handle.skipped
    assert handle.num_bytes < 0.4 * 4 * sum(model.get_submodule(name).weight.numel() for name in handle.packed)
    logits = logits_of(model)
    assert relative_error(logits, logits_of(rounded)) <= LOGITS_ERROR[torch.float32]
    assert 0 < relative_error(logits, before) < 0.05
    assert torch.equal(model.get_input_embeddings().weight, table)

    handle.undo()
    tied = model.config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    for name in set(handle.packed) - ({"lm_head"} if tied else set()):
        assert torch.equal(model.get_submodule(name).weight, rounded.get_submodule(name).weight)


def test_int8_weights_keep_their_values_in_another_dtype() -> None:
    model = tiny_model("llama")
    pack_model(model, quantization="int8")
    values, scales = model.lm_head._weight.quantized()
    model.to(torch.bfloat16)
    assert model.lm_head._weight.dtype is torch.bfloat16
    assert logits_of(model).dtype is torch.bfloat16
    model.float().double().float()
    for actual, expected in zip(model.lm_head._weight.quantized(), (values, scales), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_int8_leaves_layers_that_are_not_finite() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight[2, 3] = float("nan")
    handle = pack_model(model, quantization="int8")
    assert handle.skipped == {"transformer.h.0.attn.c_attn": "its weight contains NaN or infinity"}


def test_int8_saves_and_loads(tmp_path: Path) -> None:
    model, rounded = tiny_model("llama"), rounded_to_int8(tiny_model("llama"))
    pack_model(model, quantization="int8")
    model.save_pretrained(tmp_path)
    assert_same_state(type(model).from_pretrained(tmp_path).state_dict(), rounded.state_dict())
    model.load_state_dict(tiny_model("llama", seed=1).state_dict())
    other = rounded_to_int8(tiny_model("llama", seed=1))
    assert relative_error(logits_of(model), logits_of(other)) <= LOGITS_ERROR[torch.float32]
