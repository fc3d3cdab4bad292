"""Reading prompts that PEFT trained: folders with ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT stores the rows that its prompt encoder made, under ``prompt_embeddings``, and puts them before the text. So the
prompt becomes ``<P*n>{text}``. The rows of prefix tuning hold keys and values: that prompt is a deep one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ruprompt_fast.errors import PromptFileError
from ruprompt_fast.prompts.config import PromptConfig
from ruprompt_fast.prompts.files import StoredPrompt, read_json
from ruprompt_fast.prompts.format import PromptFormat
from ruprompt_fast.prompts.kv_shape import KVShape
from ruprompt_fast.prompts.template import PROMPT_TOKEN
from ruprompt_fast.prompts.tensor_files import ROWS_KEY, checked_rows, read_safetensors, read_torch

PEFT_CONFIG_NAME = "adapter_config.json"
PEFT_SAFETENSORS_NAME = "adapter_model.safetensors"
PEFT_TORCH_NAME = "adapter_model.bin"

_MULTITASK = "MULTITASK_PROMPT_TUNING"
_PREFIX_TUNING = "PREFIX_TUNING"
_READABLE = ("PROMPT_TUNING", "P_TUNING", "CPT", _MULTITASK, _PREFIX_TUNING)


def read_peft(folder: Path, task_id: int | None = None) -> StoredPrompt:
    """Read a PEFT adapter that consists of embedding rows, or of keys and values.

    Args:
        folder: the adapter's folder.
        task_id: which task's prompt to make from a multitask adapter; 0 if it has only one.

    Raises:
        PromptFileError: a file is missing or malformed, or the adapter is of another kind.
        UnsafeFileError: the rows are not plain dense numbers.
        NonFiniteRowsError: they contain NaN or infinity.
    """
    path = folder / PEFT_CONFIG_NAME
    config = read_json(path)
    kind = _kind(config, path)
    num_rows = config.get("num_virtual_tokens")
    if not isinstance(num_rows, int) or num_rows < 1:
        raise PromptFileError(f"{path}: expected a positive num_virtual_tokens; found {num_rows!r}.")
    tensors, tensors_path = _read_tensors(folder)
    if ROWS_KEY not in tensors:
        raise PromptFileError(f"{tensors_path}: expected a tensor {ROWS_KEY!r}; found {sorted(tensors)}.")
    kv_shape = _kv_shape(config, path) if kind == _PREFIX_TUNING else None
    stored = checked_rows(tensors[ROWS_KEY], tensors_path, width=None if kv_shape is None else kv_shape.row_width)
    # Encoder-decoder adapters have rows for both halves; PEFT itself uses the encoder's only.
    if stored.shape[0] not in ((num_rows,) if kv_shape is not None else (num_rows, 2 * num_rows)):
        raise PromptFileError(
            f"{tensors_path}: expected {num_rows} rows, as {path.name} says; found {stored.shape[0]}. "
            "The files do not belong together: download or save the adapter again."
        )
    if kind == _MULTITASK:
        stored = stored * _task_factor(tensors, tensors_path, stored, task_id)
    elif task_id not in (None, 0):
        raise PromptFileError(f"{path}: expected a multitask adapter for task {task_id}; found {kind}.")
    rows = checked_rows(stored[:num_rows], tensors_path)
    model_name = config.get("base_model_name_or_path")
    return StoredPrompt(
        PromptFormat(f"<P*{num_rows}>{{text}}", PROMPT_TOKEN * num_rows + "{text}"),
        PromptConfig(rows.shape[1], num_rows, model_name if isinstance(model_name, str) else None, kv_shape=kv_shape),
        rows,
    )


def _kind(config: Mapping[str, Any], path: Path) -> str:
    kind = config.get("peft_type")
    if kind in _READABLE:
        return str(kind)
    raise PromptFileError(
        f"{path}: expected peft_type to be one of {', '.join(_READABLE)}; found {kind!r}: adapters of this kind change "
        "weights or activations. Use PEFT for it."
    )


def _kv_shape(config: Mapping[str, Any], path: Path) -> KVShape:
    """The sizes of a prefix-tuning adapter, whose attention heads are those of keys and values."""
    names = ("num_layers", "num_attention_heads", "token_dim")
    sizes: list[Any] = [config.get(name) for name in names]
    if config.get("num_transformer_submodules") not in (None, 1):
        raise PromptFileError(
            f"{path}: expected prefix tuning of a decoder; found an encoder-decoder's. Use PEFT for it."
        )
    if not all(isinstance(size, int) and size > 0 for size in sizes) or sizes[2] % sizes[1]:
        found = ", ".join(f"{name}={size!r}" for name, size in zip(names, sizes, strict=True))
        raise PromptFileError(f"{path}: expected positive sizes, the last a multiple of the heads; found {found}.")
    return KVShape(sizes[0], sizes[1], sizes[2] // sizes[1])


def _read_tensors(folder: Path) -> tuple[dict[str, Any], Path]:
    safe, unsafe = folder / PEFT_SAFETENSORS_NAME, folder / PEFT_TORCH_NAME
    if safe.is_file() or not unsafe.is_file():
        return dict(read_safetensors(safe)), safe
    content = read_torch(unsafe)
    if not isinstance(content, dict):
        raise PromptFileError(f"{unsafe}: expected named tensors; found {type(content).__name__}.")
    return content, unsafe


def _task_factor(tensors: Mapping[str, Any], path: Path, rows: Tensor, task_id: int | None) -> Tensor:
    """The low-rank factor of one task (Wang et al. 2023), [rows, width]: ``cols[task] @ rows[task]``."""
    factors = []
    for key in ("prefix_task_cols", "prefix_task_rows"):
        factor = tensors.get(key)
        if not isinstance(factor, Tensor) or factor.layout is not torch.strided or factor.ndim != 3:
            raise PromptFileError(f"{path}: expected a tensor {key!r} [tasks, ., .] of a multitask adapter.")
        factors.append(factor)
    cols, task_rows = factors
    num_tasks = cols.shape[0]
    rank = cols.shape[2]
    expected = [[num_tasks, rows.shape[0], rank], [num_tasks, rank, rows.shape[1]]]
    found = [list(cols.shape), list(task_rows.shape)]
    if found != expected:
        raise PromptFileError(f"{path}: expected task factors of shapes {expected}; found {found}.")
    if task_id is None and num_tasks > 1:
        raise PromptFileError(f"{path}: holds {num_tasks} tasks; say which with task_id=0..{num_tasks - 1}.")
    task = task_id or 0
    if not 0 <= task < num_tasks:
        raise PromptFileError(f"{path}: expected a task_id from 0 to {num_tasks - 1}; found {task}.")
    return checked_rows(cols[task], path) @ checked_rows(task_rows[task], path)
