"""Configurations: YAML, overrides, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from ruprompt_fast import errors
from ruprompt_fast.prompts import PromptFormat
from ruprompt_fast.runs.config import (
    DataConfig,
    OptimizationConfig,
    ProviderConfig,
    TrainConfig,
    config_yaml,
)
from ruprompt_fast.runs.parsing import parse_config, read_config
from ruprompt_fast.runs.task_files import TASK_FILES
from ruprompt_fast.training.task import Task

REQUIRED = ("task.template=<P*3>{text}", "task.target= {answer}", "data.train=rows.jsonl", "output=run")


def parsed(*arguments: str) -> TrainConfig:
    return parse_config(TrainConfig, arguments, prog="ruprompt-fast train")


def test_defaults() -> None:
    task = Task("<P*3>{text}", target=" {answer}")
    assert parsed(*REQUIRED) == TrainConfig(task, DataConfig("rows.jsonl"), "run")


def test_overrides_in_both_forms_and_of_every_type() -> None:
    config = parsed(
        *REQUIRED,
        "optimization.max_steps=10",
        "--optimization.learning_rate=1e-3",
        "optimization.report_to=[tensorboard]",
        "--optimization.report_to+=wandb",
        "provider.kind=mlp",
        "provider.residual=true",
        "task.columns.text=article",
        "data.validation=held_out.jsonl",
        "seed=3",
        "--seed",
        "4",
    )
    assert config.optimization == OptimizationConfig(10, learning_rate=1e-3, report_to=["tensorboard", "wandb"])
    assert config.provider == ProviderConfig("mlp", residual=True)
    assert config.task.columns == {"text": "article"}
    assert config.data.validation == "held_out.jsonl"
    assert config.seed == 4


def test_a_file_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "config=1.yaml"
    path.write_text(
        "task: {template: '<P*3>{text}', objective: classification, label_field: kind,"
        " labels: {1: ' стихи', 2.5: ' рассказ', false: ' письмо'}}\n"
        "data: {train: rows.csv}\noutput: run\nseed: 5\n",
        encoding="utf-8",
    )
    config = parsed(str(path), "seed=6", "task.labels.1= проза")
    assert config.task.labels == {"1": " проза", "2.5": " рассказ", "false": " письмо"}
    assert config.seed == 6
    assert parsed("seed=6", str(path)).seed == 5


def test_a_written_configuration_reads_back(tmp_path: Path) -> None:
    config = parsed(*REQUIRED, "provider.init=labels", "provider.labels=[да, нет]", "task.columns={text: а}")
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(config), encoding="utf-8")
    assert read_config(TrainConfig, path) == config


def test_print_config_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(*REQUIRED, "seed=7", "--print_config")
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(config_yaml(parsed(*REQUIRED, "seed=7")))


def test_help_describes_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    keys = yaml.safe_load(config_yaml(parsed(*REQUIRED)))
    names = [
        name
        for key, value in keys.items()
        for name in ([f"{key}.{part}" for part in value] if isinstance(value, dict) else [key])
    ]
    assert [name for name in names if f"--{name}" not in text] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimization.max_step=3"], "unknown key 'optimization.max_step'.*Did you mean 'max_steps'"),
        (["outputs=3"], "unknown key 'outputs'.*Did you mean 'output'"),
        (["optimization.lr=0.1"], "unknown key 'optimization.lr'.*Did you mean 'optimization.learning_rate'"),
        (["learning_rate=0.1"], "Did you mean 'optimization.learning_rate'"),
        (["lr=0.1"], "Did you mean 'optimization.learning_rate'"),
        (["optimization.template=x"], "Did you mean 'task.template'"),
        (["seed.a=3"], "'seed' holds one value"),
        (["optimization.max_steps=many"], "optimization.max_steps must be a whole number; found 'many'"),
        (["resume=maybe"], "resume must be true or false; found 'maybe'"),
        (["provider.kind=lst"], "provider.kind must be one of tensor, lstm, .*Did you mean 'lstm'"),
        (["task.columns=5"], "task.columns must be keys and values"),
        (["optimization.eval_steps=many"], "optimization.eval_steps must be a whole number or null; found 'many'"),
        (["optimization.schedule=liner"], "must be one of constant, linear, cosine or null.*Did you mean 'linear'"),
        (["provider.init=vocabulary"], "provider.init.*vocabulary"),
        (["provider.init=prompt:"], "provider.init must name a folder"),
        (["provider.init=prompt:x", "provider.kind=lstm"], "no network that made them"),
        (["provider.init=prompt:x", "ensemble_size=2"], "equal ones"),
        (["model.quantization=int8"], "int8 cannot be trained on"),
        (["model.device=cuda:7"], "must be cpu or cuda in training; found 'cuda:7'.*CUDA_VISIBLE_DEVICES"),
        (["task=3"], "^task has the keys template, .*; found '3' for all of them. Write task.template=VALUE"),
        (["model=bundled"], "Write model.name=VALUE"),
        (["--data", ""], "Write data.train=VALUE"),
        (["--seed"], "expected a value after --seed"),
        (["--seed", "--resume=true"], "expected a value after --seed"),
        (["nowhere.yaml"], "nowhere.yaml: expected a YAML file"),
        (["optimization.max_steps=0"], "optimization.max_steps must be at least 1; found 0"),
        (["data.limit=0"], "data.limit must be at least 1"),
        (["optimization.learning_rate=.inf"], "optimization.learning_rate must be a finite number"),
        (["optimization.warmup_fraction=1.5"], "at most 1"),
        (["optimization.eval_steps=5"], "data.validation"),
        (["optimization.early_stopping_patience=5"], "eval_steps"),
        (
            ["data.validation=a.csv", "optimization.eval_steps=4", "optimization.save_steps=6"],
            "multiple of eval_steps, 4",
        ),
        (["ensemble_size=0"], "ensemble_size must be at least 1"),
        (["seed=-1"], "seed must be at least 0"),
        (["seed=4294967296"], "seeds must be below 4294967296.*found 4294967296"),
        (["seed=4294967295", "ensemble_size=2"], "seeds must be below 4294967296, those of an ensemble too"),
        (["optimization.weight_decay=.inf"], "optimization.weight_decay must be finite; found inf"),
        (["output="], "output must name a folder"),
    ],
)
def test_bad_settings_are_named(arguments: Sequence[str], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        parsed(*REQUIRED, *arguments)


def test_required_keys_are_named() -> None:
    with pytest.raises(errors.ConfigError, match=r"task\.template, data\.train"):
        parsed("output=run")


def test_errors_of_the_task_are_its_own() -> None:
    with pytest.raises(errors.TaskError, match="truncation_field"):
        parsed(*REQUIRED, "task.truncation_field=body")
    with pytest.raises(errors.LabelError, match="label words of its own"):
        parsed(
            "task.template=<P*3>{text}",
            "task.objective=classification",
            "task.label_field=kind",
            "task.labels={a: ' x', b: ' x'}",
            *REQUIRED[2:],
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: [", "expected YAML"),
        ("- a\n", "expected keys and values; found list"),
        ("optimization: {max_step: 3}\n", "config.yaml: unknown key 'optimization.max_step'.*Did you mean 'max_steps'"),
        ("task: {labels: {a: {b: c}}}\n", "task"),
    ],
)
def test_a_bad_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(errors.ConfigError, match=message):
        parsed(str(path), *REQUIRED)


def test_without_jsonargparse_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(errors.MissingDependencyError, match=r"ruprompt-fast\[train\]"):
        parsed(*REQUIRED)


def test_there_are_six_tasks_and_a_small_one_of_each() -> None:
    names = {"joke", "proverb", "summarization", "title", "detoxification", "question_answering"}
    assert set(TASK_FILES) == names | {f"{name}-small" for name in names}


@pytest.mark.parametrize("name", TASK_FILES)
def test_the_tasks_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parsed(name)
    assert config.task.target_template is not None
    assert config.task.required_columns
    assert set(PromptFormat(config.task.template).fields) == set(re.findall(r"\{(\w+)\}", config.task.template))
    assert config.data.validation is not None
    assert config.output == f"prompts/{name}"
    assert (config.model.name == "bundled") == name.endswith("-small")
    assert config.task.template == parsed(name.removesuffix("-small")).task.template
    assert read_config(TrainConfig, name) == config
    # What is in the working directory, and what comes later, wins.
    assert parsed(name, "seed=7").seed == 7
    Path(name).write_text("output: mine\n", encoding="utf-8")
    assert parsed(*REQUIRED[:3], name).output == "mine"


def test_a_mistyped_task() -> None:
    with pytest.raises(errors.ConfigError, match="one of the tasks detoxification, .*Did you mean 'detoxification'"):
        parsed("detoxfication")
