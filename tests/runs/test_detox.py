"""Detoxification from its configuration to a prompt that generates, on the competition's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpora import corpus

from ruprompt_fast import FastPromptModel, bundled
from ruprompt_fast.cli import main
from ruprompt_fast.runs.data.row_format import RowFormat
from ruprompt_fast.runs.data.rows import load_rows


@pytest.mark.slow
def test_detoxification_end_to_end(tmp_path: Path) -> None:
    train, dev = corpus("russe_detox/train.tsv"), corpus("russe_detox/dev.tsv")
    output = tmp_path / "detoxification"
    arguments = [
        f"data.train={train}",
        f"data.validation={dev}",
        "data.limit=1000",
        "data.validation_limit=100",
        "model.name=bundled",
        "optimization.max_steps=60",
        "optimization.eval_steps=20",
        f"output={output}",
    ]
    assert main(["train", "detoxification", *arguments]) == 0

    history = [json.loads(line) for line in (output / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(held_out) == 4
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["eval_loss"] == pytest.approx(min(held_out), rel=1e-5)
    assert metrics["train_rows"] == 1000
    assert metrics["skipped_rows"] == 0

    model = FastPromptModel.from_pretrained(bundled.MODEL, prompts={"detox": output})
    comments = [row["toxic_comment"] for row in load_rows(str(dev), ["toxic_comment"], limit=3).rows]
    outputs = model.generate([{"toxic": comment} for comment in comments], prompt="detox", max_new_tokens=10)
    assert all(0 < len(output.token_ids) <= 10 for output in outputs)


@pytest.mark.slow
def test_every_row_of_the_files_can_be_used() -> None:
    for name, size in (("train", 6948), ("dev", 800)):
        columns = ["toxic_comment", "neutral_comment1"]
        loaded = load_rows(str(corpus(f"russe_detox/{name}.tsv")), columns, format=RowFormat(quoting="standard"))
        assert len(loaded.rows) == size
        assert loaded.bad == []
