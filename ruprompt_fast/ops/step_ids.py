"""The ids of a step, some of which the step before it has chosen and no host has seen."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import runs_kernels


def step_ids(ids: Tensor, positions: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and positions as a model takes them, from those that were staged.

    Semantics::

        ids = torch.where(ids < 0, carried[-1 - ids], ids).long()
        positions = positions.long()

    Args:
        ids: int32 ``[tokens]``, contiguous; ``-1 - row`` stands for the token in that row of ``carried``.
        positions: int32 ``[tokens]``, contiguous.
        carried: int32 ``[rows]``, contiguous; what the step before has chosen. Rows are not checked.

    Returns:
        Ids and positions, int64 ``[tokens]``.

    Raises:
        TensorArgumentError: a shape, dtype or layout that is not as above.
    """
    _check(ids, positions, carried)
    if not runs_kernels(ids):
        return _resolved(ids, positions, carried)
    from ruprompt_fast.ops.cuda.step_ids import step_ids_cuda

    return step_ids_cuda(ids, positions, carried)


def step_ids_reference(ids: Tensor, positions: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`step_ids` in plain PyTorch."""
    _check(ids, positions, carried)
    return _resolved(ids, positions, carried)


def _resolved(ids: Tensor, positions: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(ids < 0, carried[(-1 - ids).clamp(min=0)], ids).long(), positions.long()


def _check(ids: Tensor, positions: Tensor, carried: Tensor) -> None:
    parts = (ids, positions, carried)
    if any(part.dtype is not torch.int32 or part.dim() != 1 or not part.is_contiguous() for part in parts):
        found = ", ".join(f"{part.dtype} {list(part.shape)}" for part in parts)
        raise TensorArgumentError(f"ids, positions and carried must be int32, [n] and contiguous; found {found}")
    if ids.shape != positions.shape:
        raise TensorArgumentError(f"there must be a position for every id; found {len(positions)} for {len(ids)}")
