"""What the engine may rely on, of every backend: its pages, one step, and a choice for each row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from backends.second_backend import SecondBackend
from tiny_models import sharp_model, tiny_tokenizer
from tolerances import LOGITS_ERROR
from torch import Tensor

from ruprompt_fast.backends import Backend, Runner, RunnerLimits, StepBatch
from ruprompt_fast.backends.cpu import CpuBackend
from ruprompt_fast.backends.cuda import CudaBackend
from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice
from ruprompt_fast.cache import HostPages, num_pages_of
from ruprompt_fast.embedding import attach_prompts
from ruprompt_fast.errors import NonFiniteLogitsError, SettingError, TensorArgumentError
from ruprompt_fast.integration import check_compatibility
from ruprompt_fast.prompts import KVShape
from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.sampling.sampling_rows import SampledToken, SamplingRow

NUM_PAGES = 12
SHAPES = [KVShape(1, 2, 3, 2), KVShape(1, 1, 2, 4)]


def rehearsed(dtype: torch.dtype) -> Backend:
    return CudaBackend(RehearsalDevice(), dtype)


@pytest.fixture(params=[CpuBackend, SecondBackend, rehearsed])
def made(request: pytest.FixtureRequest) -> Backend:
    make: Callable[[torch.dtype], Backend] = request.param
    return make(torch.float32)


def limits(num_pages: int) -> RunnerLimits:
    return RunnerLimits(num_pages, max_step_tokens=64, max_sequences=8, max_model_len=64)


@pytest.fixture
def runner(made: Backend) -> Runner:
    model = sharp_model("mistral")
    return made.runner(model, attach_prompts(model, [], len(tiny_tokenizer())), SHAPES, limits(NUM_PAGES), ())


def packed(runner: Runner, length: int, seed: int = 0) -> HostPages:
    generator = torch.Generator().manual_seed(seed)
    keys = [torch.randn(length, shape.num_key_value_heads, shape.head_dim, generator=generator) for shape in SHAPES]
    values = [
        torch.randn(length, shape.num_key_value_heads, shape.value_width, generator=generator) for shape in SHAPES
    ]
    return runner.pages.pack(keys, values)


def tensors(host_pages: HostPages) -> tuple[Tensor, ...]:
    return (*host_pages.keys, *host_pages.values)


def test_sizes(made: Backend, runner: Runner) -> None:
    pages = runner.pages
    assert (pages.page_size, pages.num_pages) == (made.page_size, NUM_PAGES)
    assert made.page_size & (made.page_size - 1) == 0  # the scheduler's slots are shifts
    assert pages.page_bytes == made.page_bytes(SHAPES)
    host_pages = packed(runner, 2 * made.page_size + 1)
    assert (host_pages.num_pages, host_pages.num_bytes) == (3, 3 * pages.page_bytes)
    assert made.available_bytes() > 0
    with pytest.raises(SettingError, match="at least one"):
        made.page_bytes([])


def test_pages_move(made: Backend, runner: Runner) -> None:
    """Into other places, from one to the next, and out again as copies."""
    pages, given = runner.pages, packed(runner, 2 * made.page_size)
    pages.write_pages([7, 3], given)
    pages.copy_pages(np.array([[7, 1], [3, 7], [1, 3]], dtype=np.int32))
    found = pages.read_pages(np.array([1, 7, 3]))
    for before, after in zip(tensors(given), tensors(found), strict=True):
        assert torch.equal(after, before[[0, 1, 0]])
    pages.write_pages([1, 7], packed(runner, 2 * made.page_size, seed=1))
    assert torch.equal(found.keys[0][0], given.keys[0][0])


def test_pages_that_do_not_fit_are_refused(made: Backend, runner: Runner) -> None:
    pages, given = runner.pages, packed(runner, made.page_size)
    for wrong in (
        packed(runner, made.page_size + 1),
        HostPages(given.keys[:1], given.values[:1]),
        HostPages(tuple(tensor.double() for tensor in given.keys), given.values),
    ):
        with pytest.raises(TensorArgumentError, match="must be 1 pages"):
            pages.write_pages([0], wrong)
    for outside in (-1, NUM_PAGES):
        with pytest.raises(TensorArgumentError, match=f"0 .. {NUM_PAGES - 1}"):
            pages.read_pages([outside])
    with pytest.raises(TensorArgumentError, match="every layer"):
        pages.pack(given.keys[:1], given.values[:1])


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_steps_give_the_models_own_logits(made: Backend, family: str) -> None:
    """Two sequences in chunks, then a token of each; their pages lie apart and in no order."""
    model = sharp_model(family)
    sequences = torch.arange(80).mul(7).remainder(50).add(5).split([53, 27])
    with torch.inference_mode():
        expected = torch.stack([model(ids[None]).logits[0, -1] for ids in sequences])
    embedding = attach_prompts(model, [], len(tiny_tokenizer()))
    runner = made.runner(model, embedding, check_compatibility(model, embedding), limits(2 * NUM_PAGES), ())
    tables = [np.arange(num_pages_of(len(ids), made.page_size))[::-1] * 2 + row for row, ids in enumerate(sequences)]
    no_rows = embedding.weight.new_empty((0, embedding.row_width))
    for stops in ((29, 1), (52, 26), (53, 27)):
        starts = {29: (0, 0), 52: (29, 1), 53: (52, 26)}[stops[0]]
        batch = step(sequences, tables, starts, stops, made.page_size, no_rows)
        found = runner.launch(batch, [None, None]).logits.clone()
    assert (found[:, : expected.shape[1]] - expected).abs().max() <= LOGITS_ERROR


def step(
    sequences: tuple[Tensor, ...],
    tables: list[np.ndarray],
    starts: tuple[int, ...],
    stops: tuple[int, ...],
    page_size: int,
    rows: Tensor,
) -> StepBatch:
    positions = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
    query_starts = np.cumsum([0, *map(len, positions)]).astype(np.int32)
    block_tables = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
    for row, table in enumerate(tables):
        block_tables[row, : len(table)] = table
    slots = [
        table[place // page_size] * page_size + place % page_size
        for table, place in zip(tables, positions, strict=True)
    ]
    return StepBatch(
        input_ids=np.concatenate([ids.numpy()[place] for ids, place in zip(sequences, positions, strict=True)]),
        position_ids=np.concatenate(positions),
        rows=rows,
        query_starts=query_starts,
        context_lens=np.array(stops, dtype=np.int32),
        block_tables=block_tables,
        write_slots=np.concatenate(slots),
        logits_at=query_starts[1:].astype(np.int64) - 1,
    )


def test_one_choice_for_each_row(made: Backend) -> None:
    """What is wrong with one row is its own affair, and who asks for nothing gets nothing."""
    model = sharp_model("mistral")
    embedding = attach_prompts(model, [], len(tiny_tokenizer()))
    runner = made.runner(model, embedding, check_compatibility(model, embedding), limits(NUM_PAGES), ())
    sequences = (torch.tensor([5, 9, 12]), torch.tensor([5, embedding.first_prompt_id]), torch.tensor([7]))
    rows = torch.full((1, embedding.row_width), torch.nan)
    batch = step(sequences, [np.array([page]) for page in (4, 2, 7)], (0, 0, 0), (3, 2, 1), made.page_size, rows)
    row = SamplingRow(SamplingParams(max_new_tokens=1), [5], [])
    launched = runner.launch(batch, [row, row, None])
    first, second, third = launched.chosen()
    assert first == SampledToken([int(launched.logits[0].argmax())])
    assert isinstance(second, NonFiniteLogitsError)
    assert third is None
