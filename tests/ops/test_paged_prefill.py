"""Prefill over token-major pages: the reference equals attention over pages of the CPU's layout; checks; runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ops.attention_cases import Heads, Row
from ops.decode_cases import BORDERS, DTYPES
from ops.prefill_cases import make_prefill_case, through_the_other_layout
from tolerances import assert_close
from torch import Tensor

from ruprompt_fast.errors import SettingError, TensorArgumentError
from ruprompt_fast.ops import HostLens, paged_prefill, paged_prefill_reference

pytest.importorskip("triton")

from ruprompt_fast.ops.cuda.gathered_prefill import Run, runs_of

MIXED = [*[Row(n, n) for n in BORDERS], Row(40, 1), Row(70, 19), Row(1, 1), Row(33, 0), Row(300, 2)]
SETTINGS = [{}, {"sliding_window": 1}, {"sliding_window": 17}, {"softcap": 1.5, "sliding_window": 100}]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [Heads(), Heads(3, 1, 5, 7), Heads(2, 2, 96, 96)], ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_reference(shape: Heads, dtype: torch.dtype, settings: dict) -> None:
    case = make_prefill_case(MIXED, shape, dtype, padding=3)
    expected = through_the_other_layout(case, **settings)
    for host_lens in (None, case.host_lens):
        actual = case.run(paged_prefill_reference, **settings, host_lens=host_lens)
        assert_close(actual, expected)
        assert not actual[-3:].any()
        assert torch.equal(case.run(paged_prefill, **settings, host_lens=host_lens), actual)


def test_a_long_prompt_in_chunks_is_the_prompt_at_once() -> None:
    whole = make_prefill_case([Row(4097, 4097)], Heads(2, 1))
    expected = whole.run(paged_prefill, host_lens=whole.host_lens)
    for start, stop in [(0, 16), (16, 33), (4090, 4097)]:
        lens = torch.tensor([stop], dtype=torch.int32)
        starts = torch.tensor([0, stop - start], dtype=torch.int32)
        chunk = whole._replace(query=whole.query[start:stop], query_starts=starts, context_lens=lens)
        assert_close(chunk.run(paged_prefill), expected[start:stop])


def test_nothing_to_do() -> None:
    assert make_prefill_case([]).run(paged_prefill).shape == (0, 4, 16)
    assert not make_prefill_case([], padding=4).run(paged_prefill).any()
    assert not make_prefill_case([Row(0, 0), Row(0, 0)], padding=2).run(paged_prefill).any()


@pytest.mark.parametrize("function", [paged_prefill, paged_prefill_reference])
def test_arguments_that_do_not_fit(function: Any) -> None:
    query, keys, values, starts, lens, tables, _ = make_prefill_case([Row(20, 20), Row(33, 2)])

    def call(
        q: Tensor = query,
        k: Tensor = keys,
        v: Tensor = values,
        s: Tensor = starts,
        c: Tensor = lens,
        t: Tensor = tables,
        **settings: Any,
    ) -> None:
        function(q, k, v, s, c, t, scaling=0.25, **settings)

    for message, arguments in [
        ("a multiple of 2 heads", {"q": query[:, :3]}),
        ("query must be torch.float32 on cpu", {"q": query.half()}),
        ("last dimension of query", {"q": query.transpose(1, 2).contiguous().transpose(1, 2)}),
        ("equal but for the last number", {"k": keys[:-1]}),
        ("a power of two of them", {"k": keys[:, :, :5].contiguous(), "v": values[:, :, :5].contiguous()}),
        ("all float32, all float16 or all bfloat16", {"k": keys.double(), "v": values.double()}),
        ("pages must be contiguous", {"v": values.transpose(0, 1).contiguous().transpose(0, 1)}),
        (r"query_starts must be int32 \[3\]", {"s": starts.long()}),
        (r"query_starts must be int32 \[3\]", {"s": starts[:2]}),
        (r"query_starts must be int32 \[2\]", {"c": lens[:1]}),
        (r"context_lens must be int32 \[2\]", {"c": lens.long()}),
        (r"block_tables must be int32 \[2, 4\]", {"t": tables.long()}),
        (r"block_tables must be int32 \[2, 4\]", {"t": tables[:1]}),
        ("last dimension of block_tables", {"t": tables.T.contiguous().T}),
        ("on cpu; found torch.int32 .* on meta", {"t": tables.to("meta")}),
        ("the lengths of 2 sequences", {"host_lens": HostLens(starts.numpy(), lens.numpy()[:1])}),
    ]:
        with pytest.raises(TensorArgumentError, match=message):
            call(**arguments)
    with pytest.raises(SettingError, match="sliding_window must be at least 1"):
        call(sliding_window=0)
    with pytest.raises(SettingError, match="softcap must be above zero"):
        call(softcap=-1.0)


def lens_of(*rows: tuple[int, int]) -> HostLens:
    """For (context, queries) of each sequence."""
    starts = np.cumsum([0, *[queries for _, queries in rows]], dtype=np.int32)
    return HostLens(starts, np.array([context for context, _ in rows], dtype=np.int32))


def test_runs_of_sequences_that_are_gathered_together() -> None:
    lens = lens_of((9, 1), (50, 1), (10, 10), (20, 5), (30, 2), (100, 100), (7, 1), (0, 0))
    assert list(runs_of(lens, 60)) == [
        Run(0, 2, True),
        Run(2, 5, False),
        Run(5, 6, False),
        Run(6, 7, True),
        Run(7, 8, False),
    ]
    assert list(runs_of(lens, 59)) == [
        Run(0, 2, True),
        Run(2, 4, False),
        Run(4, 5, False),
        Run(5, 6, False),
        Run(6, 7, True),
        Run(7, 8, False),
    ]
    assert list(runs_of(lens_of((4, 2)), 1)) == [Run(0, 1, False)]
    assert list(runs_of(lens_of(), 1)) == []


def test_every_sequence_is_in_one_run() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        lens = lens_of(*[(context, random.integers(0, 3)) for context in random.integers(3, 40, random.integers(1, 9))])
        runs = list(runs_of(lens, 50))
        assert [run.first for run in runs] == [0, *[run.stop for run in runs[:-1]]]
        assert runs[-1].stop == len(lens.context_lens)
        for run in runs:
            rows = slice(run.first, run.stop)
            assert set(lens.query_lens[rows] == 1) == {run.decodes}
            assert run.decodes or run.stop == run.first + 1 or lens.context_lens[rows].sum() <= 50
