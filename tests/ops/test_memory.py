"""Memory of large outputs: handed from a freed output to the next, never to two at once."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from ruprompt_fast import _C
from ruprompt_fast.ops import release_memory
from ruprompt_fast.ops.cpu.memory import empty_output

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _empty_pool():
    gc.collect()
    release_memory()
    yield
    gc.collect()
    release_memory()


def large(mib: int = 48) -> torch.Tensor:
    return empty_output((mib, MIB // 4), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_large_output_is_an_ordinary_tensor(dtype: torch.dtype) -> None:
    out = empty_output((3, 40, MIB // 4), dtype)
    assert out.shape == (3, 40, MIB // 4)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert out.device.type == "cpu"
    assert not out.requires_grad
    out.fill_(2)
    assert int(out.clone().add_(1).sum(dtype=torch.float64)) == 3 * out.numel()


def test_a_freed_block_is_used_again() -> None:
    first = large()
    address = first.data_ptr()
    view = first[1:]
    del first
    second = large()
    assert second.data_ptr() != address
    del view
    assert large().data_ptr() == address
    assert large(40).data_ptr() == address
    assert large(100).data_ptr() != address


def test_no_more_than_two_blocks_are_kept() -> None:
    outputs = [large() for _ in range(4)]
    assert len({out.data_ptr() for out in outputs}) == 4
    del outputs
    assert release_memory() == 2 * 48 * MIB
    assert release_memory() == 0


def test_a_block_beyond_the_limit_is_freed_at_once() -> None:
    large(600)
    assert release_memory() == 0


def test_small_outputs_and_unused_capsules_leave_the_pool_alone() -> None:
    empty_output((32, MIB // 4), torch.float32)
    assert release_memory() == 0
    capsule = _C.pooled_tensor([48, MIB // 4], "float32")
    del capsule
    assert release_memory() == 48 * MIB


def test_blocks_may_be_freed_by_other_threads() -> None:
    def work(value: int) -> None:
        for _ in range(20):
            out = large(33)
            out[::16].fill_(value)
            assert (out[::16] == value).all()

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert release_memory() <= 2 * 34 * MIB
