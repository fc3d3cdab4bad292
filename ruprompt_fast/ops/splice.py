"""Row lookup in a token table and a prompt table through one range of ids."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ruprompt_fast.errors import PromptMismatchError, TensorArgumentError
from ruprompt_fast.ops._checks import DTYPE_NAMES, check_ids
from ruprompt_fast.ops._errors import raise_on_bad_id
from ruprompt_fast.ops._library import LIBRARY, NAMESPACE
from ruprompt_fast.ops.cpu.splice import splice_cpu, splice_prompt_grad_cpu

LIBRARY.define(
    "splice(Tensor input_ids, Tensor token_weight, Tensor prompt_weight, int first_prompt_id) -> Tensor",
)
LIBRARY.define(
    "splice_prompt_grad(Tensor grad, Tensor input_ids, SymInt prompt_rows, int first_prompt_id) -> Tensor",
)
_SPLICE = torch.ops.ruprompt_fast.splice.default
_PROMPT_GRAD = torch.ops.ruprompt_fast.splice_prompt_grad.default


def splice(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, first_prompt_id: int) -> Tensor:
    """Looks up every id in the token table or, from ``first_prompt_id`` on, in the prompt table.

    Semantics::

        out[i] = token_weight[input_ids[i]]                      if 0 <= input_ids[i] < first_prompt_id
        out[i] = prompt_weight[input_ids[i] - first_prompt_id]   otherwise

    The gradient of ``prompt_weight`` is a segment sum over equal ids in float32 (float64 for float64), in rising order
    of position, so equal inputs give equal bits; ``token_weight`` gets a gradient only if it requires one, and then it
    is that of :func:`torch.nn.functional.embedding` for the ids below ``first_prompt_id``.

    Args:
        input_ids: int32 or int64, any shape, contiguous or not.
        token_weight: ``[tokens, width]``, float32, float16, bfloat16 or float64, rows at any stride.
        prompt_weight: ``[prompt_rows, width]`` of the same dtype and device; may have no rows.
        first_prompt_id: id of the prompt table's row 0. It may lie above the token table: ids between are errors.

    Returns:
        ``[*input_ids.shape, width]`` of the tables' dtype, contiguous.

    Raises:
        TokenIdError: an id is in neither table. On CUDA the id's row is NaN, and the error is raised without waiting
            for the device: by the next call, or by :func:`check_errors`.
        TensorArgumentError: a dtype, shape or device that is not as above.
        PromptMismatchError: the tables differ in width or dtype.
    """
    return cast(Tensor, _SPLICE(input_ids, token_weight, prompt_weight, first_prompt_id))


def splice_reference(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, first_prompt_id: int) -> Tensor:
    """:func:`splice` in plain PyTorch, gradients included: one lookup in both tables put together."""
    _check_tables(input_ids, token_weight, prompt_weight)
    raise_on_bad_id(input_ids, token_weight.shape[0], prompt_weight.shape[0], first_prompt_id)
    ids = input_ids.long()
    rows = torch.where(ids < first_prompt_id, ids, ids - first_prompt_id + token_weight.shape[0])
    return F.embedding(rows, torch.cat([token_weight, prompt_weight]))


def _check_tables(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor) -> None:
    """Raises unless the ids are ids and the tables are two matrices of one width, dtype and device."""
    check_ids(input_ids)
    token_shape, prompt_shape = token_weight.shape, prompt_weight.shape
    if len(token_shape) != 2 or len(prompt_shape) != 2:
        raise TensorArgumentError(
            f"token_weight and prompt_weight must be [rows, width], not {list(token_shape)} and {list(prompt_shape)}"
        )
    if token_weight.dtype not in DTYPE_NAMES:
        names = ", ".join(DTYPE_NAMES.values())
        raise TensorArgumentError(f"token_weight must be one of {names}, not {token_weight.dtype}")
    if token_weight.dtype is not prompt_weight.dtype:
        raise PromptMismatchError(
            f"the tables must have one dtype, but token_weight is {token_weight.dtype} and prompt_weight "
            f"{prompt_weight.dtype}: convert the prompt with .to({token_weight.dtype})"
        )
    if token_shape[1] != prompt_shape[1]:
        raise PromptMismatchError(f"the prompt table has width {prompt_shape[1]}, the token table {token_shape[1]}")
    device = token_weight.device
    if input_ids.device != device or prompt_weight.device != device:
        raise TensorArgumentError(
            f"input_ids, token_weight and prompt_weight must be on one device, not on {input_ids.device}, {device} "
            f"and {prompt_weight.device}"
        )


def _on_cpu(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, first_prompt_id: int) -> Tensor:
    _check_tables(input_ids, token_weight, prompt_weight)
    return splice_cpu(input_ids, token_weight, prompt_weight, first_prompt_id)


def _on_cuda(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, first_prompt_id: int) -> Tensor:
    from ruprompt_fast.ops.cuda.splice import splice_cuda

    _check_tables(input_ids, token_weight, prompt_weight)
    return splice_cuda(input_ids, token_weight, prompt_weight, first_prompt_id)


def _prompt_grad_on_cuda(grad: Tensor, input_ids: Tensor, prompt_rows: int, first_prompt_id: int) -> Tensor:
    from ruprompt_fast.ops.cuda.splice import splice_prompt_grad_cuda

    return splice_prompt_grad_cuda(grad, input_ids, prompt_rows, first_prompt_id)


def _splice_fake(input_ids: Tensor, token_weight: Tensor, prompt_weight: Tensor, first_prompt_id: int) -> Tensor:
    _check_tables(input_ids, token_weight, prompt_weight)
    return token_weight.new_empty((*input_ids.shape, token_weight.shape[1]))


def _prompt_grad_fake(grad: Tensor, input_ids: Tensor, prompt_rows: int, first_prompt_id: int) -> Tensor:
    return grad.new_empty((prompt_rows, grad.shape[-1]))


def _splice_setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    input_ids, token_weight, prompt_weight, first_prompt_id = inputs
    ctx.save_for_backward(input_ids)
    ctx.token_rows, ctx.prompt_rows = token_weight.shape[0], prompt_weight.shape[0]
    ctx.first_prompt_id = first_prompt_id


def _splice_backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
    (input_ids,) = ctx.saved_tensors
    token_grad = prompt_grad = None
    if ctx.needs_input_grad[1]:
        # One more row takes what belongs to prompt ids, and is cut off.
        ids = torch.where(input_ids < ctx.first_prompt_id, input_ids, ctx.token_rows)
        table_grad = torch.ops.aten.embedding_dense_backward(grad, ids, ctx.token_rows + 1, -1, False)
        token_grad = table_grad[: ctx.token_rows]
    if ctx.needs_input_grad[2]:
        prompt_grad = _PROMPT_GRAD(grad, input_ids, ctx.prompt_rows, ctx.first_prompt_id)
    return None, token_grad, prompt_grad, None


def _prompt_grad_setup(ctx: Any, inputs: tuple[Tensor, Tensor, int, int], output: Tensor) -> None:
    _, input_ids, ctx.prompt_rows, ctx.first_prompt_id = inputs
    ctx.save_for_backward(input_ids)


def _prompt_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    # The segment sum is linear: its gradient hands every position the row of its prompt, and other positions zero.
    (input_ids,) = ctx.saved_tensors
    rows = torch.where(input_ids < ctx.first_prompt_id, ctx.prompt_rows, input_ids - ctx.first_prompt_id)
    return F.embedding(rows, F.pad(grad, (0, 0, 0, 1))), None, None, None


def _register(name: str, cpu: Any, cuda: Any, fake: Any, setup: Any, backward: Any) -> None:
    LIBRARY.impl(name, cpu, "CPU")
    LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=LIBRARY)


_register("splice", _on_cpu, _on_cuda, _splice_fake, _splice_setup, _splice_backward)
_register(
    "splice_prompt_grad",
    splice_prompt_grad_cpu,
    _prompt_grad_on_cuda,
    _prompt_grad_fake,
    _prompt_grad_setup,
    _prompt_grad_backward,
)
