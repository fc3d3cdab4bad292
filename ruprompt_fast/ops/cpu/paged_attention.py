"""Paged attention on the CPU: the step's tables as the kernel reads them, and the call of one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast import _C
from ruprompt_fast.errors import PageIndexError, SettingError, TensorArgumentError
from ruprompt_fast.ops._checks import DTYPE_NAMES
from ruprompt_fast.ops.cpu.kv_pages import check_pages

if TYPE_CHECKING:
    import numpy.typing as npt

    from ruprompt_fast.ops.paged_attention import AttentionPlan

Indices: TypeAlias = "npt.NDArray[np.int32]"


class AttentionTables:
    """The rows of one step as the kernel reads them, made once for all layers: a checked copy of the plan's numbers.

    Args:
        plan: the step's rows, on the CPU.

    Attributes:
        num_tokens: query tokens of all rows.

    Raises:
        TensorArgumentError: a shape, dtype or device is not the plan's, or numbers contradict each other.
        PageIndexError: a page of a row's context is negative.
    """

    __slots__ = ("compiled", "num_tokens")

    def __init__(self, plan: AttentionPlan) -> None:
        self._compile(
            _array_of("query_starts", plan.query_starts),
            _array_of("context_lens", plan.context_lens),
            _array_of("block_tables", plan.block_tables),
        )

    @classmethod
    def of(cls, query_starts: Indices, context_lens: Indices, block_tables: Indices) -> AttentionTables:
        """The tables of a plan whose numbers are NumPy's.

        Args:
            query_starts: int32 ``[rows + 1]``, as in :class:`~ruprompt_fast.ops.AttentionPlan`, like the others.
            context_lens: int32 ``[rows]``.
            block_tables: int32 ``[rows, pages]``; the rows may be apart from each other.

        Raises:
            TensorArgumentError: a shape or dtype is not as above, or numbers contradict each other.
            PageIndexError: a page of a row's context is negative.
        """
        tables = cls.__new__(cls)
        tables._compile(query_starts, context_lens, block_tables)
        return tables

    def _compile(self, query_starts: Indices, context_lens: Indices, block_tables: Indices) -> None:
        _check_arrays(query_starts, context_lens, block_tables)
        try:
            self.compiled = _C.AttentionTables(query_starts, context_lens, block_tables)
        except IndexError as error:
            raise PageIndexError(f"a page does not exist: {error}") from None
        except ValueError as error:
            raise TensorArgumentError(f"the plan contradicts itself: {error}") from None
        self.num_tokens = self.compiled.num_tokens


def paged_attention_cpu(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    tables: AttentionTables,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """:func:`ruprompt_fast.ops.paged_attention` with the step's tables in place of its plan."""
    check_call(query, key_pages, value_pages, tables, sliding_window, softcap)
    tokens, heads, head_dim = query.shape
    num_pages, kv_heads, _, _ = key_pages.shape
    value_dim = value_pages.shape[3]
    token_stride, head_stride, _ = query.stride()
    out = torch.empty((tokens, heads, value_dim), dtype=query.dtype)
    try:
        _C.paged_attention(
            tables.compiled,
            DTYPE_NAMES[query.dtype],
            query.data_ptr(),
            token_stride,
            head_stride,
            key_pages.data_ptr(),
            value_pages.data_ptr(),
            num_pages,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            scaling,
            softcap or 0.0,
            sliding_window or 0,
            out.data_ptr(),
            torch.get_num_threads(),
        )
    except IndexError as error:
        raise PageIndexError(f"a page does not exist: {error}") from None
    return out


def check_call(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    tables: AttentionTables,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    """Raises what :func:`ruprompt_fast.ops.paged_attention` says about arguments that do not fit."""
    check_pages(key_pages, value_pages)
    tokens = tables.num_tokens
    _, kv_heads, head_dim, _ = key_pages.shape
    shape = query.shape
    if len(shape) != 3 or shape[0] != tokens or shape[2] != head_dim or shape[1] == 0 or shape[1] % kv_heads:
        raise TensorArgumentError(
            f"query must be [{tokens}, a multiple of {kv_heads} heads, {head_dim}] for this plan and these pages, "
            f"not {list(shape)}"
        )
    if query.dtype is not key_pages.dtype or not query.is_cpu:
        raise TensorArgumentError(
            f"query must be {key_pages.dtype} on the CPU, as the pages are, not {query.dtype} on {query.device}"
        )
    if query.stride()[2] != 1 and head_dim > 1:
        raise TensorArgumentError(
            f"the last dimension of query must be contiguous, but its strides are {query.stride()}"
        )
    if sliding_window is not None and sliding_window < 1:
        raise SettingError(f"sliding_window is {sliding_window}; it must be above zero, or None")
    if softcap is not None and not softcap > 0:
        raise SettingError(f"softcap is {softcap}; it must be above zero, or None")


def _array_of(name: str, tensor: Tensor) -> Indices:
    if tensor.dtype is not torch.int32 or not tensor.is_cpu:
        raise TensorArgumentError(f"{name} must be int32 on the CPU, not {tensor.dtype} on {tensor.device}")
    array: Indices = tensor.numpy()
    return array


def _check_arrays(query_starts: Indices, context_lens: Indices, block_tables: Indices) -> None:
    for name, array, dims in (
        ("query_starts", query_starts, 1),
        ("context_lens", context_lens, 1),
        ("block_tables", block_tables, 2),
    ):
        if array.dtype != np.int32 or array.ndim != dims:
            raise TensorArgumentError(
                f"{name} must be int32 with {dims} dimensions, not {list(array.shape)} of {array.dtype}"
            )
        if array.strides[-1] != array.itemsize and array.shape[-1] > 1:
            raise TensorArgumentError(f"the last dimension of {name} must be contiguous")
    rows = len(context_lens)
    if len(query_starts) != rows + 1 or len(block_tables) != rows:
        raise TensorArgumentError(
            f"{rows} context_lens need {rows + 1} query_starts and {rows} block_tables, not {len(query_starts)} and "
            f"{len(block_tables)}"
        )
