"""The operators on a CUDA device; everything that needs no device is tested elsewhere."""

from __future__ import annotations

import pytest
import torch
from ops.splice_cases import DTYPES, NUM_IDS, WIDTHS, make_case, strided
from tolerances import assert_close

from ruprompt_fast.errors import TokenIdError
from ruprompt_fast.ops import check_errors, resolve_markers, splice, splice_reference

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


def on_cuda(case):
    return case._replace(**{name: value.cuda() for name, value in case._asdict().items() if torch.is_tensor(value)})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", NUM_IDS)
def test_forward_and_gradient(count: int, width: int, dtype: torch.dtype) -> None:
    case = make_case(count, width, dtype)
    ids, tokens, prompts, first = on_cuda(case)
    prompts.requires_grad_()
    out = splice(ids, tokens, prompts, first)
    assert torch.equal(out.cpu(), splice_reference(*case))
    grad = torch.randn(count, width).to(dtype)
    (actual,) = torch.autograd.grad(out, prompts, grad.cuda())
    cpu_prompts = case.prompt_weight.double().requires_grad_()
    reference = splice(case.input_ids, case.token_weight.double(), cpu_prompts, first)
    (expected,) = torch.autograd.grad(reference, cpu_prompts, grad.double())
    assert_close(actual.cpu(), expected)


def test_layouts() -> None:
    case = make_case(60, 97)
    ids, tokens, prompts, first = on_cuda(case)
    out = splice(ids.view(6, 10).T, strided(tokens.cpu()).cuda(), prompts, first)
    assert torch.equal(out.cpu(), splice_reference(case.input_ids.view(6, 10).T, *case[1:]))


def test_no_synchronization() -> None:
    ids, tokens, prompts, first = on_cuda(make_case(60, 96))
    markers = torch.tensor([[100, 100, 1], [1, 2, 3]]).cuda()
    prompts.requires_grad_()
    splice(ids, tokens, prompts, first).sum().backward()
    resolve_markers(markers, [100], [120], [2])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        splice(ids, tokens, prompts, first).sum().backward()
        resolve_markers(markers, [100], [120], [2])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_id_in_neither_table_surfaces_at_the_check_and_at_the_next_call() -> None:
    ids, tokens, prompts, first = on_cuda(make_case(17, 96))
    bad = ids.clone()
    bad[5] = -3
    out = splice(bad, tokens, prompts, first)
    with pytest.raises(TokenIdError, match="id -3 at flat position 5"):
        check_errors()
    assert out[5].isnan().all()
    assert not out[:5].isnan().any()
    check_errors()
    splice(bad, tokens, prompts, first)
    torch.cuda.synchronize()
    with pytest.raises(TokenIdError, match="id -3 at flat position 5"):
        splice(ids, tokens, prompts, first)
    assert not splice(ids, tokens, prompts, first).isnan().any()


def test_graph_capture() -> None:
    ids, tokens, prompts, first = on_cuda(make_case(60, 96))
    prompts.requires_grad_()
    grad = torch.randn(60, 96).cuda()
    torch.autograd.grad(splice(ids, tokens, prompts, first), prompts, grad)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = splice(ids, tokens, prompts, first)
        (prompt_grad,) = torch.autograd.grad(out, prompts, grad)
    other = make_case(60, 96)
    ids.copy_(other.input_ids.flip(0))
    graph.replay()
    (expected,) = torch.autograd.grad(splice(ids, tokens, prompts, first), prompts, grad)
    assert torch.equal(out, splice(ids, tokens, prompts, first))
    assert torch.equal(prompt_grad, expected)
    ids[3] = -9
    graph.replay()
    with pytest.raises(TokenIdError, match="id -9 at flat position 3"):
        check_errors()


def test_compiled() -> None:
    ids, tokens, prompts, first = on_cuda(make_case(34, 96))
    prompts.requires_grad_()
    compiled = torch.compile(lambda *case: splice(*case).square().sum(), fullgraph=True)
    (actual,) = torch.autograd.grad(compiled(ids, tokens, prompts, first), prompts)
    (expected,) = torch.autograd.grad(splice(ids, tokens, prompts, first).square().sum(), prompts)
    torch.testing.assert_close(actual, expected)
