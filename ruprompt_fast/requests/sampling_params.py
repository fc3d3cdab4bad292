"""One request's sampling settings, resolved and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

EarlyStopping: TypeAlias = bool | Literal["never"]
FinishReason: TypeAlias = Literal["stop", "length", "time"]


@dataclass(frozen=True)
class ExtraSettings:
    """Settings that transformers' ``GenerationConfig`` does not have.

    Attributes:
        seed: seed of the request's noise, from 0 to 2**64 - 1; defaults to one from torch's generator.
        presence_penalty: subtracted from the score of every token that was generated before. The input does not count
            (OpenAI's and vLLM's meaning).
        frequency_penalty: subtracted once for each time that the token was generated before. The input does not count.
        logit_bias: numbers to add to the scores of token ids.
        include_stop_str_in_output: whether the text holds the stop string that ends it (vLLM's name).
    """

    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    include_stop_str_in_output: bool = True

    def engine_only(self) -> list[str]:
        """The settings in use that transformers' own ``generate`` does not have."""
        names = ("presence_penalty", "frequency_penalty", "logit_bias")
        return [name for name in names if getattr(self, name)]


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen; made by
    :func:`~ruprompt_fast.requests.generation_settings.sampling_params`.

    Names and meanings are those of transformers' ``GenerationConfig`` and of :class:`ExtraSettings`; settings default
    to their neutral values. ``temperature`` to ``eta_cutoff`` apply with ``do_sample`` only.

    Attributes:
        max_new_tokens: maximum number of new tokens.
        min_new_tokens: the end-of-text tokens are banned before this many new tokens.
        eos_token_ids: tokens that end the text.
        stop_strings: strings that end the text; the engine looks for them in the decoded text.
        cut_strings: the stop strings that are cut off the text.
        logprobs: whether tokens come with log-probabilities (``output_scores``).
        max_time: seconds after which the request ends, on the engine's clock.
        num_return_sequences: how many samples or beams are returned.
        seed: seed of the noise.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    cut_strings: tuple[str, ...] = ()
    logprobs: bool = False
    max_time: float | None = None
    num_return_sequences: int = 1
    do_sample: bool = False
    seed: int = 0
    temperature: float = 1.0
    top_h: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    renormalize_logits: bool = False
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    remove_invalid_values: bool = False
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()


def finish_reason(params: SamplingParams, new_ids: Sequence[int]) -> FinishReason | None:
    """Why a sequence with these new tokens has ended, "stop" before "length"; None if it has not."""
    if new_ids and new_ids[-1] in params.eos_token_ids:
        return "stop"
    return "length" if len(new_ids) >= params.max_new_tokens else None
