"""Prompts of the bundled model with the configuration that a training run leaves beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from ruprompt_fast import Prompt, TensorPromptProvider, bundled
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.runs.config import DataConfig, TrainConfig, config_yaml
from ruprompt_fast.training.task import Task

KIND = Task(
    "<s><P*10>{text}<P*10>", "classification", label_field="kind", labels={"verse": " стихи", "prose": " рассказ"}
)


def trained(folder: Path, name: str, task: Task) -> str:
    """A folder with a bundled prompt and the configuration of a run with this task."""
    shutil.copytree(bundled.PROMPTS[name], folder)
    return with_config(folder, task)


def with_config(folder: Path, task: Task) -> str:
    text = config_yaml(TrainConfig(task, DataConfig(train="rows.jsonl"), output=str(folder)))
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return str(folder)


def task_of(name: str, **arguments: Any) -> Task:
    """A task with a bundled prompt's template."""
    return Task(Prompt.from_pretrained(bundled.PROMPTS[name]).format.template, **arguments)


def ensemble_folder(folder: Path, name: str, task: Task, size: int = 3) -> str:
    """A folder with a bundled prompt and prompts of other rows beside it, as an ensemble."""
    first = Prompt.from_pretrained(bundled.PROMPTS[name])
    others = PromptEnsemble.of(
        first.format.template, lambda seed: TensorPromptProvider(init="vocab", seed=seed), range(1, size)
    )
    others.initialize(AutoModelForCausalLM.from_pretrained(bundled.MODEL), AutoTokenizer.from_pretrained(bundled.MODEL))
    PromptEnsemble([first, *others.members]).save_pretrained(folder)
    return with_config(folder, task)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any] | str]) -> str:
    """A file of rows; a string is a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
