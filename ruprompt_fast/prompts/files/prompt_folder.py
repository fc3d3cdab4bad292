"""A prompt's folder: ruPrompts' files, ours, or a PEFT adapter.

``prompt.json`` holds the format and the config, ``prompt_provider.safetensors`` the rows under ``prompt_embeddings``.
ruPrompts wrote ``prompt_provider.bin`` in its place, ``torch.save`` of the bare tensor. A folder is read completely and
checked before anything is made of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ruprompt_fast.errors import FileWriteError, PromptFileError, TemplateError, shown
from ruprompt_fast.file_writer import make_folder, text_writer, write_together
from ruprompt_fast.prompts.files.base_model import BaseModel
from ruprompt_fast.prompts.files.prompt_config import PromptConfig
from ruprompt_fast.prompts.files.reading.json_object import parse_object, read_json
from ruprompt_fast.prompts.files.reading.regular_file import open_regular
from ruprompt_fast.prompts.files.reading.safetensors_file import safetensors_index
from ruprompt_fast.prompts.files.reading.stored_rows import read_rows
from ruprompt_fast.prompts.files.reading.torch_file import read_torch
from ruprompt_fast.prompts.files.rows_file import ROWS_KEY, rows_writer
from ruprompt_fast.prompts.format.layout import RowsFromText, Special
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.format.template import BEGIN, END, compile_parts, marker_for_key, parse_template
from ruprompt_fast.prompts.limits import MAX_INDEX_BYTES, MAX_JSON_BYTES, MAX_TENSOR_FILE_BYTES

PROMPT_FILE_NAME = "prompt.json"
PROMPT_PROVIDER_FILE_NAME = "prompt_provider.bin"
PROMPT_SAFETENSORS_FILE_NAME = "prompt_provider.safetensors"


@dataclass(frozen=True)
class StoredPrompt:
    """What a folder holds.

    Attributes:
        format: the format, initialized.
        config: the config.
        rows: the rows, [rows, width], on the CPU; those of a deep prompt as ``config.kv_shape`` says.
    """

    format: PromptFormat
    config: PromptConfig
    rows: Tensor


def read_prompt(folder: Path) -> StoredPrompt:
    """Read ``prompt.json`` and the rows beside it, the safetensors file if there are both.

    Raises:
        PromptFileError: a file is missing, malformed, or does not belong to the other.
        UnsafeFileError: the rows are not plain dense numbers.
        NonFiniteRowsError: they contain NaN or infinity.
    """
    path = folder / PROMPT_FILE_NAME
    content = read_json(path)
    format = _read_format(content, path)
    config = _read_config(content, path)
    safe, unsafe = folder / PROMPT_SAFETENSORS_FILE_NAME, folder / PROMPT_PROVIDER_FILE_NAME
    if config.kv_shape is not None:
        _check_deep(format, path)
    if config.prompt_length not in (None, format.prompt_length):
        raise PromptFileError(
            f"{path}: expected a prompt_length of {format.prompt_length}, the number of markers in compiled_template; "
            f"found {config.prompt_length}. The file was edited by hand: save the prompt again."
        )
    # Whatever has the name counts, also a pipe or a broken link, so that the error is about that.
    if os.path.lexists(safe):
        rows = _read_safe(safe, format, config)
    elif os.path.lexists(unsafe):
        with open_regular(unsafe, MAX_TENSOR_FILE_BYTES) as file:
            rows = read_rows(read_torch(file), unsafe, format.prompt_length, config.row_width)
    else:
        raise PromptFileError(
            f"{folder}: expected {safe.name} or {unsafe.name} beside {path.name}; found neither. "
            "Copy the whole folder of the prompt."
        )
    return StoredPrompt(format, config, rows)


def write_prompt(folder: Path, content: Mapping[str, Any], rows: Tensor, save_bin: bool = False) -> None:
    """Write a prompt's files; none changes before all are complete.

    Args:
        folder: where to; created if it does not exist.
        content: what ``prompt.json`` holds.
        rows: the rows, [rows, width].
        save_bin: whether to write ``prompt_provider.bin`` too, for ruPrompts. One that is there already is written
            again in any case: left alone it would belong to another prompt.

    Raises:
        FileWriteError: the files cannot be written, or could not be read again.
    """
    text = _json_text(content, folder / PROMPT_FILE_NAME)
    most, size = MAX_TENSOR_FILE_BYTES - MAX_INDEX_BYTES, rows.numel() * rows.element_size()
    if size > most:
        raise FileWriteError(f"{folder}: expected at most {most} bytes of rows, as may be read again; found {size}.")
    make_folder(folder)
    names = [PROMPT_SAFETENSORS_FILE_NAME]
    if save_bin or os.path.lexists(folder / PROMPT_PROVIDER_FILE_NAME):
        names.append(PROMPT_PROVIDER_FILE_NAME)
    writers = {folder / name: rows_writer(rows, name) for name in names}
    write_together({**writers, folder / PROMPT_FILE_NAME: text_writer(text)})


def _json_text(content: Mapping[str, Any], path: Path) -> str:
    """The text of ``prompt.json``, if it is one that may be read again.

    Raises:
        FileWriteError: it is not.
    """
    try:
        text = json.dumps(content, indent=2) + "\n"
        parse_object(text.encode("utf-8"), path)
    except (TypeError, ValueError, RecursionError) as error:
        raise FileWriteError(f"the prompt's template or config cannot be written: {error}") from error
    if len(text) > MAX_JSON_BYTES:
        raise FileWriteError(
            f"{path}: expected at most {MAX_JSON_BYTES} bytes, as may be read again; found {len(text)}. Shorten the "
            "template."
        )
    return text


def _read_safe(path: Path, format: PromptFormat, config: PromptConfig) -> Tensor:
    with open_regular(path, MAX_TENSOR_FILE_BYTES) as file:
        tensors = safetensors_index(file)
        if set(tensors) != {ROWS_KEY}:
            raise PromptFileError(f"{path}: expected one tensor named {ROWS_KEY!r}; found {shown(sorted(tensors))}.")
        return read_rows(tensors[ROWS_KEY], path, format.prompt_length, config.row_width)


def _read_format(content: Mapping[str, Any], path: Path) -> PromptFormat:
    stored = content.get("format")
    if not isinstance(stored, dict) or not isinstance(stored.get("template"), str):
        raise PromptFileError(f'{path}: expected {{"format": {{"template": ..., "compiled_template": ...}}}}.')
    unknown = sorted(stored.keys() - {"template", "compiled_template"})
    compiled = stored.get("compiled_template")
    if unknown or not isinstance(compiled, str | None):
        raise PromptFileError(
            f"{path}: expected the strings template and compiled_template in format; found also {shown(unknown)}, and "
            f"{type(compiled).__name__} as compiled_template. A newer version may have written it: update this package."
        )
    try:
        format = PromptFormat(stored["template"], compiled or _compile(stored["template"], path))
    except TemplateError as error:
        raise PromptFileError(f"{path}: {error}") from error
    if not format.prompt_length:
        raise PromptFileError(f"{path}: expected markers in compiled_template; found none in {shown(compiled)}.")
    return format


def _check_deep(format: PromptFormat, path: Path) -> None:
    try:
        format.without_leading_rows()
    except TemplateError as error:
        raise PromptFileError(f"{path}: {error}") from error


def _compile(template: str, path: Path) -> str:
    """The compiled form of a template that needs no tokenizer for it."""
    parts = parse_template(template)
    if any(isinstance(part, RowsFromText) or part in (Special(BEGIN), Special(END)) for part in parts):
        raise PromptFileError(
            f"{path}: expected compiled_template, because the template {shown(template)} has rows made from a text, or "
            f"{BEGIN} or {END}, which a tokenizer gives a meaning; found none. Save the prompt again."
        )
    layout, _ = compile_parts(parts, lambda text: [])
    return layout.compiled(marker_for_key(None))


def _read_config(content: Mapping[str, Any], path: Path) -> PromptConfig:
    stored = content.get("config", {})
    base = content.get("base_model")
    try:
        config = PromptConfig.from_dict(stored)
        config.base_model = None if base is None else BaseModel.from_dict(base)
    except PromptFileError as error:
        raise PromptFileError(f"{path}: {error}") from error
    if config.is_safe:
        raise PromptFileError(
            f"{path}: expected a prompt with one marker; found is_safe=true, markers with serial numbers, which no "
            "version of ruPrompts can write."
        )
    return config
