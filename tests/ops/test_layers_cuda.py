"""The kernels of frozen layers on a CUDA device."""

from __future__ import annotations

import pytest
import torch
from ops.norm_cases import DTYPES, KINDS, WIDTHS, make_case
from tiny_models import sharp_model
from tolerances import PRODUCT_ERROR, RELATIVE_ERROR, assert_close, relative_error
from torch import Tensor

from ruprompt_fast.backends.cuda.layers import prepare_layers
from ruprompt_fast.ops.activation import Activation
from ruprompt_fast.ops.add_norm import NormKind, add_norm, add_norm_reference, norm
from ruprompt_fast.ops.cuda.cards import card_of
from ruprompt_fast.ops.cuda.int8_linear import Int8Weight
from ruprompt_fast.ops.int8_linear import int8_linear_reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# A sum, a weight or a normalized value that is rounded to the dtype on the way.
ROUNDED_ERROR = {**PRODUCT_ERROR, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("in_features", "out_features", "dtype"),
    [
        *[(97, 37, dtype) for dtype in DTYPES],
        (1536, 4608, torch.float16),
        (2048, 50257, torch.float16),
        (8192, 2048, torch.bfloat16),
    ],
)
def test_int8_linear(in_features: int, out_features: int, dtype: torch.dtype) -> None:
    weight = Int8Weight((random(out_features, in_features) / in_features**0.5).to(dtype).cuda())
    bias = random(out_features, seed=1).to(dtype).cuda()
    for rows in (1, 2, 3, 5, 16, 17, 64, 65, 300):
        x = random(rows, in_features, seed=rows).to(dtype).cuda()
        assert_close(weight.linear(x, bias), int8_linear_reference(x, *weight.quantized(), bias), ROUNDED_ERROR)
        if rows in (3, 65):
            assert_close(weight.linear(x), int8_linear_reference(x, *weight.quantized()), ROUNDED_ERROR)


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu", "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(dtype: torch.dtype, activation: Activation) -> None:
    weight = Int8Weight((random(96, 64) / 8).to(dtype).cuda())
    for rows in (3, 7, 70):
        x = (3 * random(rows, 64, seed=rows)).to(dtype).cuda()
        expected = int8_linear_reference(x, *weight.quantized(), None, activation)
        assert_close(weight.linear(x, None, activation), expected, ROUNDED_ERROR)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [*WIDTHS, 16384, 16385])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms(dtype: torch.dtype, width: int, kind: NormKind) -> None:
    x, residual, weight, bias, eps, _ = make_case((65, width), dtype, kind)
    x, residual, weight = x.cuda(), residual.cuda(), weight.cuda()
    case = (x, residual, weight, None if bias is None else bias.cuda(), eps, kind)
    total, normalized = add_norm(*case)
    expected_total, expected = add_norm_reference(*case)
    assert torch.equal(total, expected_total)
    allowed = {**RELATIVE_ERROR, torch.float16: 2**-10, torch.bfloat16: 2**-7}
    assert_close(normalized, expected, allowed)
    assert_close(norm(total, *case[2:]), expected, allowed)


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_a_model_in_a_graph(family: str, quantization: str | None) -> None:
    model, ids = sharp_model(family).half().cuda(), torch.arange(3, 12)[None].cuda()
    positions = torch.arange(9)[None].cuda()
    model.config.pad_token_id = None
    with torch.inference_mode():
        expected = model(ids, position_ids=positions, use_cache=False).logits
        prepare_layers(model, quantization, card_of(ids.device))
        eager = model(ids, position_ids=positions, use_cache=False).logits
        assert relative_error(eager, expected) <= (0.1 if quantization else 5e-3)
        inner, embeds = model.get_decoder(), model.get_input_embeddings()(ids)
        block = (inner.h if family == "gpt2" else inner.layers)[0]
        norm = block.ln_2 if family == "gpt2" else block.post_attention_layernorm
        replay = torch.cuda.CUDAGraph()
        with torch.cuda.graph(replay):
            captured = norm(block.mlp(embeds))
        replay.replay()
        assert torch.equal(captured, norm(block.mlp(embeds)))


def test_no_synchronization() -> None:
    weight = Int8Weight(random(64, 96).half().cuda())
    inputs = [random(rows, 96).half().cuda() for rows in (1, 7, 70)]
    case = [part.cuda() if torch.is_tensor(part) else part for part in make_case((3, 96), torch.float16, "rms_norm")]
    weight.linear(inputs[2])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x in inputs:
            weight.linear(x)
        add_norm(*case)
    finally:
        torch.cuda.set_sync_debug_mode("default")
