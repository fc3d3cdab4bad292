"""The operator inside torch.compile: one graph, the same numbers, no recompilation for another length."""

from __future__ import annotations

import pytest
import torch
from ops.splice_cases import make_case
from torch import Tensor

from ruprompt_fast.errors import TokenIdError
from ruprompt_fast.ops import resolve_markers, splice


def loss(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, first_prompt_id: int) -> Tensor:
    rows = splice(input_ids + 0, token_weight * 1.0, prompt_weight, first_prompt_id)
    return (rows * rows.detach().cos()).sum()


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("trained", [(False, True), (True, True)])
def test_forward_and_backward_in_one_graph(backend: str, trained: tuple[bool, bool]) -> None:
    ids, tokens, prompts, first = make_case(34, 96)
    ids = ids.view(2, 17)
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        token_weight = tokens.clone().requires_grad_(trained[0])
        prompt_weight = prompts.clone().requires_grad_(trained[1])
        value = function(ids, token_weight, prompt_weight, first)
        value.backward()
        results.append((value.detach(), token_weight.grad, prompt_weight.grad))
    eager, compiled = results
    torch.testing.assert_close(compiled, eager)


def test_dynamic_shapes_compile_once() -> None:
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda *case: splice(*case), fullgraph=True, backend=backend, dynamic=True)
    for count in (5, 17, 33):
        case = make_case(count, 6)
        assert torch.equal(compiled(*case), splice(*case))
    assert len(graphs) == 1


def test_error_inside_a_graph() -> None:
    ids, tokens, prompts, first = make_case(17, 6)
    compiled = torch.compile(lambda *case: splice(*case), fullgraph=True, backend="aot_eager")
    ids[3] = -4
    with pytest.raises(TokenIdError, match="id -4 at flat position 3"):
        compiled(ids, tokens, prompts, first)


def test_markers_in_one_graph() -> None:
    def embed(input_ids: Tensor, tokens: Tensor, prompts: Tensor) -> Tensor:
        return splice(resolve_markers(input_ids, [100], [120], [3]), tokens, prompts, 120)

    _, tokens, prompts, _ = make_case(1, 6)
    ids = torch.tensor([[100, 100, 100, 7], [1, 2, 3, 4]])
    compiled = torch.compile(embed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids, tokens, prompts), embed(ids, tokens, prompts))
