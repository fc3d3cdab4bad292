"""Evaluation over a whole data set: exact sums, whatever the batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from ruprompt_fast.training.datasets import EncodedDataset
    from ruprompt_fast.training.examples import Example
    from ruprompt_fast.training.losses import BatchLoss
    from ruprompt_fast.training.runners import Runner

PromptBatch = tuple[int, dict[str, Any]]
"""A prompt's index and a batch of its examples."""


def evaluation_batches(
    dataset: EncodedDataset, runner: Runner, batch_size: int, process_index: int, num_processes: int
) -> DataLoader[PromptBatch]:
    """This process's batches, each of one prompt. No example is repeated to make the processes' shares equal."""

    def collate(examples: list[Example]) -> PromptBatch:
        return examples[0]["prompt"], runner.collate(examples)

    batches: Any = dataset.batches(batch_size)[process_index::num_processes]
    return DataLoader(batches, batch_size=None, collate_fn=collate)


class EvaluationTotals:
    """Sums over batches, by prompt.

    Args:
        names: the prompts' names; one of a run's only prompt is empty.
        device: where to sum.
        is_classification: whether answers are right or wrong, where :meth:`add` may have no batch to tell it.

    Attributes:
        sums: [prompts, 3] in float64: loss in nats, items, right answers.
    """

    def __init__(self, names: Sequence[str], device: torch.device, is_classification: bool = False) -> None:
        self.names = list(names)
        self.sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=device)
        self._is_classification = is_classification

    def add(self, prompt: int, loss: BatchLoss) -> None:
        """Add a batch."""
        self.sums[prompt, 0] += loss.total.double()
        self.sums[prompt, 1] += loss.num_items
        if loss.num_correct is not None:
            self._is_classification = True
            self.sums[prompt, 2] += loss.num_correct

    def metrics(self, sums: Tensor, prefix: str) -> dict[str, float]:
        """``{prefix}_loss`` in nats per item and, for a classification, ``{prefix}_accuracy``, over everything; for
        several prompts also ``{prefix}_{name}_loss`` and ``{prefix}_{name}_accuracy``.

        Args:
            sums: :attr:`sums`, summed over all processes.
            prefix: what the names begin with.
        """
        rows = [(prefix, sums.sum(0))]
        if len(self.names) > 1:
            rows += [(f"{prefix}_{name}", row) for name, row in zip(self.names, sums, strict=True)]
        metrics = {}
        for name, row in rows:
            loss, items, correct = row.tolist()
            if items:
                metrics[f"{name}_loss"] = loss / items
                if self._is_classification:
                    metrics[f"{name}_accuracy"] = correct / items
        return metrics
