"""Decoding over token-major pages: the reference equals attention over pages of the CPU's layout; checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.attention_cases import Heads
from ops.decode_cases import BORDERS, DTYPES, DecodeCase, make_decode_case
from tolerances import assert_close
from torch import Tensor

from ruprompt_fast.errors import SettingError, TensorArgumentError
from ruprompt_fast.ops import (
    AttentionPlan,
    paged_attention_reference,
    paged_decode,
    paged_decode_reference,
)


def through_the_other_layout(case: DecodeCase, **settings: float | int | None) -> Tensor:
    """The same by the operator of several query tokens, whose keys lie otherwise."""
    rows = len(case.context_lens)
    tokens = case.context_lens > 0
    plan = AttentionPlan(
        query_starts=torch.arange(int(tokens.sum()) + 1, dtype=torch.int32),
        context_lens=case.context_lens[tokens],
        block_tables=case.block_tables[tokens].contiguous(),
        write_slots=torch.zeros(0, dtype=torch.int64),
    )
    out = case.query.new_zeros(rows, case.query.shape[1], case.value_pages.shape[3])
    out[tokens] = paged_attention_reference(
        case.query[tokens],
        case.key_pages.transpose(2, 3).contiguous(),
        case.value_pages,
        plan,
        scaling=case.scaling,
        **settings,  # type: ignore[arg-type]
    )
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [Heads(), Heads(3, 1, 5, 7), Heads(2, 2, 96, 96)], ids=str)
@pytest.mark.parametrize(
    "settings", [{}, {"sliding_window": 1}, {"sliding_window": 17}, {"softcap": 1.5, "sliding_window": 100}], ids=str
)
def test_reference(shape: Heads, dtype: torch.dtype, settings: dict) -> None:
    case = make_decode_case([*BORDERS, 0, 300], shape, dtype)
    expected = through_the_other_layout(case, **settings)
    assert_close(case.run(paged_decode_reference, **settings), expected)
    assert torch.equal(case.run(paged_decode, **settings), case.run(paged_decode_reference, **settings))


def test_padding_gives_zeros() -> None:
    case = make_decode_case([0, 5, 0])
    out = case.run(paged_decode)
    assert torch.equal(out[::2], torch.zeros_like(out[::2]))
    assert bool(out[1].isfinite().all())
    assert make_decode_case([]).run(paged_decode).shape == (0, 4, 16)
    assert not make_decode_case([0, 0], blocks=0).run(paged_decode).any()


def test_any_strides_of_queries() -> None:
    case = make_decode_case([40, 3, 17])
    expected = case.run(paged_decode)
    fused = torch.cat([case.query, case.query], 1)[:, 4:]
    assert torch.equal(case._replace(query=fused).run(paged_decode), expected)


@pytest.mark.parametrize("function", [paged_decode, paged_decode_reference])
def test_arguments_that_do_not_fit(function) -> None:
    query, keys, values, tables, lens = make_decode_case([20, 33]).arguments

    def call(
        q: Tensor = query, k: Tensor = keys, v: Tensor = values, t: Tensor = tables, c: Tensor = lens, **settings: Any
    ) -> None:
        function(q, k, v, t, c, scaling=0.25, **settings)

    for message, arguments in [
        ("block_tables must be int32", {"q": query[:1]}),
        ("a multiple of 2 heads", {"q": query[:, :3]}),
        ("query must be torch.float32 on cpu", {"q": query.half()}),
        ("last dimension of query", {"q": query.transpose(1, 2).contiguous().transpose(1, 2)}),
        ("equal but for the last number", {"k": keys[:-1]}),
        ("all float32, all float16 or all bfloat16", {"v": values.double()}),
        ("pages must be contiguous", {"v": values.transpose(0, 1).contiguous().transpose(0, 1)}),
        (r"block_tables must be int32 \[2, 4\]", {"t": tables.long()}),
        ("last dimension of block_tables", {"t": tables.T.contiguous().T}),
        (r"context_lens must be int32 \[2\]", {"c": lens.long()}),
        (r"context_lens must be int32 \[2\]", {"c": lens[:1]}),
        ("on cpu; found torch.int32 .* on meta", {"t": tables.to("meta")}),
    ]:
        with pytest.raises(TensorArgumentError, match=message):
            call(**arguments)
    with pytest.raises(SettingError, match="sliding_window must be at least 1"):
        call(sliding_window=0)
    with pytest.raises(SettingError, match="softcap must be above zero"):
        call(softcap=-1.0)
