"""``ruprompt-fast train``, and what its commands cost before they are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs.tiny_run import save_model, tiny_config

from ruprompt_fast import Prompt
from ruprompt_fast.cli import COMMANDS, main
from ruprompt_fast.runs.config import config_yaml
from ruprompt_fast.runs.task_files import TASK_FILES

# Without the packages of the extra "train", as an installation without it has them.
HELP_WITHOUT_EXTRA = """
import sys
for name in ("accelerate", "datasets", "jsonargparse", "matplotlib", "rouge_score", "sacrebleu"):
    sys.modules[name] = None
from ruprompt_fast.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    code = stop.code
print(code, [name for name in ("ruprompt_fast.prompts", "ruprompt_fast.runs", "transformers") if name in sys.modules])
"""


def test_training_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path, save_model(tmp_path / "model"))
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(config), encoding="utf-8")
    output = tmp_path / "prompts" / "answers"
    arguments = ["train", str(path), f"output={output}", "optimization.max_steps=2", "--seed=3"]
    capsys.readouterr()  # what saving the model showed
    assert main(arguments) == 0
    captured = capsys.readouterr()
    shown = captured.out
    assert captured.err == ""  # no progress bars where there is no terminal
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == 2
    assert f"eval_loss: {metrics['eval_loss']:.6g}" in shown
    assert f"{output}: trained in" in shown
    assert Prompt.from_pretrained(output).is_initialized

    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ruprompt-fast: {output}: expected no such folder; found a finished run")
    assert error.count("\n") == 1
    assert main([*arguments, "resume=true"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["outputs=x"], "Did you mean 'output'?"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["task.template=<P>{text}", "task.target={text}", "data.train=nowhere.jsonl", "output=x"], "nowhere.jsonl"),
        (
            ["task.template=<P>{text}", "task.target={text}", "data.train=nowhere.jsonl", f"output={__file__}/x"],
            "expected a place in a folder",
        ),
    ],
)
def test_wrong_settings_are_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_needs_no_extra_and_imports_no_command() -> None:
    command = [sys.executable, "-c", HELP_WITHOUT_EXTRA]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "0 []"
    words = " ".join(shown.split())  # long lines are broken
    assert all(f"{name} {summary}" in words for name, summary in COMMANDS.items())


def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main(["train", "output=x"]) == 2
    assert "pip install 'ruprompt-fast[train]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["compile"], ["--seed=3"], []])
def test_an_unknown_command_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: ruprompt-fast" in capsys.readouterr().err


def test_the_shipped_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in TASK_FILES)
    assert "Polite versions" in shown
