"""Configurations of runs, as plain dataclasses; :mod:`ruprompt_fast.runs.parsing` reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import yaml

from ruprompt_fast.errors import ConfigError, shown
from ruprompt_fast.prompts.providers.init_mode import InitMode
from ruprompt_fast.runs.data.row_format import Quoting, RowFormat
from ruprompt_fast.runs.data.rows import OnBadRow
from ruprompt_fast.training.task import Task

BUNDLED = "bundled"
"""The name of the model that comes with the package."""

# transformers seeds NumPy too, whose seeds have 32 bits.
_NUM_SEEDS = 2**32

_SAVED = "prompt:"

# Of several GPUs the process takes the first that it sees, or under torchrun its own.
_TRAINING_DEVICES = (None, "cpu", "cuda", "cuda:0")


@dataclass
class ModelConfig:
    """The frozen model.

    Attributes:
        name: the bundled model, a folder, or a hub id.
        dtype: the dtype of the weights; auto takes the file's.
        quantization: int8 keeps the weights of the frozen matrices as 8-bit integers; for serving alone.
        device: where it runs, such as cpu or cuda:0; by default the GPU if there is one.
        threads: how many threads of a CPU compute; by default one for each processor, and in serving fewer for as long
            as other programs take processors.
    """

    name: str = BUNDLED
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    quantization: Literal["int8"] | None = None
    device: str | None = None
    threads: int | None = None


@dataclass
class DataConfig:
    """The rows to train and to validate on.

    Attributes:
        train: a file of rows (.jsonl, .json, .csv, .tsv, .txt or .parquet, also compressed), a folder, or the id of a
            hub data set.
        validation: the rows to validate on, likewise; none by default.
        name: the configuration of a hub data set.
        train_split: the split of a hub data set to train on.
        validation_split: the split of a hub data set to validate on.
        on_bad_row: whether a broken row is an error or is left out and counted.
        limit: how many rows to train on; all by default.
        validation_limit: how many rows to validate on; all by default.
        delimiter: what is between the values of a CSV or TSV file; by default a comma or a tab.
        quoting: standard for values in quotation marks, none where they are text; by default standard for CSV, none
            for TSV.
        encoding: of text files; by default UTF-8, or what a mark at their beginning says.
    """

    train: str
    validation: str | None = None
    name: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    on_bad_row: OnBadRow = "fail"
    limit: int | None = None
    validation_limit: int | None = None
    delimiter: str | None = None
    quoting: Quoting | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        RowFormat(self.delimiter, self.quoting, self.encoding)
        _at_least("data", 1, limit=self.limit, validation_limit=self.validation_limit)


@dataclass
class ProviderConfig:
    """What makes the prompt's rows.

    Attributes:
        kind: rows trained directly, through an LSTM or an MLP, or keys and values of every layer.
        init: the first values of the rows: vocab, random, frequent, text, labels, or prompt:FOLDER for the rows of a
            saved prompt, whose training goes on.
        text: the text of init=text.
        labels: the class labels of init=labels.
        hidden_dim: the width of hidden layers; the model's by default (prefix: no hidden layer by default).
        residual: whether an MLP's inputs are added to its outputs.
        std: the standard deviation of init=random.
    """

    kind: Literal["tensor", "lstm", "mlp", "prefix"] = "tensor"
    init: str = "vocab"
    text: str | None = None
    labels: list[str] | None = None
    hidden_dim: int | None = None
    residual: bool = False
    std: float | None = None

    def __post_init__(self) -> None:
        _at_least("provider", 1, hidden_dim=self.hidden_dim)
        _above_zero("provider", std=self.std)
        if self.init.startswith(_SAVED):
            self._check_saved()
        elif self.init not in get_args(InitMode):
            raise ConfigError(
                f"provider.init must be one of {', '.join(get_args(InitMode))}, or {_SAVED}FOLDER for the rows of a "
                f"saved prompt; found {shown(self.init)}."
            )

    @property
    def start(self) -> str | None:
        """Where the saved prompt is whose rows are the first values, a folder or a hub id; None for other values."""
        return self.init.removeprefix(_SAVED) if self.init.startswith(_SAVED) else None

    def _check_saved(self) -> None:
        if not self.start:
            raise ConfigError(f"provider.init must name a folder after {_SAVED}; found {shown(self.init)}.")
        # What a network made is saved; the network is not.
        if self.kind not in ("tensor", "prefix") or self.hidden_dim is not None:
            raise ConfigError(
                f"provider.init={_SAVED}FOLDER needs provider.kind=tensor, or prefix without hidden_dim: a saved "
                "prompt has rows, and no network that made them."
            )


@dataclass
class OptimizationConfig:
    """How the prompt is trained.

    Attributes:
        max_steps: optimizer steps.
        batch_size: samples of a forward pass, on each device.
        gradient_accumulation_steps: forward passes of a step.
        learning_rate: the highest learning rate; the provider's recipe by default.
        optim: the optimizer.
        schedule: how the learning rate changes after warm-up; the provider's recipe by default.
        warmup_fraction: the part of all steps over which the learning rate rises; the provider's recipe by default.
        weight_decay: weight decay; the provider's recipe by default.
        max_grad_norm: the norm that gradients are cut to; the provider's recipe by default.
        eval_steps: steps between validations, the best of which is kept; by default one validation at the end.
        save_steps: steps between checkpoints, a multiple of eval_steps; by default that or a tenth of all steps.
        early_stopping_patience: stop after as many validations without improvement.
        precision: the precision of the computation; the loss is always fp32.
        gradient_checkpointing: compute layers again in the backward pass instead of keeping their activations.
        report_to: trackers that transformers knows, such as tensorboard or wandb.
    """

    max_steps: int = 400
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float | None = None
    optim: Literal["adamw", "adafactor"] = "adamw"
    schedule: Literal["constant", "linear", "cosine"] | None = None
    warmup_fraction: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    eval_steps: int | None = None
    save_steps: int | None = None
    early_stopping_patience: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    report_to: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _at_least(
            "optimization",
            1,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            eval_steps=self.eval_steps,
            save_steps=self.save_steps,
            early_stopping_patience=self.early_stopping_patience,
        )
        _at_least("optimization", 0, weight_decay=self.weight_decay, warmup_fraction=self.warmup_fraction)
        _above_zero("optimization", learning_rate=self.learning_rate, max_grad_norm=self.max_grad_norm)
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ConfigError("optimization.early_stopping_patience counts validations; give eval_steps too.")
        if self.eval_steps is not None and self.save_steps is not None and self.save_steps % self.eval_steps:
            raise ConfigError(
                f"optimization.save_steps must be a multiple of eval_steps, {self.eval_steps}, so that the best prompt "
                f"is among the checkpoints; found {self.save_steps}."
            )
        if self.warmup_fraction is not None and self.warmup_fraction > 1:
            raise ConfigError(f"optimization.warmup_fraction must be at most 1; found {self.warmup_fraction}.")


@dataclass
class TrainConfig:
    """Train a prompt for a task and write it to a folder.

    Attributes:
        task: the task.
        data: the rows.
        output: the folder to write; it must not exist.
        model: the frozen model.
        provider: what makes the prompt's rows.
        optimization: how it is trained.
        ensemble_size: how many prompts to train in one run, with different seeds, for one task.
        seed: the seed of the first values and of the order of the rows.
        resume: continue the run in this folder: an interrupted one, or with more optimization.max_steps a finished
            one.
        prompt_name: the name of the prompt in its card; the folder's by default.
    """

    task: Task
    data: DataConfig
    output: str
    model: ModelConfig = field(default_factory=ModelConfig)
    provider: ProviderConfig = field(default_factory=ProviderConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    ensemble_size: int = 1
    seed: int = 0
    resume: bool = False
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        _at_least("", 1, ensemble_size=self.ensemble_size)
        _at_least("", 0, seed=self.seed)
        if self.seed + self.ensemble_size > _NUM_SEEDS:
            raise ConfigError(f"seeds must be below {_NUM_SEEDS}, those of an ensemble too; found {self.seed}.")
        if self.model.quantization is not None:
            raise ConfigError(
                f"model.quantization={self.model.quantization} cannot be trained on: quantized layers give no "
                "gradients. Leave it out; the prompt can be served with it."
            )
        if self.model.device not in _TRAINING_DEVICES:
            raise ConfigError(
                f"model.device must be cpu or cuda in training; found {shown(self.model.device)}. Choose a GPU with "
                "CUDA_VISIBLE_DEVICES."
            )
        if self.provider.start is not None and self.ensemble_size > 1:
            raise ConfigError("an ensemble whose prompts start from the same rows has equal ones; set ensemble_size=1.")
        if not self.output.strip():
            raise ConfigError("output must name a folder; found an empty string.")
        if self.optimization.eval_steps is not None and self.data.validation is None:
            raise ConfigError("optimization.eval_steps needs rows to validate on; give data.validation too.")


def config_yaml(config: Any) -> str:
    """A configuration as YAML, which :func:`~ruprompt_fast.runs.parsing.read_config` reads back."""
    text: str = yaml.safe_dump(_plain(asdict(config)), allow_unicode=True, sort_keys=False, width=120)
    return text


def _plain(value: Any) -> Any:
    """Mappings as dicts and sequences as lists, which is what YAML writes."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _at_least(place: str, low: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not low <= value < math.inf:
            wanted = "finite" if value == math.inf else f"at least {low}"
            raise ConfigError(f"{_dotted(place, name)} must be {wanted}; found {value}.")


def _above_zero(place: str, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{_dotted(place, name)} must be a finite number above 0; found {value}.")


def _dotted(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
