"""The model card of a trained prompt: its README, with the YAML front matter of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ruprompt_fast.prompts import Prompt
from ruprompt_fast.prompts.ensemble import PromptEnsemble, members_of
from ruprompt_fast.runs.config import BUNDLED, TrainConfig
from ruprompt_fast.runs.start import BUNDLED_MODEL_NAME
from ruprompt_fast.training.recipes import Recipe

_PLACE = '"path or hub id of this prompt"'

_FIGURES = {
    "train_loss": "training loss, nats",
    "eval_loss": "held-out loss, nats",
    "eval_loss_before": "held-out loss before the first step",
    "eval_accuracy": "held-out accuracy",
    "eval_accuracy_before": "held-out accuracy before the first step",
    "tokens_per_second": "tokens of data per second",
    "seconds": "seconds",
    "train_rows": "rows trained on",
    "validation_rows": "rows held out",
    "skipped_rows": "rows skipped",
}


@dataclass(frozen=True)
class TrainedPrompt:
    """What a card says about a run.

    Attributes:
        config: its configuration.
        recipe: the settings of the optimizer.
        metrics: the figures.
        num_parameters: how many numbers were trained.
        runner: ``packed`` or ``padded``.
        prompt: the prompt or the ensemble.
    """

    config: TrainConfig
    recipe: Recipe
    metrics: Mapping[str, float]
    num_parameters: int
    runner: str
    prompt: Prompt | PromptEnsemble

    @property
    def name(self) -> str:
        """The prompt's name."""
        return self.config.prompt_name or Path(self.config.output).resolve().name

    @property
    def base_model(self) -> str:
        """The frozen model's name."""
        return BUNDLED_MODEL_NAME if self.config.model.name == BUNDLED else self.config.model.name


def model_card(trained: TrainedPrompt) -> str:
    """The text of ``README.md``."""
    front_matter = ModelCardData(
        base_model=trained.base_model,
        library_name="ruprompt-fast",
        tags=["soft-prompt", "prompt-tuning", "ruprompt-fast", trained.config.task.objective],
    ).to_yaml(line_break="\n")
    members = members_of(trained.prompt)
    what = "A soft prompt" if len(members) == 1 else f"{len(members)} soft prompts"
    size = f"{members[0].format.prompt_length} rows, trained through {trained.num_parameters} numbers"
    optimization = asdict(trained.config.optimization)
    rest = {"batches": trained.runner, "seed": trained.config.seed}
    return f"""---
{front_matter}
---

# {trained.name}

{what} for the frozen model `{trained.base_model}`: {size}.

## Use

```python
{_usage(trained)}
```

## Task

{_bullets(asdict(trained.config.task))}

## Data

{_bullets(asdict(trained.config.data))}

## Training

{_bullets({**asdict(trained.config.provider), **optimization, **asdict(trained.recipe), **rest})}

## Figures

| | |
|---|---|
{_table(trained.metrics)}

`history.jsonl` holds what was logged, `curve.png` the loss over the steps, `config.yaml` the whole configuration.
"""


def _usage(trained: TrainedPrompt) -> str:
    task, name = trained.config.task, trained.name
    fields = ", ".join(f"{_quoted(field)}: ..." for field in task.fields)
    model = "bundled.MODEL" if trained.config.model.name == BUNDLED else _quoted(trained.base_model)
    method = "classify" if task.objective == "classification" else "generate"
    has_several = len(task.verbalizers.words) > len(task.label_words)
    words = _quoted(dict(task.labels or {}) if has_several else task.label_words)
    lines = [
        "from ruprompt_fast import FastPromptModel, bundled",
        f"model = FastPromptModel.from_pretrained({model}, prompts={{{_quoted(name)}: {_PLACE}}})",
    ]
    answer = f"model.{method}([{{{fields}}}], prompt={_quoted(name)}"
    if task.objective == "classification":
        lines.append(f"print({answer}, labels={words})[0].label)")
    else:
        lines.append(f"print({answer})[0].text)")
    if trained.config.model.name != BUNDLED:
        lines[0] = lines[0].removesuffix(", bundled")
    return "\n".join(lines)


def _bullets(values: Mapping[str, Any]) -> str:
    given = {key: value for key, value in values.items() if value not in (None, "", [], {})}
    return "\n".join(f"- {key}: `{_shown(value)}`" for key, value in given.items())


def _table(metrics: Mapping[str, float]) -> str:
    return "\n".join(f"| {label} | {metrics[key]:.6g} |" for key, label in _FIGURES.items() if key in metrics)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else _quoted(value)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
