"""A step's inputs on their way to the device: one copy from pinned host memory to a buffer that stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.backends.cuda.device import Device, Event
from ruprompt_fast.ops import SettingsFlag, SettingsWord

if TYPE_CHECKING:
    from ruprompt_fast.backends.base import StepBatch
    from ruprompt_fast.backends.cuda.sampler import DeviceSampler
    from ruprompt_fast.ops.prefix_decode import SharedPrefixes
    from ruprompt_fast.sampling.sampling_rows import SamplingRow

Words: TypeAlias = "npt.NDArray[np.int32]"

_WANTED_OF_DEVICE = SettingsFlag.WANTED | SettingsFlag.FOR_HOST

_ALIGNMENT = 4  # words: kernels read tables and settings in pieces of 128 bits

# What is put in place of tokens and sequences that are missing: ids and positions that every model has, slots that are
# not written, contexts of which nothing is read.
_PADDING = {"input_ids": 0, "position_ids": 0, "write_slots": -1, "context_lens": 0, "logits_at": 0}


@dataclass(frozen=True)
class StepShape:
    """Sizes of a step's inputs.

    Attributes:
        num_tokens: tokens, with padding.
        num_rows: sequences, with padding.
        num_logits: logits that are wanted, with padding.
        num_blocks: pages of a sequence.
        settings_words: words of a row's settings for the sampler.
        seen_words: words of a row's mask of tokens seen so far.
    """

    num_tokens: int
    num_rows: int
    num_logits: int
    num_blocks: int
    settings_words: int
    seen_words: int

    @cached_property
    def parts(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """Which words each part has, and its shape. What not every step needs comes last."""
        shapes = {
            "input_ids": (self.num_tokens,),
            "position_ids": (self.num_tokens,),
            "write_slots": (self.num_tokens,),
            "query_starts": (self.num_rows + 1,),
            "context_lens": (self.num_rows,),
            "logits_at": (self.num_logits,),
            "group_starts": (self.num_rows + 1,),
            "prefix_lens": (self.num_rows,),
            "block_tables": (self.num_rows, self.num_blocks),
            "settings": (self.num_logits, self.settings_words),
            "seen": (self.num_logits, self.seen_words),
        }
        sizes = [prod(shape) for shape in shapes.values()]
        starts = accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0)
        spans = [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]
        return dict(zip(shapes, zip(spans, shapes.values(), strict=True), strict=True))

    @property
    def num_words(self) -> int:
        """Words of all parts."""
        return int(self.parts["seen"][0].stop)

    @property
    def num_words_without_seen(self) -> int:
        """Words of all parts but the last."""
        return int(self.parts["seen"][0].start)


@dataclass(frozen=True, slots=True, eq=False)
class StepInputs:
    """A step's inputs on the device: int32 views of the buffer that every step is copied to.

    Attributes:
        input_ids: [num_tokens]; ``-1 - row`` is the token that the step before has chosen for that row of its logits.
        position_ids: [num_tokens].
        write_slots: [num_tokens]; -1 for padding.
        query_starts: [num_rows + 1].
        context_lens: [num_rows]; 0 for padding.
        logits_at: [num_logits].
        group_starts: [num_rows + 1]; the groups of rows that share a prefix, where these are read together.
        prefix_lens: [num_rows]; the tokens of a row's group that they share.
        block_tables: [num_rows, num_blocks].
        settings: [num_logits, settings_words], for the sampler.
        seen: [num_logits, seen_words], likewise; stale where no row needs it.
    """

    input_ids: Tensor
    position_ids: Tensor
    write_slots: Tensor
    query_starts: Tensor
    context_lens: Tensor
    logits_at: Tensor
    group_starts: Tensor
    prefix_lens: Tensor
    block_tables: Tensor
    settings: Tensor
    seen: Tensor


class Staging:
    """The buffer on the device, and two in pinned host memory that take turns.

    Args:
        device: the device.
        largest: sizes that no step exceeds.
        sampler: stages what it needs for each row.

    Attributes:
        is_for_device: whether the device is to choose a token for every row of the step that was staged last.
    """

    def __init__(self, device: Device, largest: StepShape, sampler: DeviceSampler) -> None:
        self._device = device
        self._sampler = sampler
        self._pinned = [device.pinned((largest.num_words,), torch.int32) for _ in range(2)]
        self._copied: list[Event | None] = [None, None]
        self.is_for_device = False
        self._words = torch.zeros(largest.num_words, dtype=torch.int32, device=device.torch_device)

    def inputs(self, shape: StepShape) -> StepInputs:
        """The views of a step of that shape; they stay where they are."""
        return StepInputs(**{name: self._words[span].view(size) for name, (span, size) in shape.parts.items()})

    def stage(
        self,
        batch: StepBatch,
        rows: Sequence[SamplingRow | None],
        in_flight: Sequence[int] | None,
        shape: StepShape,
        shared: SharedPrefixes | None = None,
    ) -> None:
        """Start copying a step's inputs to the device. The batch's arrays may be changed afterwards.

        Args:
            batch: the step's tokens.
            rows: what is wanted for each row of the logits.
            in_flight: for each of them, how many tokens the step before has chosen that are not known here yet.
            shape: the sizes that are staged.
            shared: which rows share a prefix, where these are read together.
        """
        self._pinned.reverse()
        self._copied.reverse()
        if (event := self._copied[0]) is not None:
            event.wait()  # the copy out of this buffer, two steps ago, has to be over
        words: Words = self._pinned[0].numpy()
        parts = {name: words[span].reshape(size) for name, (span, size) in shape.parts.items()}
        _fill(parts, batch)
        if shared is not None:
            _fill_groups(parts, shared)
        settings, seen = parts["settings"], parts["seen"]
        uses_seen = self._sampler.stage(rows, settings[: len(rows)], seen[: len(rows)], in_flight)
        settings[len(rows) :] = 0
        flags = settings[: len(rows), SettingsWord.FLAGS]
        self.is_for_device = bool(np.all((flags & _WANTED_OF_DEVICE) == SettingsFlag.WANTED))
        num_words = shape.num_words if uses_seen else shape.num_words_without_seen
        self._copied[0] = self._device.upload(self._pinned[0][:num_words], self._words[:num_words])


def _fill_groups(parts: dict[str, Words], shared: SharedPrefixes) -> None:
    starts, prefix_lens = parts["group_starts"], parts["prefix_lens"]
    starts[: len(shared.group_starts)] = shared.group_starts
    starts[len(shared.group_starts) :] = shared.group_starts[-1]
    prefix_lens[: len(shared.prefix_lens)] = shared.prefix_lens
    prefix_lens[len(shared.prefix_lens) :] = 0


def _fill(parts: dict[str, Words], batch: StepBatch) -> None:
    for name, padding in _PADDING.items():
        values = getattr(batch, name)
        parts[name][: len(values)] = values
        parts[name][len(values) :] = padding
    starts, tables = parts["query_starts"], parts["block_tables"]
    starts[: len(batch.query_starts)] = batch.query_starts
    starts[len(batch.query_starts) :] = batch.query_starts[-1]
    width = min(tables.shape[1], batch.block_tables.shape[1])
    tables[: len(batch.block_tables), :width] = batch.block_tables[:, :width]
