"""How the engine chooses tokens: settings, penalties, filters, noise, and beam search."""

from ruprompt_fast.engine.sampling.beam import BeamResult, BeamSearch, BeamStep
from ruprompt_fast.engine.sampling.coverage import padded_only_settings
from ruprompt_fast.engine.sampling.fields import UNSUPPORTED, read_field
from ruprompt_fast.engine.sampling.params import ExtraSettings, FinishReason, SamplingParams, finish_reason
from ruprompt_fast.engine.sampling.sampler import SampledToken, Sampler, SamplingRow
from ruprompt_fast.engine.sampling.settings import read_extras, sampling_params
from ruprompt_fast.engine.sampling.values import Limits, plain

__all__ = [
    "UNSUPPORTED",
    "BeamResult",
    "BeamSearch",
    "BeamStep",
    "ExtraSettings",
    "FinishReason",
    "Limits",
    "SampledToken",
    "Sampler",
    "SamplingParams",
    "SamplingRow",
    "finish_reason",
    "padded_only_settings",
    "plain",
    "read_extras",
    "read_field",
    "sampling_params",
]
