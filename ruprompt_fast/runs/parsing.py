"""Reading configurations: YAML files with overrides as ``key=value``, by jsonargparse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from ruprompt_fast.errors import ConfigError, MissingDependencyError, RupromptError, shown
from ruprompt_fast.runs.data.rows import nearest, scalar_text
from ruprompt_fast.runs.parser_messages import in_our_words
from ruprompt_fast.runs.task_files import TASK_FILES, configs_of
from ruprompt_fast.runs.yaml_files import read_yaml

Config = TypeVar("Config")

_PARSING_ERRORS = (
    OSError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    LookupError,
    ImportError,
    RecursionError,
    SyntaxError,
    yaml.YAMLError,
)
_DETAIL_CHARS = 1000

FLAGS = ("-h", "--help", "--print_config")
"""Arguments that are no settings: they print something, and the run ends."""


def parse_config(kind: type[Config], arguments: Sequence[str], prog: str) -> Config:
    """Read a configuration as a command line gives it: ``config.yaml key=value ...``.

    Args:
        kind: the dataclass to make; its fields may be dataclasses.
        arguments: paths of YAML files or names of shipped tasks, and overrides, ``a.b=value``, ``--a.b=value`` or
            ``--a.b value``; what comes later wins.
            ``--help`` and ``--print_config`` print and exit.
        prog: the command, for the help.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, an unreadable file, or a required key that is missing.
        RupromptError: what the dataclasses themselves raise.
        MissingDependencyError: jsonargparse is not installed.
    """
    try:
        import jsonargparse
    except ImportError as error:
        raise MissingDependencyError(
            "configurations need the package jsonargparse; install it with pip install 'ruprompt-fast[train]'."
        ) from error
    parser = jsonargparse.ArgumentParser(
        prog=prog, usage=f"{prog} [-h] [--print_config] [config.yaml or task] [key=value ...]", exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="a YAML file, also without --config=")
    parser.add_class_arguments(kind)
    try:
        namespace = parser.parse_args(list(_options(arguments, kind)))
        _name_classes_by_text(namespace)
        made = parser.instantiate(namespace)
    except RupromptError:
        raise
    # jsonargparse takes values for YAML and for names of files and of code, with all that these may raise.
    except (jsonargparse.ArgumentError, *_PARSING_ERRORS) as error:
        if isinstance(error.__cause__, RupromptError):
            raise error.__cause__ from error
        detail = in_our_words(_one_line(error))
        if len(detail) > _DETAIL_CHARS:
            detail = f"{detail[: _DETAIL_CHARS // 2]} ... {detail[-_DETAIL_CHARS // 2 :]}"
        raise ConfigError(f"{detail}; see {prog} --help.") from error
    return kind(**{part.name: made[part.name] for part in fields(cast(Any, kind))})


def read_config(kind: type[Config], path: Path | str) -> Config:
    """Read a YAML file, such as the ``config.yaml`` of a finished run, or a shipped task; see :func:`parse_config`."""
    files = configs_of(path) if isinstance(path, str) else [path]
    return parse_config(kind, [f"--config={file.expanduser()}" for file in files], prog="ruprompt-fast")


def _options(arguments: Sequence[str], kind: type) -> Iterator[str]:
    """The arguments in jsonargparse's form, their keys checked.

    Raises:
        ConfigError: a key is unknown, a value is missing, or a file cannot be read.
    """
    remaining = iter(arguments)
    for argument in remaining:
        if argument in FLAGS:
            yield argument
            continue
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") and (not equals or Path(argument).is_file()):
            for path in configs_of(argument):
                _check_file(path, kind)
                yield f"--config={path}"
            continue
        if not equals and (value := next(remaining, "--")).startswith("--"):
            raise ConfigError(f"expected a value after {argument}; found none. Write {argument}=VALUE.")
        if key == "config":
            _check_file(Path(value), kind)
        else:
            _check_key(key.removesuffix("+"), kind)
            _check_section(key, value, kind)
        yield f"--{key}={value}"


def _check_file(path: Path, kind: type) -> None:
    try:
        content = read_yaml(path)
    except ConfigError as error:
        if path.suffix or path.exists():
            raise
        raise ConfigError(
            f"{path}: expected a YAML file, key=value, or one of the tasks {', '.join(TASK_FILES)}; found none."
            f"{nearest(str(path), TASK_FILES)}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values; found {type(content).__name__}.")
    for key in _keys(content, kind):
        _check_key(key, kind, f"{path}: ")


def _keys(content: Mapping[Any, Any], kind: Any, place: str = "") -> Iterator[str]:
    """The dotted keys of a file, as deep as there are dataclasses."""
    types = get_type_hints(kind)
    for key, value in content.items():
        yield f"{place}{key}"
        part = types.get(str(key))
        if isinstance(value, dict) and is_dataclass(part):
            yield from _keys(value, part, f"{place}{key}.")


def _check_key(key: str, kind: Any, source: str = "") -> None:
    """Refuse a dotted key that names no field; what follows a field that is a mapping may be anything."""
    place, whole = "", kind
    for part in key.split("."):
        if not is_dataclass(kind):
            if _is_mapping(kind):
                return
            raise ConfigError(f"{source}unknown key {key!r}: {place!r} holds one value.")
        known = [field.name for field in fields(kind)]
        if part not in known:
            owner = f"the keys of {place!r} are" if place else "the keys are"
            raise ConfigError(
                f"{source}unknown key {key!r}; {owner} {', '.join(known)}."
                f"{nearest(part, known) or _elsewhere(part, whole)}"
            )
        kind = get_type_hints(kind)[part]
        place = f"{place}.{part}" if place else part


def _check_section(key: str, value: str, kind: Any) -> None:
    """Refuse a single value for a key that takes several; they may come from a file or be written as a mapping."""
    for part in key.split("."):
        if not is_dataclass(kind):
            return
        kind = get_type_hints(kind).get(part)
    if is_dataclass(kind) and not value.lstrip().startswith("{") and not Path(value).is_file():
        known = [field.name for field in fields(kind)]
        raise ConfigError(
            f"{key} has the keys {', '.join(known)}; found {shown(value)} for all of them. Write "
            f"{key}.{known[0]}=VALUE, or the path of a YAML file that has them."
        )


def _elsewhere(name: str, kind: Any) -> str:
    """`` Did you mean 'a.b'?`` for a key whose last part is the name or has it for its initials; or nothing."""
    found = [key for key in _all_keys(kind) if name in (last := key.rpartition(".")[2], _initials(last))]
    return f" Did you mean {' or '.join(map(repr, found[:3]))}?" if found else ""


def _all_keys(kind: Any, place: str = "") -> Iterator[str]:
    """The dotted keys of a configuration."""
    types = get_type_hints(kind)
    for part in fields(kind):
        yield f"{place}{part.name}"
        if is_dataclass(types[part.name]):
            yield from _all_keys(types[part.name], f"{place}{part.name}.")


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_")) if "_" in name else ""


def _is_mapping(kind: Any) -> bool:
    origins = [get_origin(option) for option in (kind, *get_args(kind))]
    return any(isinstance(origin, type) and issubclass(origin, Mapping) for origin in origins)


def _name_classes_by_text(namespace: Any) -> None:
    """YAML reads ``{1: стихи}`` with a number for its key, while the classes of a task are named by text."""
    for key, value in list(namespace.items()):
        if isinstance(value, dict):
            namespace[key] = {scalar_text(name) or str(name): item for name, item in value.items()}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
