"""``ruprompt-fast convert-base FILE.gguf FOLDER [--dtype float32|float16|bfloat16]``."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruprompt_fast.errors import HubError, MissingDependencyError, OutputExistsError, described
from ruprompt_fast.file_writer import naming_write_errors, unfinished_folder

_MAGIC = b"GGUF"
_DTYPES = ("float32", "float16", "bfloat16")


def run(arguments: Sequence[str]) -> None:
    """Save a GGUF file's model and tokenizer as a folder that every command takes for a base model."""
    parser = argparse.ArgumentParser(
        prog="ruprompt-fast convert-base",
        description="Save the model and tokenizer of a GGUF file as a folder that transformers reads; quantized "
        "weights become plain ones.",
    )
    parser.add_argument("file", help="the GGUF file")
    parser.add_argument("folder", help="the new folder")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="the weights' dtype; float32 by default")
    given = parser.parse_args(list(arguments))
    convert_base(Path(given.file).expanduser(), Path(given.folder).expanduser(), given.dtype)
    print(f"{given.folder}: the model and tokenizer of {given.file}, in {given.dtype}")


def convert_base(file: Path, folder: Path, dtype: str = "float32") -> None:
    """Save the model and tokenizer of a GGUF file as a folder; it appears when it is complete.

    Args:
        file: the GGUF file.
        folder: the new folder.
        dtype: the name of the weights' dtype.

    Raises:
        HubError: the file is no GGUF file, is damaged, or holds a model that transformers cannot read from one.
        OutputExistsError: the folder is there already.
        MissingDependencyError: the package gguf is not installed.
        FileWriteError: the folder cannot be written.
    """
    _check_file(file)
    if folder.exists():
        raise OutputExistsError(f"{folder} is there already. Give the name of a new folder, or remove it first.")
    missing = [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingDependencyError(
            f"reading GGUF files needs the package(s) {', '.join(missing)}: pip install 'ruprompt-fast[gguf]'."
        )
    parts = _read(file, dtype)
    with naming_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(folder.parent) as partial:
            for part in parts:
                part.save_pretrained(partial)
            partial.rename(folder)


def _check_file(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_MAGIC))
    except OSError as error:
        raise HubError(f"{file}: expected a GGUF file; it cannot be read: {error.strerror or error}.") from error
    if magic != _MAGIC:
        raise HubError(f"{file}: expected a GGUF file, which begins with {_MAGIC!r}; found {magic!r}.")


def _read(file: Path, dtype: str) -> tuple[Any, Any]:
    """The model and the tokenizer of a GGUF file."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": file.name, "local_files_only": True}
    # A transformers that has this class can keep weights packed, and does unless it is told not to.
    config_class = getattr(transformers, "GgufConfig", None)
    plain = {} if config_class is None else {"quantization_config": config_class(dequantize=True)}
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=getattr(torch, dtype), **plain, **where)
        _forget_packing(model)
        return model, AutoTokenizer.from_pretrained(file.parent, **where)
    except MemoryError:
        raise
    except Exception as error:  # gguf's own and transformers' own, for every kind of damage
        raise HubError(f"{file}: transformers cannot read this GGUF file: {described(error)}") from error


def _forget_packing(model: Any) -> None:
    """Let go of what transformers notes of a file's packed weights: it refuses to save a model that has it."""
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)
