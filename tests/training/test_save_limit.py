"""Which checkpoints stay where few may."""

from __future__ import annotations

from pathlib import Path

import torch
from training.trainer_cases import ROWS, logged, make_prompt, make_trainer

# The more is learnt, the worse it is for these: the best prompt is not the last.
OTHER = [{**row, "target": "ъ" * 9} for row in ROWS]


def test_the_last_checkpoint_stays_beside_the_best(tmp_path: Path) -> None:
    settings = {
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "eval_dataset": OTHER,
    }
    first = make_trainer(tmp_path, make_prompt(), **settings)
    first.train()
    best = first.state.best_global_step
    assert best < 6
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-6"}
    assert first.args.save_total_limit == 1

    again = make_trainer(tmp_path, make_prompt(), **settings)
    losses = []
    again.compute_loss = lambda *_, **__: losses.append(1)  # type: ignore[method-assign]
    again.train(resume_from_checkpoint=True)
    assert not losses
    assert logged(again) == logged(first)
    assert torch.equal(again.prompts[0].prompt.rows(), first.prompts[0].prompt.rows())
