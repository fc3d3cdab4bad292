"""Reading prompts that PEFT trained: folders with ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT stores the rows that its prompt encoder made, under ``prompt_embeddings``, and puts them before everything that the
tokenizer gives for the text, special tokens included. So the prompt becomes ``<P*n>{text}``, compiled to say where
these are. The rows of prefix tuning hold keys and values: that prompt is a deep one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ruprompt_fast.errors import PromptFileError, shown
from ruprompt_fast.prompts.files.prompt_config import PromptConfig, is_size
from ruprompt_fast.prompts.files.prompt_folder import StoredPrompt
from ruprompt_fast.prompts.files.reading.json_object import read_json
from ruprompt_fast.prompts.files.reading.regular_file import open_regular
from ruprompt_fast.prompts.files.reading.safetensors_file import safetensors_index
from ruprompt_fast.prompts.files.reading.stored_rows import finite_rows, read_rows
from ruprompt_fast.prompts.files.reading.stored_tensor import StoredTensor
from ruprompt_fast.prompts.files.reading.torch_file import read_torch
from ruprompt_fast.prompts.files.rows_file import ROWS_KEY
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.format.template import LEADING, PROMPT_TOKEN, TRAILING
from ruprompt_fast.prompts.limits import MAX_ROWS, MAX_TASK_RANK, MAX_TENSOR_FILE_BYTES
from ruprompt_fast.prompts.providers.kv_shape import KVShape

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
    if not is_size(num_rows) or num_rows > MAX_ROWS:
        raise PromptFileError(
            f"{path}: expected a positive num_virtual_tokens, at most {MAX_ROWS}; found {shown(num_rows)}."
        )
    if kind != _MULTITASK and task_id not in (None, 0):
        raise PromptFileError(f"{path}: expected a multitask adapter for task {task_id}; found {kind}.")
    kv_shape = _kv_shape(config, path) if kind == _PREFIX_TUNING else None
    rows = _read_rows(folder, path, kind, num_rows, kv_shape, task_id)
    model_name = config.get("base_model_name_or_path")
    return StoredPrompt(
        PromptFormat(f"<P*{num_rows}>{{text}}", f"{PROMPT_TOKEN * num_rows}{LEADING}{{text}}{TRAILING}"),
        PromptConfig(rows.shape[1], num_rows, model_name if isinstance(model_name, str) else None, kv_shape=kv_shape),
        rows,
    )


def _read_rows(
    folder: Path, config_path: Path, kind: str, num_rows: int, kv_shape: KVShape | None, task_id: int | None
) -> Tensor:
    safe, unsafe = folder / PEFT_SAFETENSORS_NAME, folder / PEFT_TORCH_NAME
    path = unsafe if os.path.lexists(unsafe) and not os.path.lexists(safe) else safe
    with open_regular(path, MAX_TENSOR_FILE_BYTES) as file:
        tensors = safetensors_index(file) if path is safe else read_torch(file)
        if not isinstance(tensors, dict):
            raise PromptFileError(f"{path}: expected named tensors; found {_kind_of(tensors)}.")
        if ROWS_KEY not in tensors:
            raise PromptFileError(f"{path}: expected a tensor {ROWS_KEY!r}; found {shown(sorted(tensors))}.")
        stored = tensors[ROWS_KEY]
        width = None if kv_shape is None else kv_shape.row_width
        # Encoder-decoder adapters have rows for both halves; PEFT itself uses the encoder's only.
        counts = (num_rows,) if kv_shape is not None else (num_rows, 2 * num_rows)
        found = stored.shape[0] if isinstance(stored, StoredTensor) and len(stored.shape) == 2 else None
        if found is not None and found not in counts:
            raise PromptFileError(
                f"{path}: expected {num_rows} rows, as {config_path.name} says; found {found}. "
                "The files do not belong together: download or save the adapter again."
            )
        rows = read_rows(stored, path, width=width)
        if kind == _MULTITASK:
            rows = finite_rows(rows.float() * _task_factor(tensors, path, rows, task_id), path)
    return rows[:num_rows].clone() if len(rows) > num_rows else rows


def _kind(config: Mapping[str, Any], path: Path) -> str:
    kind = config.get("peft_type")
    if isinstance(kind, str) and kind in _READABLE:
        return kind
    raise PromptFileError(
        f"{path}: expected peft_type to be one of {', '.join(_READABLE)}; found {shown(kind)}: adapters of this kind "
        "change weights or activations. Use PEFT for it."
    )


def _kv_shape(config: Mapping[str, Any], path: Path) -> KVShape:
    """The sizes of a prefix-tuning adapter, whose attention heads are those of keys and values."""
    names = ("num_layers", "num_attention_heads", "token_dim")
    sizes: list[Any] = [config.get(name) for name in names]
    if config.get("num_transformer_submodules") not in (None, 1):
        raise PromptFileError(
            f"{path}: expected prefix tuning of a decoder; found an encoder-decoder's. Use PEFT for it."
        )
    if not all(map(is_size, sizes)) or sizes[2] % sizes[1]:
        found = ", ".join(f"{name}={shown(size)}" for name, size in zip(names, sizes, strict=True))
        raise PromptFileError(f"{path}: expected positive sizes, the last a multiple of the heads; found {found}.")
    return KVShape(sizes[0], sizes[1], sizes[2] // sizes[1])


def _task_factor(tensors: Mapping[str, Any], path: Path, rows: Tensor, task_id: int | None) -> Tensor:
    """The low-rank factor of one task (Wang et al. 2023), float32 [rows, width]: ``cols[task] @ rows[task]``."""
    cols, task_rows = (_stored_factor(tensors, key, path) for key in ("prefix_task_cols", "prefix_task_rows"))
    num_tasks, _, rank = cols.shape
    expected = [[num_tasks, rows.shape[0], rank], [num_tasks, rank, rows.shape[1]]]
    found = [list(cols.shape), list(task_rows.shape)]
    if found != expected or not 0 < rank <= MAX_TASK_RANK:
        raise PromptFileError(
            f"{path}: expected task factors of shapes {expected}, of a rank from 1 to {MAX_TASK_RANK}; found {found}."
        )
    if task_id is None and num_tasks > 1:
        raise PromptFileError(f"{path}: holds {num_tasks} tasks; say which with task_id=0..{num_tasks - 1}.")
    task = task_id or 0
    if not 0 <= task < num_tasks:
        raise PromptFileError(f"{path}: expected a task_id from 0 to {num_tasks - 1}; found {task}.")
    # In float32 also where they are stored in half: their product may be larger than half precision holds.
    return read_rows(cols.part(task), path).float() @ read_rows(task_rows.part(task), path).float()


def _stored_factor(tensors: Mapping[str, Any], key: str, path: Path) -> StoredTensor:
    factor = tensors.get(key)
    if not isinstance(factor, StoredTensor) or len(factor.shape) != 3:
        raise PromptFileError(f"{path}: expected a tensor {key!r} [tasks, ., .] of a multitask adapter.")
    return factor


def _kind_of(value: Any) -> str:
    return "a bare tensor" if isinstance(value, StoredTensor) else type(value).__name__
