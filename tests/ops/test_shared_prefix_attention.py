"""Attention of packed sequences after shared prefixes: forward and backward equal to one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import ATTENTION_GRADIENT_ERROR, assert_close
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops import (
    NO_PREFIX,
    PackedSequences,
    shared_prefix_attention,
    shared_prefix_attention_reference,
)

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

# Two prefixes that are computed in the batch, texts after them, and some with none.
MIXED = PackedSequences((20, 3, 9, 1, 12, 17, 33), (NO_PREFIX, NO_PREFIX, 0, 0, 1, NO_PREFIX, 0))


class Case:
    """Random tensors; the prefixes are the first sequences of the batch, and one more that is given."""

    def __init__(
        self,
        sequences: PackedSequences,
        heads: tuple[int, int] = (4, 2),
        dtype: torch.dtype = torch.float32,
        dim: int = 16,
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(tokens: int, num_heads: int) -> Tensor:
            wide = torch.randn(tokens, num_heads, dim, generator=generator, dtype=torch.float64)
            return wide.to(dtype).requires_grad_()

        tokens = sequences.num_tokens
        self.sequences = sequences
        self.query, self.key, self.value = random(tokens, heads[0]), random(tokens, heads[1]), random(tokens, heads[1])
        self.given = (random(5, heads[1]), random(5, heads[1]))
        self.leaves = [self.query, self.key, self.value, *self.given]

    def run(self, function: Callable[..., Tensor], **settings: float | None) -> list[Tensor]:
        """The output and the gradients of a fixed function of it."""
        lens = [*self.sequences.lens[:2], self.sequences.num_tokens - sum(self.sequences.lens[:2])]
        keys, values = self.key.split(lens), self.value.split(lens)
        prefixes = [(keys[0], values[0]), (keys[1], values[1]), self.given]
        out = function(self.query, self.key, self.value, prefixes, self.sequences, scaling=0.25, **settings)
        weights = torch.arange(out.numel()).view_as(out).cos().to(out.dtype)
        grads = torch.autograd.grad((out * weights).sum(), self.leaves, allow_unused=True, materialize_grads=True)
        return [out.detach(), *grads]


def check(case: Case, **settings: float | None) -> None:
    actual = case.run(shared_prefix_attention, **settings)
    expected = case.run(shared_prefix_attention_reference, **settings)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, ATTENTION_GRADIENT_ERROR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_reference(settings: dict[str, float], heads: tuple[int, int], dtype: torch.dtype) -> None:
    check(Case(MIXED, heads, dtype), **settings)


@pytest.mark.parametrize("dim", [1, 3, 64, 80])
def test_any_head_size(dim: int) -> None:
    check(Case(MIXED, dim=dim))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 130])
def test_any_length_after_a_given_prefix(length: int) -> None:
    check(Case(PackedSequences((length, 2, length), (2, 2, NO_PREFIX))))


def test_prefixes_that_nobody_uses_get_no_gradient() -> None:
    case = Case(PackedSequences((4, 4), (NO_PREFIX, NO_PREFIX)))
    *_, given_key, given_value = case.run(shared_prefix_attention)
    assert not given_key.any()
    assert not given_value.any()


def test_is_causal_and_sees_nothing_of_its_neighbours() -> None:
    case = Case(MIXED)
    before = case.run(shared_prefix_attention)[0]
    with torch.no_grad():
        case.key[30] += 1  # inside the third sequence, tokens 23 .. 31
    after = case.run(shared_prefix_attention)[0]
    assert torch.equal(before[:30], after[:30])
    assert not torch.equal(before[30:32], after[30:32])
    assert torch.equal(before[32:], after[32:])


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from([NO_PREFIX, 0, 1, 2])), min_size=1, max_size=8),
    st.one_of(st.none(), st.integers(2, 30)),
)
def test_any_packing(texts: list[tuple[int, int]], window: int | None) -> None:
    lens, prefix_of = zip(*texts, strict=True)
    check(Case(PackedSequences((6, 1, *lens), (NO_PREFIX, NO_PREFIX, *prefix_of))), sliding_window=window)


def test_gradients_by_differences() -> None:
    case = Case(PackedSequences((2, 1, 3, 2), (NO_PREFIX, NO_PREFIX, 0, 2)), dtype=torch.float64, dim=2)

    def run(query: Tensor, key: Tensor, value: Tensor, given_key: Tensor, given_value: Tensor) -> Tensor:
        prefixes = [(key[:2], value[:2]), (key[2:3], value[2:3]), (given_key, given_value)]
        return shared_prefix_attention(query, key, value, prefixes, case.sequences, scaling=0.5)

    assert torch.autograd.gradcheck(run, tuple(case.leaves))


def test_runs_join_neighbours_of_one_prefix() -> None:
    assert MIXED.prefix_runs() == [(23, 33, 0), (33, 45, 1), (62, 95, 0)]


@pytest.mark.parametrize(
    ("lens", "prefix_of"), [((3, 4), (NO_PREFIX, 3)), ((3, 4), (-2, 0)), ((3, 3), (NO_PREFIX, 0)), ((), ()), ((7,), ())]
)
def test_sequences_that_contradict_the_tensors(lens: tuple[int, ...], prefix_of: tuple[int, ...]) -> None:
    case = Case(PackedSequences((3, 4), (NO_PREFIX, NO_PREFIX)))
    with pytest.raises(TensorArgumentError):
        shared_prefix_attention(
            case.query, case.key, case.value, [case.given], PackedSequences(lens, prefix_of), scaling=1.0
        )


def test_heads_that_do_not_fit() -> None:
    case, other = Case(MIXED, (4, 2)), Case(MIXED, (4, 3))
    with pytest.raises(TensorArgumentError, match="multiple"):
        shared_prefix_attention(case.query, other.key, other.value, [], MIXED, scaling=1.0)
    with pytest.raises(TensorArgumentError, match="a prefix must have the heads"):
        shared_prefix_attention(case.query, case.key, case.value, [other.given], MIXED, scaling=1.0)
