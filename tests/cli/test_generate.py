"""``ruprompt-fast generate``: the command line; tests/runs/test_generate_run.py has what it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ruprompt_fast import bundled
from ruprompt_fast.cli import main

PROVERB = str(bundled.PROMPTS["proverb"])


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options that name an input and an output."""
    (tmp_path / "in.jsonl").write_text('{"text": "Без труда"}\n{"text": "Вечером"}\n', encoding="utf-8")
    return ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]


def test_options_and_pairs(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--max_new_tokens", "5", "do_sample=true", "--top-p=0.9", "generation.temperature=0.7", "--seed", "3"]
    command = ["generate", "--prompt", PROVERB, "--model", "bundled", *files, *settings, "--progress", "true"]
    assert main(command) == 0
    output = capsys.readouterr()
    assert "out.jsonl: 2 rows;" in output.out
    assert "2/2" in output.err
    run = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert run["generation"] == {"max_new_tokens": 5, "do_sample": True, "top_p": 0.9, "temperature": 0.7}
    assert (run["seed"], run["num_lines"]) == (3, 2)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in rows] == [["text", "output"]] * 2
    assert main(command) == 0
    assert "2 of them were there before" in capsys.readouterr().out


def test_a_file_of_settings(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "generate.yaml"
    settings.write_text(f"prompt: {PROVERB}\ngeneration:\n  max_new_tokens: 4\n  do_sample: true\n")
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(settings), *files, "--max_new_tokens=6", "--print_config"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "max_new_tokens: 6" in printed
    assert "do_sample: true" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_new_tokns", "5"], "Did you mean 'max_new_tokens'?"),
        (["--batchsize", "5"], "Did you mean 'batch_size'?"),
        (["--max_new_tokens"], "expected a value after --max_new_tokens"),
        (["--max_new_tokens", "--do_sample", "true"], "expected a value after --max_new_tokens"),
        (["--batch_size", "many"], "batch_size"),
        (["--max_new_tokens", "0"], "max_new_tokens"),
        (["--on_bad_row", "ignore"], "on_bad_row"),
        (["--output", f"{__file__}/out.jsonl"], "expected a place in a folder"),
        (["--output", "out.csv"], "output must name a .jsonl file: JSON lines are written; found 'out.csv'"),
        (["--output", "out.jsonl.gz"], "output must name a .jsonl file"),
        (["--output", "out.parquet"], "output must name a .jsonl file"),
        (["--model", "./bundeld"], "there is no such folder"),
        (["--model", "./bundled"], "The model that comes with the package is 'bundled'"),
    ],
)
def test_mistakes_are_one_line(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["generate", "--prompt", PROVERB, *files, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
