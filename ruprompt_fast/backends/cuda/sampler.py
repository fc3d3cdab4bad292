"""Choosing tokens on the device, for the rows whose settings it knows; the others go to the NumPy sampler."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast.backends.cuda.row_history import Words, seen_words
from ruprompt_fast.backends.cuda.row_settings import RowSettings
from ruprompt_fast.ops import SETTINGS_WORDS, SettingsFlag, SettingsWord, sample
from ruprompt_fast.sampling.noise import step_keys
from ruprompt_fast.sampling.sampler import Sampler
from ruprompt_fast.sampling.sampling_rows import Chosen, SampledToken, SamplingRow

_KEYS = slice(SettingsWord.KEY, SettingsWord.KEY + 2)


class DeviceSampler:
    """Chooses what :class:`~ruprompt_fast.sampling.sampler.Sampler` chooses, without the logits leaving the device.

    A step has three parts: :meth:`stage` writes what the rows want into host memory, :meth:`launch` starts the
    choice on the device, :meth:`finish` turns what came back into tokens. Where rounding might decide, where numbers
    are not finite and where a setting is not the device's, :meth:`finish` reads the logits of these rows and asks the
    NumPy sampler.

    Attributes:
        words_per_row: int32 words of a row's settings.
        seen_words: int32 words of what a row's penalty needs to know of its tokens.

    Args:
        vocab_size: columns of the logits that are tokens.
        banned_ids: ids below ``vocab_size`` that are never generated.
        device: where the logits are.
    """

    def __init__(self, vocab_size: int, banned_ids: Sequence[int], device: torch.device) -> None:
        self.words_per_row = SETTINGS_WORDS
        self.seen_words = seen_words(vocab_size)
        self._vocab_size = vocab_size
        self._on_host = Sampler(vocab_size, banned_ids)
        self._banned: Tensor | None = None
        if banned_ids:
            is_banned = torch.zeros(self.seen_words * 32, dtype=torch.bool)  # whole pieces for the kernel's reads
            is_banned[list(banned_ids)] = True
            self._banned = is_banned.to(device)
        self._known: dict[int, tuple[weakref.ref[SamplingRow], RowSettings]] = {}

    def stage(
        self,
        rows: Sequence[SamplingRow | None],
        settings: Words,
        seen: Words,
        in_flight: Sequence[int] | None = None,
    ) -> bool:
        """Write what the rows want; an all-zero row wants nothing.

        Args:
            rows: one for each row of the logits that will be; None where no token is to be chosen.
            settings: int32 [rows, words_per_row], to write to.
            seen: int32 [rows, seen_words], to write to; rows that do not use it stay as they are.
            in_flight: for every row, how many of its tokens were chosen on the device and are not among its
                ``new_ids`` yet: 0 or 1. The kernel takes the one from ``last_ids``.

        Returns:
            Whether any row uses ``seen``.
        """
        settings[:] = 0
        wanted, states, steps, uses_seen = [], [], [], False
        for index, row in enumerate(rows):
            if row is None:
                continue
            known = self._settings_of(row)
            ahead = in_flight[index] if in_flight else 0
            step = len(row.new_ids) + ahead
            settings[index] = known.words(step)
            if known.history is not None:
                uses_seen = True
                if not known.history.write(seen[index], row.new_ids, ahead):
                    settings[index, SettingsWord.FLAGS] |= SettingsFlag.FOR_HOST
            wanted.append(index)
            states.append(known.stream_state)
            steps.append(step)
        keys = step_keys(np.array(states, dtype=np.uint64), np.array(steps, dtype=np.uint64))
        settings[wanted, _KEYS] = keys.view(np.int32)
        return uses_seen

    def launch(self, logits: Tensor, settings: Tensor, seen: Tensor, last_ids: Tensor) -> Tensor:
        """Start the choice; see :func:`ruprompt_fast.ops.sample`, which says what is returned. Can be captured.

        Args:
            logits: [rows, at least the vocabulary].
            settings: int32 [rows, words_per_row], as staged.
            seen: int32 [rows, seen_words], as staged.
            last_ids: int32 or int64 [rows]; each row's last token, which may still be on the device only.
        """
        return sample(logits, settings, seen, last_ids, vocab_size=self._vocab_size, banned=self._banned)

    def finish(
        self, rows: Sequence[SamplingRow | None], result: Words, logits: Tensor, read: Callable[[Tensor], Tensor]
    ) -> list[Chosen | None]:
        """What was chosen for every row, or why nothing could be.

        Args:
            rows: those that were staged.
            result: what :meth:`launch` returned, int32 [rows, 4].
            logits: the logits that it was given.
            read: copies a tensor to the host; called at most once, with the logits of the undecided rows.
        """
        tokens, undecided = result[:, 0].tolist(), result[:, 1].tolist()
        logprobs = result[:, 2].view(np.float32).tolist()
        chosen: list[Chosen | None] = [None] * len(rows)
        left = []
        for index, row in enumerate(rows):
            if row is None:
                continue
            if undecided[index]:
                left.append(index)
                continue
            count = row.num_samples
            values = [logprobs[index]] * count if row.params.logprobs else None
            chosen[index] = SampledToken([tokens[index]] * count, values)
        if left:
            columns = logits[:, : self._vocab_size]
            # A list of indices would be copied to the device first.
            picked = columns[left[0] : left[0] + 1] if len(left) == 1 else torch.stack([columns[i] for i in left])
            answers = self._on_host.sample(read(picked), [rows[index] for index in left])
            for index, answer in zip(left, answers, strict=True):
                chosen[index] = answer
        return chosen

    def _settings_of(self, row: SamplingRow) -> RowSettings:
        """The row's settings, kept while the row lives."""
        known = self._known.get(id(row))
        if known is None:
            forget = partial(_forget, self._known, id(row))
            known = self._known[id(row)] = weakref.ref(row, forget), RowSettings(row, self._vocab_size)
        return known[1]


def _forget(
    known: dict[int, tuple[weakref.ref[SamplingRow], RowSettings]], key: int, _: weakref.ref[SamplingRow]
) -> None:
    """Drop what is known of a row that is gone."""
    del known[key]
