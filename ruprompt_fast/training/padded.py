"""The padded way: every example with its own copy of the prompt, for models whose attention cannot be routed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ruprompt_fast.integration import FrozenLayers
from ruprompt_fast.prompts.format.preprocessing import IGNORED_LABEL
from ruprompt_fast.training.examples import Example
from ruprompt_fast.training.losses import BatchLoss, batch_loss, choices_of, target_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Masked out, so any id that the model has will do.
_PADDING = 0


class PaddedRunner:
    """Runs right-padded batches through a model as it is; see :class:`~.runners.Runner`.

    Args:
        model: a decoder, or an encoder-decoder, whose decoder then generates the targets.
        reason: why the model cannot run packed.
    """

    name = "padded"

    def __init__(self, model: PreTrainedModel, reason: str) -> None:
        self.reason: str | None = reason
        self._layers = FrozenLayers(model)
        config = model.config
        self._decoder_start: int | None = None
        if config.is_encoder_decoder:
            start = getattr(config, "decoder_start_token_id", None)
            self._decoder_start = config.pad_token_id if start is None else start

    def routing(self) -> AbstractContextManager[None]:
        """See :meth:`Runner.routing`."""
        return self._layers.fast()

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Pad examples.

        Returns:
            ``inputs``, the model's arguments; ``logits_at`` and ``targets`` [generated tokens], where in the flattened
            logits to look and what is to be generated there; ``choices``; ``num_items``.
        """
        pad = _Padding(self._decoder_start)
        for example in examples:
            pad.add(example)
        choices = choices_of(examples)
        return {
            "inputs": pad.inputs(),
            "logits_at": torch.tensor(pad.logits_at()),
            "targets": torch.tensor(pad.targets),
            "choices": choices,
            "num_items": len(pad.targets) if choices is None else len(examples),
        }

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> BatchLoss:
        """See :meth:`Runner.loss`."""
        logits = model(**batch["inputs"], use_cache=False).logits.flatten(0, 1)
        return batch_loss(target_logprobs(logits[batch["logits_at"]], batch["targets"]), batch["choices"])


class _Padding:
    """A padded batch that grows.

    Args:
        decoder_start: the first id of an encoder-decoder's decoder; None for a decoder.
    """

    def __init__(self, decoder_start: int | None) -> None:
        self._decoder_start = decoder_start
        self._inputs: list[list[int]] = []
        self._decoder_inputs: list[list[int]] = []
        self._places: list[tuple[int, int]] = []
        self.targets: list[int] = []

    def add(self, example: Example) -> None:
        """Add an example, once for every label word that cannot share its tokens."""
        if example["candidates"]:
            self._add_candidates(example)
            return
        ids, labels = example["input_ids"], example["labels"]
        if self._decoder_start is not None:
            self._add_sequence(ids, labels[:-1])
            self._add_targets(labels, 0)
        else:
            self._add_sequence(ids, [])
            self._add_targets(labels, -1)

    def inputs(self) -> dict[str, Tensor]:
        """The model's arguments."""
        inputs = _padded(self._inputs, "")
        return inputs if self._decoder_start is None else inputs | _padded(self._decoder_inputs, "decoder_")

    def logits_at(self) -> list[int]:
        """For every generated token the index of its logits, in [sequences * longest]."""
        generating = self._inputs if self._decoder_start is None else self._decoder_inputs
        width = max(map(len, generating))
        return [sequence * width + position for sequence, position in self._places]

    def _add_candidates(self, example: Example) -> None:
        ids = example["input_ids"]
        sequences: dict[tuple[int, ...], int] = {}
        for word in example["candidates"]:
            begun = tuple(word[:-1])
            if begun not in sequences:
                sequences[begun] = len(self._inputs)
                self._add_sequence(ids, list(begun))
            first = 0 if self._decoder_start is not None else len(ids) - 1
            self._places += [(sequences[begun], first + offset) for offset in range(len(word))]
            self.targets += word

    def _add_sequence(self, ids: list[int], generated: list[int]) -> None:
        """Add a sequence with the tokens that were generated before, after it or in the decoder."""
        if self._decoder_start is None:
            self._inputs.append([*ids, *generated])
        else:
            self._inputs.append(ids)
            self._decoder_inputs.append([self._decoder_start, *generated])

    def _add_targets(self, labels: list[int], shift: int) -> None:
        """Have the labels of the last sequence generated ``shift`` positions from where they are."""
        sequence = len(self._inputs) - 1
        for position, label in enumerate(labels):
            if label != IGNORED_LABEL:
                self._places.append((sequence, position + shift))
                self.targets.append(label)


def _padded(sequences: Sequence[list[int]], prefix: str) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` [sequences, longest], padded on the right."""
    width = max(map(len, sequences))
    ids = [[*sequence, *[_PADDING] * (width - len(sequence))] for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences]
    return {f"{prefix}input_ids": torch.tensor(ids), f"{prefix}attention_mask": torch.tensor(mask)}
