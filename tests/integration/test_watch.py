"""The watch over a module's memory: tensors of every form, and memory that is given back meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ruprompt_fast.integration.watch import Watch


def holder(tensor: Tensor) -> nn.Module:
    module = nn.Module()
    module.tensor = tensor
    return module


WITH_MEMORY = {
    "one": torch.zeros(1),
    "scalar": torch.zeros(()),
    "short": torch.zeros(23),
    "long": torch.zeros(1000),
    "bool": torch.zeros(100, dtype=torch.bool),
    "bfloat16": torch.zeros(100, dtype=torch.bfloat16),
    "complex": torch.zeros(100, dtype=torch.complex64),
    "float8": torch.zeros(100).to(torch.float8_e4m3fn),
    "transposed": torch.zeros(30, 40).t(),
    "expanded": torch.zeros(1, 40).expand(50, 40),
    "the end of a storage": torch.zeros(100)[60:],
    "every other of a storage": torch.zeros(101)[::2],
    "overlapping": torch.zeros(50).as_strided((4, 30), (3, 1), 11),
}


@pytest.mark.parametrize("tensor", WITH_MEMORY.values(), ids=list(WITH_MEMORY))
@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_a_number_that_torch_does_not_count(tensor: Tensor, place: int) -> None:
    """Every byte between the tensor's first element and its last is the tensor's or lies beside it, never after it."""
    tensor = tensor.clone() if tensor.is_contiguous() and tensor._base is None else tensor
    watch = Watch(holder(tensor))
    assert not watch.sees_change()
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    at = (tensor.storage_offset() + (span if place else 0)) * tensor.element_size()
    raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    raw[at] += 1
    assert watch.sees_change()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(0),
        torch.empty(3, 0, 5),
        torch.empty(10, device="meta"),
        torch.eye(4).to_sparse(),
        torch.eye(4).to_mkldnn(),
    ],
    ids=["empty", "empty in one dimension", "meta", "sparse", "mkldnn"],
)
def test_tensors_without_memory_to_look_at(tensor: Tensor) -> None:
    assert not Watch(holder(tensor)).sees_change()


def test_an_address_is_no_other_tensors_while_it_is_watched() -> None:
    """Reading the blocks of a tensor at the address of a larger one would read what is nobody's."""
    module = nn.Linear(1000, 300, bias=False)
    address, watch = module.weight.data_ptr(), Watch(module)
    module.weight.data = torch.empty(0)
    small = [torch.empty(1000, 10) for _ in range(100)]
    assert address not in [tensor.data_ptr() for tensor in small]
    assert watch.sees_change()


@pytest.mark.parametrize("num_bytes", [0, 400])
def test_memory_that_is_resized(num_bytes: int) -> None:
    module = holder(torch.zeros(1000))
    watch = Watch(module)
    module.tensor.untyped_storage().resize_(num_bytes)
    assert watch.sees_change()
