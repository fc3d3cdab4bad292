"""Attention of packed sequences after shared prefixes: forward and backward equal to one sequence at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.shared_prefix_cases import MIXED, Case, check, gathered_by, plain_kernel
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops import NO_PREFIX, PackedSequences, shared_prefix_attention
from ruprompt_fast.ops.cuda.shared_prefix_attention import gathered_keys

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
HEADS = [(4, 4), (4, 2), (6, 1)]
# A token that sees itself alone has gradients of zero for query and key, which have no relative error.
SETTINGS: list[dict[str, float]] = [
    {},
    {"sliding_window": 7},
    {"sliding_window": 2},
    {"sliding_window": 1000},
    {"softcap": 2.0},
    {"softcap": 9.0, "sliding_window": 20},
]
# The ways to compute it that need no card: the operator's on a CPU, and CUDA's by a kernel in plain PyTorch.
WAYS: dict[str, Any] = {
    "cpu": shared_prefix_attention,
    "gathered": gathered_by(plain_kernel(takes_groups=True)),
    "gathered by head": gathered_by(plain_kernel(takes_groups=False)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_reference(settings: dict[str, float], heads: tuple[int, int], dtype: torch.dtype) -> None:
    check(Case(MIXED, heads, dtype), shared_prefix_attention, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("way", ["gathered", "gathered by head"])
def test_gathered_keys_give_the_same(way: str, window: int | None, heads: tuple[int, int], dtype: torch.dtype) -> None:
    check(Case(MIXED, heads, dtype), WAYS[way], sliding_window=window)


@pytest.mark.parametrize("dim", [1, 3, 64, 80])
def test_any_head_size(dim: int) -> None:
    check(Case(MIXED, dim=dim), shared_prefix_attention)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 130])
def test_any_length_after_a_given_prefix(length: int, way: str) -> None:
    check(Case(PackedSequences((length, 2, length), (0, 0, NO_PREFIX))), WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_prefixes_that_nobody_uses_get_no_gradient(way: str) -> None:
    case = Case(PackedSequences((4, 4), (NO_PREFIX, NO_PREFIX), 1))
    *_, given_key, given_value = case.run(WAYS[way])
    assert not given_key.any()
    assert not given_value.any()


@pytest.mark.parametrize("way", WAYS)
def test_is_causal_and_sees_nothing_of_its_neighbours(way: str) -> None:
    case = Case(MIXED)
    before = case.run(WAYS[way])[0]
    with torch.no_grad():
        case.key[30] += 1  # inside the third sequence, tokens 23 .. 31
    after = case.run(WAYS[way])[0]
    assert torch.equal(before[:30], after[:30])
    assert not torch.equal(before[30:32], after[30:32])
    assert torch.equal(before[32:], after[32:])


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from([NO_PREFIX, 0, 1, 2])), min_size=1, max_size=8),
    st.one_of(st.none(), st.integers(2, 30)),
)
def test_any_packing(texts: list[tuple[int, int]], window: int | None) -> None:
    lens, prefix_of = zip(*texts, strict=True)
    case = Case(PackedSequences((6, 1, *lens), (NO_PREFIX, NO_PREFIX, *prefix_of), 2), dtype=torch.float64)
    for function in WAYS.values():
        check(case, function, sliding_window=window)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_by_differences(way: str) -> None:
    case = Case(PackedSequences((2, 1, 3, 2), (NO_PREFIX, NO_PREFIX, 0, 2), 2), dtype=torch.float64, dim=2)

    def run(query: Tensor, key: Tensor, value: Tensor, given_key: Tensor, given_value: Tensor) -> Tensor:
        return WAYS[way](query, key, value, [(given_key, given_value)], case.sequences, scaling=0.5)

    assert torch.autograd.gradcheck(run, tuple(case.leaves))


def test_views_of_one_projection_need_no_copy_of_their_own() -> None:
    """Query, key and value as GPT-2 has them, with gradients that flow into one tensor."""
    fused = torch.randn(95, 3, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    grads = [
        torch.autograd.grad(function(*fused.unbind(1), [], MIXED, scaling=0.3).cos().sum(), fused)[0]
        for function in WAYS.values()
    ]
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])


def test_runs_join_neighbours_of_one_prefix() -> None:
    assert MIXED.prefix_runs() == [(23, 33, 0), (33, 45, 1), (62, 95, 0)]


def test_tables_are_made_once_for_all_layers() -> None:
    device = torch.device("cpu")
    tables = gathered_keys(MIXED, (5,), device)
    assert gathered_keys(MIXED, (5,), device) is tables
    assert gathered_keys(PackedSequences(MIXED.lens, MIXED.prefix_of, 2), (5,), device) is tables
    assert gathered_keys(MIXED, (6,), device) is not tables
    assert tables.query_starts.tolist() == [0, 20, 23, 32, 33, 45, 62, 95]
    assert tables.key_starts.tolist() == [0, 20, 23, 52, 73, 88, 105, 158]
    assert tables.rows[23:52].tolist() == [*range(20), *range(23, 32)]
    assert (tables.most_queries, tables.most_keys) == (33, 53)
    starts = tables.source_starts.tolist()
    assert tables.order[starts[3] : starts[4]].tolist() == [3, 26, 55, 108]  # the fourth key, and after it three times
    assert starts[95:] == [158] * 6  # nobody follows the given prefix
    # Another alignment would be another kernel to compile.
    assert all(table.storage_offset() % 2 == 0 for table in (tables.rows, tables.order, tables.source_starts))


@pytest.mark.parametrize(
    ("lens", "prefix_of", "num_computed"),
    [
        ((3, 4), (NO_PREFIX, 3), 0),
        ((3, 4), (-2, 0), 0),
        ((3, 3), (NO_PREFIX, 0), 0),
        ((), (), 0),
        ((7,), (), 0),
        ((3, 4), (NO_PREFIX, 0), 3),
        ((3, 4), (NO_PREFIX, 0), -1),
    ],
)
def test_sequences_that_contradict_the_tensors(
    lens: tuple[int, ...], prefix_of: tuple[int, ...], num_computed: int
) -> None:
    case = Case(PackedSequences((3, 4), (NO_PREFIX, NO_PREFIX)))
    with pytest.raises(TensorArgumentError):
        shared_prefix_attention(
            case.query, case.key, case.value, [case.given], PackedSequences(lens, prefix_of, num_computed), scaling=1.0
        )


def test_heads_that_do_not_fit() -> None:
    case, other = Case(MIXED, (4, 2)), Case(MIXED, (4, 3))
    with pytest.raises(TensorArgumentError, match="multiple"):
        shared_prefix_attention(case.query, other.key, other.value, [], MIXED, scaling=1.0)
    with pytest.raises(TensorArgumentError, match="a prefix must have the heads"):
        shared_prefix_attention(case.query, case.key, case.value, [other.given], MIXED, scaling=1.0)
