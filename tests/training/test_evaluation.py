"""Evaluation is a sum over batches and processes."""

from __future__ import annotations

import torch

from ruprompt_fast.training.evaluation import EvaluationTotals
from ruprompt_fast.training.losses import BatchLoss


def test_sums_are_over_all_prompts_and_by_prompt() -> None:
    totals = EvaluationTotals(["a", "b"], torch.device("cpu"))
    totals.add(0, BatchLoss(torch.tensor(2.0), 4, 3))
    totals.add(1, BatchLoss(torch.tensor(6.0), 4, 1))
    metrics = totals.metrics(totals.sums, "eval")
    assert metrics == {
        "eval_loss": 1.0,
        "eval_accuracy": 0.5,
        "eval_a_loss": 0.5,
        "eval_a_accuracy": 0.75,
        "eval_b_loss": 1.5,
        "eval_b_accuracy": 0.25,
    }


def test_a_process_without_batches_has_the_same_metrics() -> None:
    idle = EvaluationTotals([""], torch.device("cpu"), is_classification=True)
    sums = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)
    assert idle.metrics(sums, "eval") == {"eval_loss": 1.5, "eval_accuracy": 0.5}
