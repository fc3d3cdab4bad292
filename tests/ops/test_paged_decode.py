"""Decoding over token-major pages: the reference equals attention over pages of the CPU's layout; checks."""

from __future__ import annotations

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
        q: Tensor = query, k: Tensor = keys, v: Tensor = values, t: Tensor = tables, c: Tensor = lens, **settings
    ) -> None:
        function(q, k, v, t, c, scaling=0.25, **settings)

    with pytest.raises(TensorArgumentError, match=r"query must be \[2, a multiple of 2 heads, 16\]"):
        call(q=query[:1])
    with pytest.raises(TensorArgumentError, match="a multiple of 2 heads"):
        call(q=query[:, :3])
    with pytest.raises(TensorArgumentError, match="query must be torch.float32 on cpu"):
        call(q=query.half())
    with pytest.raises(TensorArgumentError, match="last dimension of query"):
        call(q=query.transpose(1, 2).contiguous().transpose(1, 2))
    with pytest.raises(TensorArgumentError, match="see token_major_page_shapes"):
        call(k=keys[:, :, :15])
    with pytest.raises(TensorArgumentError, match="as many pages and heads"):
        call(k=keys[:-1])
    with pytest.raises(TensorArgumentError, match="one dtype"):
        call(v=values.double())
    with pytest.raises(TensorArgumentError, match="contiguous and on one device"):
        call(v=values.transpose(0, 1).contiguous().transpose(0, 1))
    with pytest.raises(TensorArgumentError, match=r"block_tables must be \[2, blocks\] and int32"):
        call(t=tables.long())
    with pytest.raises(TensorArgumentError, match="last dimension of block_tables"):
        call(t=tables.T.contiguous().T)
    with pytest.raises(TensorArgumentError, match=r"context_lens must be \[rows\], int32"):
        call(c=lens.long())
    with pytest.raises(TensorArgumentError, match="on cpu as the query, not on meta"):
        call(t=tables.to("meta"))
    with pytest.raises(SettingError, match="sliding_window is 0"):
        call(sliding_window=0)
    with pytest.raises(SettingError, match="softcap is -1"):
        call(softcap=-1.0)
