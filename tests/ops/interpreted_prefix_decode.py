"""Decoding after shared prefixes on the CPU; run by test_kernels_interpreted.py, or with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from ops.attention_cases import Heads
from ops.decode_cases import DTYPES
from ops.prefix_cases import Group, PrefixCase, make_prefix_case
from tolerances import INTERPRETED_ERROR, assert_close

from ruprompt_fast.ops import paged_decode, prefix_decode, prefix_decode_reference
from ruprompt_fast.ops.cuda.cards import V100, Card
from ruprompt_fast.ops.cuda.prefix_decode import prefix_decode_cuda

H100 = Card("H100", (9, 0))
CARDS = pytest.mark.parametrize("card", [V100, H100], ids=lambda card: card.name)
# A group without rows, rows that share nothing, and a prefix and a rest that both are in the second part of 256 tokens.
GROUPS = [Group(32, (33, 47, 32)), Group(0, (5, 0)), Group(16, (31,)), Group(0, ()), Group(272, (273, 300))]


def check(case: PrefixCase, card: Card = V100, **settings: float) -> None:
    expected = case.run(prefix_decode_reference, **settings)
    assert_close(case.run(prefix_decode_cuda, card=card, **settings), expected, INTERPRETED_ERROR)


@CARDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel(dtype: torch.dtype, card: Card) -> None:
    if card.has_fast_dot and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    check(make_prefix_case(GROUPS, Heads(2, 1, 16, 24), dtype, padding=3), card)


@CARDS
@pytest.mark.parametrize("settings", [{"sliding_window": 1}, {"sliding_window": 40, "softcap": 1.5}, {"softcap": 20}])
def test_windows_and_soft_caps(settings: dict, card: Card) -> None:
    check(make_prefix_case(GROUPS, Heads(1, 1), padding=1), card, **settings)


@pytest.mark.parametrize("shape", [Heads(3, 1, 96, 96), Heads(20, 1, 128, 8), Heads(2, 2, 256, 256)], ids=str)
def test_heads(shape: Heads) -> None:
    for card in (V100, H100):
        check(make_prefix_case([Group(32, (40, 50)), Group(16, (20,))], shape, torch.float16), card)


def test_a_prefix_that_ends_with_a_part() -> None:
    check(make_prefix_case([Group(256, (256, 257, 513))], Heads(1, 1)))


def test_a_long_prefix() -> None:
    check(make_prefix_case([Group(4096, (4097, 4112))], Heads(1, 1), torch.float16), H100)


def test_more_rows_than_a_tile_has() -> None:
    check(make_prefix_case([Group(16, tuple(range(17, 57)))], Heads(1, 1), torch.float16), V100)


def test_rows_after_the_last_group_share_nothing() -> None:
    case = make_prefix_case([Group(16, (20, 33)), Group(16, (40, 17))])
    case = case._replace(group_starts=case.group_starts[:2], prefix_lens=torch.tensor([16, 16, 0, 0]).int())
    assert_close(case.run(prefix_decode), case.run_alone(paged_decode), INTERPRETED_ERROR)


def test_no_rows() -> None:
    assert make_prefix_case([]).run(prefix_decode).shape == (0, 4, 16)
