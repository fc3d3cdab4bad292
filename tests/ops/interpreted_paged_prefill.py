"""The prefill kernels on the CPU; run by test_kernels_interpreted.py, or by hand with TRITON_INTERPRET=1."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from ops.attention_cases import Heads, Row
from ops.decode_cases import BORDERS, DTYPES
from ops.prefill_cases import PrefillCase, make_prefill_case
from tolerances import INTERPRETED_ERROR, assert_close
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops import paged_prefill, paged_prefill_reference
from ruprompt_fast.ops.cuda import gathered_prefill as gathered
from ruprompt_fast.ops.cuda.cards import V100, Card
from ruprompt_fast.ops.cuda.paged_decode import paged_decode_cuda
from ruprompt_fast.ops.cuda.paged_prefill import paged_prefill_cuda
from ruprompt_fast.ops.cuda.varlen_attention import Packing, VarlenKernel

H100 = Card("H100", (9, 0))
CARDS = pytest.mark.parametrize("card", [V100, H100], ids=lambda card: card.name)
# A chunk of a longer context, a sequence that decodes, one without query tokens, all of a prompt.
MIXED = [Row(19, 19), Row(70, 9), Row(40, 1), Row(0, 0), Row(33, 33), Row(5, 5)]


def check(case: PrefillCase, card: Card = V100, **settings: float) -> None:
    expected = case.run(paged_prefill_reference, **settings)
    assert_close(case.run(paged_prefill_cuda, card=card, **settings), expected, INTERPRETED_ERROR)


@CARDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [Heads(4, 2, 16, 16), Heads(3, 1, 5, 24), Heads(2, 2, 96, 33)], ids=str)
def test_kernel(shape: Heads, dtype: torch.dtype, card: Card) -> None:
    if card.has_fast_dot and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    check(make_prefill_case(MIXED, shape, dtype, padding=5), card)


@CARDS
def test_at_the_borders_of_pages(card: Card) -> None:
    rows = [Row(n, min(n, queries)) for n in BORDERS for queries in (1, 40)]
    check(make_prefill_case(rows, Heads(1, 1), torch.float16), card)


@CARDS
@pytest.mark.parametrize(
    "settings", [{"sliding_window": 1}, {"sliding_window": 16}, {"sliding_window": 33, "softcap": 1.5}, {"softcap": 20}]
)
def test_windows_and_soft_caps(settings: dict, card: Card) -> None:
    check(make_prefill_case([Row(99, 50), Row(17, 17), Row(90, 1)], Heads(2, 1), padding=1), card, **settings)


@pytest.mark.parametrize("window", [None, 100])
def test_a_long_context(window: int | None) -> None:
    case = make_prefill_case([Row(4097, 3), Row(4097, 1)], Heads(1, 1, 32, 32), torch.float16)
    check(case, H100, sliding_window=window)


def test_heads_of_256() -> None:
    check(make_prefill_case([Row(40, 20)], Heads(2, 1, 256, 256), torch.float16, padding=2), V100)
    check(make_prefill_case([Row(40, 20)], Heads(2, 1, 256, 256), torch.float16, padding=2), H100)


@pytest.mark.parametrize("heads", [16, 17, 40])
def test_more_heads_in_a_group_than_a_tile_has_rows(heads: int) -> None:
    check(make_prefill_case([Row(20, 3), Row(7, 1)], Heads(heads, 1, 128, 16), padding=1))


def test_heads_that_are_too_large() -> None:
    case = make_prefill_case([Row(4, 4)], Heads(1, 1, 257, 16))
    with pytest.raises(TensorArgumentError, match="up to 256 numbers; found 257"):
        case.run(paged_prefill)


def test_nothing_to_do() -> None:
    assert make_prefill_case([]).run(paged_prefill).shape == (0, 4, 16)
    assert not make_prefill_case([], padding=70).run(paged_prefill).any()
    assert not make_prefill_case([Row(0, 0), Row(0, 0)], padding=2).run(paged_prefill).any()


@CARDS
def test_a_step_that_only_decodes_is_decoding(card: Card) -> None:
    case = make_prefill_case([Row(40, 1), Row(1, 1), Row(300, 1)], dtype=torch.float16)
    settings = {"sliding_window": 33, "softcap": 1.5}
    actual = case.run(paged_prefill_cuda, card=card, host_lens=case.host_lens, **settings)
    arguments = case.query, case.key_pages, case.value_pages, case.block_tables, case.context_lens
    expected = paged_decode_cuda(*arguments, scaling=case.scaling, card=card, **settings)
    assert torch.equal(actual, expected)
    check(case, card, **settings)


def test_any_strides_of_queries_and_tables() -> None:
    case = make_prefill_case(MIXED)
    fused = torch.cat([case.query, case.query], 1)[:, 4:]
    assert torch.equal(case._replace(query=fused).run(paged_prefill), case.run(paged_prefill))


def attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, window: int | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What torch's kernel computes, which runs on a card only."""
    assert window is None
    out = query.new_zeros((*query.shape[:2], value.shape[2]))
    queries, keys = packing.query_starts.tolist(), packing.key_starts.tolist()
    assert packing.most_queries == max(b - a for a, b in pairwise(queries))
    assert packing.most_keys == max(b - a for a, b in pairwise(keys))
    assert keys[-1] == len(key) == len(value)
    for i in range(len(queries) - 1):
        q = query[queries[i] : queries[i + 1]].transpose(0, 1)
        k, v = (part[keys[i] : keys[i + 1]].transpose(0, 1) for part in (key, value))
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        part = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scaling)
        out[queries[i] : queries[i + 1]] = part.transpose(0, 1)
    return out, ()


@pytest.mark.parametrize("most_tokens", [1, 60, 10**6])
@pytest.mark.parametrize("shape", [Heads(4, 2, 16, 24), Heads(2, 2, 96, 96)], ids=str)
def test_gathered(monkeypatch: pytest.MonkeyPatch, shape: Heads, most_tokens: int) -> None:
    case = make_prefill_case(MIXED, shape, padding=5)
    bytes_of_token = shape.heads * (shape.head_dim + shape.value_dim) * 4
    monkeypatch.setattr(gathered, "MOST_GATHERED_BYTES", most_tokens * bytes_of_token)
    stand_in = VarlenKernel("attention", False, attend, attend)
    actual = case.run(gathered.gathered_prefill, case.host_lens, stand_in)
    assert_close(actual, case.run(paged_prefill_reference), INTERPRETED_ERROR)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gathering_moves_bits(dtype: torch.dtype) -> None:
    case = make_prefill_case([Row(n, n) for n in (0, 1, 16, 33)], Heads(6, 2, 40, 8), dtype)
    starts = torch.tensor([0, 0, 1, 17, 50], dtype=torch.int32)
    packing = Packing(case.query_starts, starts, 33, 33)
    key = gathered.gather_pages(case.key_pages, case.block_tables, packing, 6, 50)
    tokens = case.key_pages[case.block_tables[3, :3].long()].transpose(1, 2).flatten(0, 1)[:33]
    assert torch.equal(key[17:], tokens.repeat_interleave(3, 1))
    assert key[:17].isfinite().all()
