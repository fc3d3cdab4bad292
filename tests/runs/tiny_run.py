"""Runs on a tiny model and a few rows, as configurations describe them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_models import sharp_model, tiny_tokenizer

from ruprompt_fast.runs.config import DataConfig, ModelConfig, OptimizationConfig, TrainConfig
from ruprompt_fast.training.task import Task

TASK = Task("<P*3>{text}<P*2>", target=" {answer}", truncation_field="text")
ROWS = [{"text": "абвгд" * (1 + index % 3), "answer": "да" if index % 2 else "нет"} for index in range(12)]

CLASSIFICATION = Task("<P*3>{text}<P>", "classification", label_field="label", labels={"1": "да", "0": "нет"})
LABELLED_ROWS = [{"text": row["text"], "label": index % 2} for index, row in enumerate(ROWS)]


def save_model(folder: Path) -> Path:
    """A folder with a tiny model and its tokenizer."""
    sharp_model("gpt2").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """A JSONL file of rows; returns its path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tiny_config(
    folder: Path,
    model_folder: Path = Path("/no/model/here"),
    *,
    task: Task = TASK,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    optimization: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    **settings: Any,
) -> TrainConfig:
    """A run of six steps whose data and output are in ``folder``."""
    source = write_rows(folder / "rows.jsonl", rows)
    config = TrainConfig(
        task=task,
        data=DataConfig(**{"train": source, "validation": source, **(data or {})}),
        output=str(folder / "run"),
        model=ModelConfig(name=str(model_folder)),
        optimization=OptimizationConfig(**{"max_steps": 6, "batch_size": 4, **(optimization or {})}),
    )
    return replace(config, **settings)
