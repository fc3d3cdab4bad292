"""Reading YAML files that may come from anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ruprompt_fast.errors import ConfigError, PromptFileError, shown
from ruprompt_fast.prompts.files.reading.regular_file import open_regular
from ruprompt_fast.prompts.format.texts import is_text

MAX_YAML_BYTES = 128 * 2**10
"""Bytes of a configuration. The parser reads about 100 KB in a second."""

MAX_YAML_EXPANDED = 2**20
"""Characters of a configuration with every alias written out, where each value counts 8 more. A few lines of aliases of
aliases expand to billions of values."""

MAX_YAML_DEPTH = 32
"""Levels of lists and mappings in a configuration."""

_VALUE_CHARS = 8


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, made of mappings, lists and plain values.

    Raises:
        ConfigError: the file is missing, too large or too deep, is not YAML, or its aliases expand to too much.
    """
    try:
        with open_regular(path, MAX_YAML_BYTES, "a YAML file") as file:
            text = file.read(0, file.size).decode("utf-8")
        _check_extent(text, path)
        return yaml.safe_load(text)
    except PromptFileError as error:
        raise ConfigError(str(error)) from error
    except ConfigError:
        raise
    # ValueError: also numbers and dates that the parser takes for such but cannot make.
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        detail = shown(" ".join(str(error).split()).rstrip("."), 500)[1:-1]
        raise ConfigError(f"{path}: expected YAML; found something else: {detail}.") from error


def _check_extent(text: str, path: Path) -> None:
    """Check how much a document expands to, before any of it is made.

    Raises:
        ConfigError: it is too much, or an alias is within what it names.
    """
    sizes: dict[str, int] = {}
    waiting: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            waiting.append((event.anchor, _VALUE_CHARS))
            if len(waiting) > MAX_YAML_DEPTH + 1:
                raise ConfigError(f"{path}: expected at most {MAX_YAML_DEPTH} levels; found more.")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = waiting.pop()
        elif isinstance(event, yaml.ScalarEvent):
            if not is_text(event.value):
                raise ConfigError(f"{path}: expected text; found half a character in {shown(event.value)}.")
            anchor, size = event.anchor, _VALUE_CHARS + len(event.value)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ConfigError(
                    f"{path}: expected an anchor before the alias *{event.anchor}; found none, or one around it."
                )
            anchor, size = None, sizes[event.anchor]
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, total = waiting.pop()
        waiting.append((outer, total + size))
        if total + size > MAX_YAML_EXPANDED:
            raise ConfigError(
                f"{path}: expected at most {MAX_YAML_EXPANDED} characters with all aliases written out; found more. "
                "Write the values without aliases."
            )
