"""``ruprompt-fast evaluate``: the command line; tests/runs/test_evaluate.py has what it measures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from ruprompt_fast import bundled
from ruprompt_fast.cli import main
from ruprompt_fast.runs.config import DataConfig, TrainConfig, config_yaml
from ruprompt_fast.training.task import Task

ROWS = "текст\tответ\tещё\nБез труда\tне вынешь рыбку\t\nСтарый друг\tлучше новых\tлучше новых двух\n"


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A prompt with its task, and a table with further references that may be missing."""
    shutil.copytree(bundled.PROMPTS["kind"], tmp_path / "prompt")
    task = Task("<s><P*10>{text}<P*10>", target=" {answer}", columns={"text": "текст", "answer": "ответ"})
    config = TrainConfig(task, DataConfig(train="rows.tsv"), output="prompt")
    (tmp_path / "prompt" / "config.yaml").write_text(config_yaml(config), encoding="utf-8")
    (tmp_path / "data.tsv").write_text(ROWS, encoding="utf-8")
    return ["--prompt", str(tmp_path / "prompt"), "--data", str(tmp_path / "data.tsv")]


def test_figures(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--references", "[ещё]", "--output", str(tmp_path / "figures"), "--max_new_tokens", "4"]
    more += ["--baselines", "false"]
    assert main(["evaluate", *options, *more]) == 0
    printed = capsys.readouterr().out.splitlines()
    metrics = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    assert list(metrics) == ["loss", "exact_match", "chrf", "rouge1", "rouge2", "rouge_l"]
    assert printed[:-1] == [f"{name}: {value:.6g}" for name, value in metrics.items()]
    assert "evaluated in" in printed[-1]
    lines = (tmp_path / "figures" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    references = [json.loads(line)["references"] for line in lines]
    assert references == [["не вынешь рыбку"], ["лучше новых", "лучше новых двух"]]


def test_a_table_beside_baselines(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--instruction", "Закончи: {text}", "--output", str(tmp_path / "figures"), "--max_new_tokens", "4"]
    assert main(["evaluate", *options, *more]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "figures" / "metrics.json").read_text())
    assert list(metrics["baselines"]) == list(metrics["differences"]) == ["no_prompt", "instruction", "copy"]
    for figures in (metrics, *metrics["baselines"].values()):
        assert f"{figures['chrf']:.4g}" in printed
    assert "no prompt" in printed
    assert "certainly better" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--refrences", "[ещё]"], "Did you mean 'references'?"),
        (["--references", "[еще]"], "Did you mean 'ещё'?"),
        (["--task", "no.yaml"], "no.yaml"),
        (["--output", "."], "expected no such folder"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--seed=-1"], "seed must be from 0"),
        (["--output", f"{__file__}/x"], "expected a place in a folder"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(["evaluate", *options, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("module", ["sacrebleu.metrics.chrf", "rouge_score.rouge_scorer"])
def test_a_missing_package_is_named_before_the_model_loads(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["evaluate", *options, "--model", "/no/model/here"]) == 2
    assert "pip install 'ruprompt-fast[train]'" in capsys.readouterr().err
