"""Merges a call's settings into one complete configuration for each request."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ruprompt_fast.errors import SettingError, UnknownArgumentError, UnsupportedModelError, shown
from ruprompt_fast.requests.fields import UNSUPPORTED, read_field
from ruprompt_fast.requests.generation_settings import read_extras
from ruprompt_fast.requests.sampling_params import ExtraSettings
from ruprompt_fast.requests.stopping import stop_ids
from ruprompt_fast.requests.values import Limits

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

# Lists that are set to None when they are empty: transformers' generate expects None.
_NONE_IF_EMPTY = (
    "eos_token_id",
    "stop_strings",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_eos_token_id",
    "sequence_bias",
)


def own_settings(model: PreTrainedModel) -> GenerationConfig:
    """A copy of the model's settings for generation.

    Raises:
        UnsupportedModelError: it has none, so it cannot generate.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no generation_config: it cannot generate text. Load it with "
            "AutoModelForCausalLM or AutoModelForSeq2SeqLM."
        )
    own: GenerationConfig = copy.deepcopy(settings)
    return own


class SettingsMerger:
    """Merges a call's keywords, its configuration and the model's defaults.

    The caller's objects are never changed.

    Args:
        defaults: the model's settings.
        tokenizer: the model's; its end-of-text token ends texts too.
        limits: what settings may ask for.
    """

    def __init__(self, defaults: GenerationConfig, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> None:
        self._defaults = defaults
        self._tokenizer = tokenizer
        self._limits = limits

    def merged(
        self, configs: Sequence[GenerationConfig | None], arguments: Mapping[str, Any]
    ) -> list[GenerationConfig]:
        """A complete configuration for each of the given ones; equal ones share one object.

        Raises:
            UnknownArgumentError: a keyword is not a field of ``GenerationConfig``.
            SettingError: something is no configuration, or a value cannot work or is not supported.
        """
        found = {id(config): self._merged(config, arguments) for config in {id(c): c for c in configs}.values()}
        return [found[id(config)] for config in configs]

    def extras(self, columns: Sequence[Sequence[Any]]) -> list[ExtraSettings]:
        """The settings that transformers does not have, from a list of values for each.

        Raises:
            SettingError: one has a value that cannot work.
        """
        known: dict[tuple[int, ...], ExtraSettings] = {}
        found: list[ExtraSettings] = []
        for values in zip(*columns, strict=True):
            key = tuple(map(id, values))
            if key not in known:
                known[key] = read_extras(ExtraSettings(*values), self._limits)
            found.append(known[key])
        return found

    def _merged(self, config: GenerationConfig | None, arguments: Mapping[str, Any]) -> GenerationConfig:
        merged = merged_config(config, self._defaults, arguments, self._limits)
        ends = self._defaults.eos_token_id
        if "eos_token_id" in arguments:
            merged.eos_token_id = read_field("eos_token_id", arguments["eos_token_id"], self._limits)
        elif config is None or merged.eos_token_id == ends or merged.eos_token_id == [ends]:
            merged.eos_token_id = stop_ids(merged, self._tokenizer)
        for name in _NONE_IF_EMPTY:
            if not getattr(merged, name, None):
                setattr(merged, name, None)
        merged.bad_words_ids = _not_ends(merged.bad_words_ids, merged.eos_token_id or [])
        return merged


def merged_config(
    config: GenerationConfig | None,
    defaults: GenerationConfig,
    arguments: Mapping[str, Any],
    limits: Limits = Limits(),  # noqa: B008  (it cannot be changed)
) -> GenerationConfig:
    """The settings of a request: the call's keywords over its config over the model's defaults.

    Args:
        config: the call's configuration.
        defaults: the model's.
        arguments: the call's keywords.
        limits: what settings may ask for.

    Raises:
        UnknownArgumentError: a keyword is not a field of ``GenerationConfig``.
        SettingError: ``config`` is something else, or a value cannot work or asks for what transformers cannot do.
    """
    from transformers import GenerationConfig

    if config is not None and not isinstance(config, GenerationConfig):
        raise SettingError(f"generation_config must be transformers' GenerationConfig; found {type(config).__name__}.")
    merged = GenerationConfig()
    known = {name for name in vars(merged) if not name.startswith("_")}
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name[:80], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ". Use the names of transformers' GenerationConfig."
            raise UnknownArgumentError(f"unknown generation argument {shown(name)}{hint}")
    for name, value in _plain(vars(config) if config is not None else {}, limits).items():
        setattr(merged, name, value)
    # Part of the call: without it transformers' own checks call output_scores a flag that is ignored.
    given = {**_plain(arguments, limits), "return_dict_in_generate": True}
    own = _plain({name: getattr(defaults, name, None) for name in known}, limits)
    try:
        merged.update(**given)
        merged.update(**own, defaults_only=True)
    except Exception as error:  # transformers' own checks
        raise SettingError(f"a generation setting cannot work: {shown(str(error), 500)}") from error
    for name in UNSUPPORTED:  # transformers looks for None
        if not getattr(merged, name, None):
            setattr(merged, name, None)
    return merged


def _plain(settings: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The settings as plain Python, without transformers' own bookkeeping."""
    return {name: read_field(name, value, limits) for name, value in settings.items() if not name.startswith("_")}


def _not_ends(sequences: list[list[int]] | None, ends: Sequence[int]) -> list[list[int]] | None:
    """Banned sequences without single end-of-text tokens: transformers fails where it has left all of them out."""
    return [words for words in sequences or [] if len(words) > 1 or words[0] not in ends] or None
