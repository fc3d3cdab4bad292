"""Copying pages where copies run at once, as they do on a CUDA device: what must wait for what is decided before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import runs_kernels

if TYPE_CHECKING:
    import numpy.typing as npt


def copy_pages_at_once(pages: Tensor, copies: Tensor) -> None:
    """Copies whole pages over others in every layer, in no order.

    Semantics::

        source, destination = copies.T
        pages[:, destination] = pages[:, source]

    Nothing waits for the device, so numbers on it are not checked: a kernel skips pages that do not exist.

    Args:
        pages: ``[layers, pages, ...]``, contiguous, any dtype.
        copies: ``[copies, 2]``, int32 or int64, contiguous, on the same device: (source page, destination page). No
            destination is there twice, or a source of another copy: what :func:`rounds_of` makes of any copies.

    Raises:
        TensorArgumentError: a shape, dtype, layout or device that is not as above.
    """
    _check(pages, copies)
    if not runs_kernels(pages):
        _copy(pages, copies)
        return
    from ruprompt_fast.ops.cuda.copy_pages import copy_pages_cuda

    copy_pages_cuda(pages, copies)


def copy_pages_at_once_reference(pages: Tensor, copies: Tensor) -> None:
    """:func:`copy_pages_at_once` in plain PyTorch: an indexed assignment."""
    _check(pages, copies)
    _copy(pages, copies)


def rounds_of(copies: npt.NDArray[np.integer]) -> list[npt.NDArray[np.int64]]:
    """Rounds for :func:`copy_pages_at_once` that do what the copies do one after another; as few as their order allows.

    Args:
        copies: ``[copies, 2]``: (source page, destination page), in order.

    Returns:
        Arrays ``[copies, 2]``. In each no page is written twice, or read by one copy and written by another. Copies of
        a page to itself are in none.
    """
    rounds: list[list[tuple[int, int]]] = []
    read: dict[int, int] = {}  # by page, the number of rounds until it was last read
    written: dict[int, int] = {}
    for source, destination in copies.tolist():
        if source == destination:
            continue
        number = max(written.get(source, 0), written.get(destination, 0), read.get(destination, 0))
        if number == len(rounds):
            rounds.append([])
        rounds[number].append((source, destination))
        written[destination] = number + 1
        read[source] = max(read.get(source, 0), number + 1)
    return [np.array(pairs, dtype=np.int64) for pairs in rounds]


def _copy(pages: Tensor, copies: Tensor) -> None:
    source, destination = copies.long().unbind(1)
    pages[:, destination] = pages[:, source]


def _check(pages: Tensor, copies: Tensor) -> None:
    if copies.dtype not in (torch.int32, torch.int64) or copies.dim() != 2 or copies.shape[1] != 2:
        raise TensorArgumentError(
            f"copies must be [copies, 2], int32 or int64, not {list(copies.shape)} of {copies.dtype}"
        )
    if pages.dim() < 2 or not pages.is_contiguous() or not copies.is_contiguous():
        raise TensorArgumentError(
            f"pages must be [layers, pages, ...], they and the copies contiguous, not {list(pages.shape)} with the "
            f"strides {pages.stride()} and {copies.stride()}"
        )
    if pages.device != copies.device:
        raise TensorArgumentError(f"copies must be on {pages.device} as the pages, not on {copies.device}")
