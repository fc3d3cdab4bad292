"""Command lines written as options, ``--key value``, beside ``key=value``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from ruprompt_fast.errors import ConfigError
from ruprompt_fast.runs.data.rows import nearest
from ruprompt_fast.runs.parsing import FLAGS


def as_pairs(arguments: Sequence[str], kind: type) -> list[str]:
    """Arguments as ``key=value``, for :func:`~ruprompt_fast.runs.parsing.parse_config`.

    ``--model NAME`` is ``model.name=NAME``, and a field of transformers' ``GenerationConfig`` is one of ``generation``.

    Args:
        arguments: ``--key value``, ``--key=value``, ``key=value``, paths of YAML files.
        kind: the configuration's class, with fields ``model`` and ``generation``.

    Raises:
        ConfigError: an option has no value, or is neither a key nor a generation setting.
    """
    return list(_pairs(arguments, [part.name for part in fields(kind)]))


def _pairs(arguments: Sequence[str], keys: Sequence[str]) -> Iterator[str]:
    remaining = iter(arguments)
    for argument in remaining:
        if argument in FLAGS or not (argument.startswith("--") or "=" in argument):
            yield argument
            continue
        key, equals, value = argument.removeprefix("--").partition("=")
        if not equals and (value := next(remaining, "--")).startswith("--"):
            raise ConfigError(
                f"expected a value after {argument}; found none. Write --{key}=VALUE for one that has --."
            )
        yield f"{_full_key(key.replace('-', '_'), keys)}={value}"


def _full_key(key: str, keys: Sequence[str]) -> str:
    if key == "model":
        return "model.name"
    if key == "config" or key.partition(".")[0].removesuffix("+") in keys:
        return key
    from ruprompt_fast.runs.serving import setting_names

    settings = setting_names()
    if key not in settings:
        raise ConfigError(
            f"unknown option {key!r}; expected {', '.join(keys)}, or a field of transformers' GenerationConfig."
            f"{nearest(key, [*keys, *settings])}"
        )
    return f"generation.{key}"
