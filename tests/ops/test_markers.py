"""Markers of the text form become prompt ids, in their order within each sequence."""

from __future__ import annotations

import pytest
import torch

from ruprompt_fast.errors import MarkerCountError, TensorArgumentError
from ruprompt_fast.ops import resolve_markers, resolve_markers_reference
from ruprompt_fast.ops.markers import _on_cuda

FUNCTIONS = [resolve_markers, resolve_markers_reference, _on_cuda]


@pytest.fixture(params=FUNCTIONS, ids=lambda function: function.__name__)
def resolve(request: pytest.FixtureRequest):
    return request.param


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_order_within_each_sequence_counts(resolve, dtype: torch.dtype) -> None:
    ids = torch.tensor([[9, 1, 9, 8, 9], [8, 1, 1, 1, 1], [1, 2, 3, 4, 5], [0, 9, 9, 9, 8]], dtype=dtype)
    expected = [[50, 1, 51, 70, 52], [70, 1, 1, 1, 1], [1, 2, 3, 4, 5], [0, 50, 51, 52, 70]]
    out = resolve(ids, [9, 8], [50, 70], [3, 1])
    assert out.tolist() == expected
    assert out.dtype == dtype
    assert out.is_contiguous()


def test_input_is_left_alone_and_never_returned(resolve) -> None:
    ids = torch.tensor([[9, 1], [1, 2]])
    for arguments in (([9], [50], [1]), ([], [], []), ([7], [50], [1])):
        out = resolve(ids, *arguments)
        assert out.data_ptr() != ids.data_ptr()
    assert ids.tolist() == [[9, 1], [1, 2]]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (5,), (2, 3, 5), (1, 1)])
def test_any_shape(resolve, shape: tuple[int, ...]) -> None:
    ids = torch.ones(shape, dtype=torch.int64)
    assert resolve(ids, [9, 3], [50, 60], [3, 2]).shape == shape
    assert torch.equal(resolve(ids, [9], [50], [3]), ids)


def test_noncontiguous_ids(resolve) -> None:
    ids = torch.tensor([[9, 1], [9, 2], [7, 3]]).T
    assert resolve(ids, [9], [50], [2]).tolist() == [[50, 51, 7], [1, 2, 3]]


def test_many_markers(resolve) -> None:
    markers = torch.randperm(500, generator=torch.Generator().manual_seed(0)) + 1000
    rows = torch.arange(500) % 3 + 1
    starts = 2000 + rows.cumsum(0) - rows
    sequences = [markers[k : k + 5].repeat_interleave(rows[k : k + 5]) for k in range(0, 500, 5)]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=7)
    out = resolve(ids, markers.tolist(), starts.tolist(), rows.tolist())
    assert torch.equal(out[ids != 7], torch.arange(2000, 2000 + int(rows.sum())))
    assert (out[ids == 7] == 7).all()


def test_wider_dtype_where_a_prompt_id_needs_it(resolve) -> None:
    ids = torch.tensor([9, 9], dtype=torch.int32)
    assert resolve(ids, [9], [2**31 - 2], [2]).dtype == torch.int64
    assert resolve(ids, [9], [2**31 - 2], [2]).tolist() == [2**31 - 2, 2**31 - 1]
    assert resolve(ids, [9], [2**31 - 3], [2]).dtype == torch.int32


@pytest.mark.parametrize("function", FUNCTIONS[:2])
def test_a_wrong_count_names_sequence_count_and_rows(function) -> None:
    ids = torch.tensor([[[9, 9, 9]], [[1, 9, 9]]])
    with pytest.raises(MarkerCountError, match="sequence 1 has 2 markers of id 9, but its prompt has 3 rows"):
        function(ids, [4, 9], [70, 50], [1, 3])
    with pytest.raises(MarkerCountError, match="sequence 0 has 3 markers of id 9, but its prompt has 2 rows"):
        function(ids, [9], [50], [2])


def test_a_wrong_count_fails_without_a_sync_too() -> None:
    with pytest.raises(RuntimeError, match="another number of markers"):
        _on_cuda(torch.tensor([[9, 9, 1]]), [9], [50], [3])


def test_arguments_that_do_not_fit(resolve) -> None:
    ids = torch.tensor([[9, 1]])
    with pytest.raises(TensorArgumentError, match="int32 or int64"):
        resolve(ids.float(), [9], [50], [1])
    with pytest.raises(TensorArgumentError, match="scalar"):
        resolve(ids[0, 0], [9], [50], [1])
    with pytest.raises(TensorArgumentError, match="of one length"):
        resolve(ids, [9], [50, 60], [1])
    with pytest.raises(TensorArgumentError, match="differ from one another"):
        resolve(ids, [9, 9], [50, 60], [1, 1])


@pytest.mark.parametrize("arguments", [([9], [50], [2]), ([], [], []), ([9], [2**31 - 1], [2])])
def test_opcheck(arguments: tuple[list[int], list[int], list[int]]) -> None:
    ids = torch.tensor([[9, 1, 9], [1, 2, 3]], dtype=torch.int32)
    torch.library.opcheck(torch.ops.ruprompt_fast.resolve_markers.default, (ids, *arguments))
