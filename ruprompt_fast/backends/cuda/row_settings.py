"""One row's settings as the words that :func:`ruprompt_fast.ops.sample` reads, or why its tokens are the host's."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from ruprompt_fast.backends.cuda.row_history import CountedTokens, RowHistory, SeenTokens, Words
from ruprompt_fast.ops import NUM_BANNED, SETTINGS_WORDS, SettingsFlag, SettingsWord
from ruprompt_fast.sampling import filters, processors
from ruprompt_fast.sampling.noise import stream_state
from ruprompt_fast.sampling.sampler import COLD
from ruprompt_fast.sampling.sampling_rows import SamplingRow

_FILTERS = (filters.top_k, filters.top_p, filters.min_p)  # in the device's order
_ALWAYS = 2**31 - 1
_LEAST_SHARE = 1e-30  # float32 weights below 1e-38 lose digits


class RowSettings:
    """What the device is told of one row at every step.

    The device knows the processors and filters that are named here. A row with any other, such as one of a setting
    that will be added some day, is the host's.

    Attributes:
        stream_state: see :func:`~ruprompt_fast.sampling.noise.stream_state`.
        history: for a row with a penalty, the tokens that it has.
    """

    def __init__(self, row: SamplingRow, vocab_size: int) -> None:
        self.stream_state = stream_state(row.params.seed, row.stream)
        self.history: RowHistory | None = None
        self._bans: list[tuple[int, int, list[int]]] = []  # first and end of the numbers of new tokens, ids
        self._words = _neutral_words()
        self._valid = range(0)
        self._is_known = (
            self._knows_params(row) and self._knows_processors(row, vocab_size) and self._knows_filters(row)
        )
        if not self._is_known:
            self.history = None

    def words(self, num_new: int) -> Words:
        """The words for the token after ``num_new`` new ones, int32 [SETTINGS_WORDS], without the noise's key."""
        if num_new not in self._valid:
            self._select_bans(num_new)
        return self._words

    def _select_bans(self, num_new: int) -> None:
        borders = {0, _ALWAYS, *(border for first, end, _ in self._bans for border in (first, end))}
        self._valid = range(
            max(border for border in borders if border <= num_new),
            min(border for border in borders if border > num_new),
        )
        ids = sorted({token for first, end, tokens in self._bans if first <= num_new < end for token in tokens})
        fits = len(ids) <= NUM_BANNED
        self._words[SettingsWord.BANNED :] = [*ids, *[-1] * (NUM_BANNED - len(ids))] if fits else -1
        flags = SettingsFlag(int(self._words[SettingsWord.FLAGS])) & ~SettingsFlag.FOR_HOST
        if not (fits and self._is_known):
            flags |= SettingsFlag.FOR_HOST
        self._words[SettingsWord.FLAGS] = flags

    def _knows_params(self, row: SamplingRow) -> bool:
        """Take in what the sampler itself reads of the settings; whether the device can do all of it."""
        params, flags = row.params, SettingsFlag.WANTED
        if params.logprobs:
            flags |= SettingsFlag.LOGPROB
        self._words[SettingsWord.FLAGS] = flags
        if not params.do_sample:
            return True
        self._words[SettingsWord.FLAGS] = flags | SettingsFlag.SAMPLED
        self._words[SettingsWord.TEMPERATURE] = _bits(params.temperature)
        return row.num_samples == 1 and params.temperature >= COLD and _is_finite(params.temperature)

    def _knows_processors(self, row: SamplingRow, vocab_size: int) -> bool:
        """Take in the penalties, and when which tokens are banned; whether there is nothing else."""
        for processor in row.processors:
            if not isinstance(processor, partial):
                return False
            values: dict[str, Any] = processor.keywords
            if processor.func in (processors.penalize_repetition, processors.penalize_counts):
                if self.history is not None or not self._knows_penalty(row, vocab_size, **values):
                    return False
                continue
            if processor.func is processors.ban:
                first, end = 0, _ALWAYS
            elif processor.func is processors.ban_until:
                first, end = 0, values["num_new"]
            elif processor.func is processors.ban_at_start and not values["is_forced"]:
                first, end = 0, 1
            else:
                return False
            self._bans.append((first, end, [token for token in values["token_ids"].tolist() if token < vocab_size]))
        return True

    def _knows_penalty(
        self, row: SamplingRow, vocab_size: int, penalty: float = 1.0, presence: float = 0.0, frequency: float = 0.0
    ) -> bool:
        """Take in one kind of penalty, of repetitions or of counts: there is room for the tokens of one."""
        if penalty != 1.0:
            self._words[SettingsWord.PENALTY] = _bits(penalty)
            self.history = SeenTokens(row, vocab_size)
            return penalty > 0 and _is_finite(penalty)
        self._words[SettingsWord.FLAGS] |= SettingsFlag.COUNTED
        self.history = CountedTokens(presence, frequency)
        return True

    def _knows_filters(self, row: SamplingRow) -> bool:
        """Take in the filters; whether the device has all of them, in its own order, and tells their values apart."""
        known = [keep for keep in row.filters if isinstance(keep, partial) and keep.func in _FILTERS]
        places = [_FILTERS.index(keep.func) for keep in known]
        if len(known) < len(row.filters) or places != sorted(set(places)):
            return False
        values: dict[str, Any] = {}
        for keep in known:
            values |= keep.keywords
        self._words[SettingsWord.TOP_K] = min(values.get("count", 0), _ALWAYS)
        mass, share = np.float32(values.get("mass", 0.0)), float(np.float32(values.get("share", 1.0)))
        if not (mass < 1.0 and _LEAST_SHARE <= share <= 1.0):
            return False
        if "mass" in values:
            self._words[SettingsWord.TOP_P] = _bits(mass)
        if "share" in values:
            self._words[SettingsWord.DEPTH] = _bits(-math.log(share))
        return True


def _neutral_words() -> Words:
    words = np.zeros(SETTINGS_WORDS, dtype=np.int32)
    words[[SettingsWord.TEMPERATURE, SettingsWord.PENALTY, SettingsWord.TOP_P]] = _bits(1.0)
    words[SettingsWord.DEPTH] = _bits(math.inf)
    words[SettingsWord.BANNED :] = -1
    return words


def _bits(value: float | np.float32) -> np.int32:
    """A float32 as the integer of its bits."""
    with np.errstate(over="ignore"):
        return np.float32(value).view(np.int32)


def _is_finite(value: float) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(value)))
