"""A run's output folder: what is written there, and when it counts as finished.

config.yaml        the effective configuration; written before training
checkpoints/       what an interrupted run continues from
prompt.json, prompt_provider.safetensors    the prompt; an ensemble has a folder for each member
history.jsonl, curve.png    what was logged, and the loss over the steps
README.md          the model card
metrics.json       the figures; written last, so a folder that has it is complete
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import yaml

from ruprompt_fast.errors import CheckpointError, ConfigError, MissingDependencyError, OutputExistsError, shown
from ruprompt_fast.file_writer import is_unfinished, remove_unfinished, write_atomically, write_json, write_text
from ruprompt_fast.runs.config import config_yaml
from ruprompt_fast.runs.yaml_files import read_yaml
from ruprompt_fast.training.ownership import LOCK_FILE, owning_folder

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
HISTORY_FILE = "history.jsonl"
CURVE_FILE = "curve.png"
CARD_FILE = "README.md"
METRICS_FILE = "metrics.json"

# What may change between an interrupted run and its continuation.
_NOT_OF_THE_RUN = ("resume", "output", "model.threads")

_STEPS = "optimization.max_steps"


@contextmanager
def claimed_output(folder: Path, config: Any) -> Iterator[None]:
    """Own a run's folder, which holds nothing but this run.

    The folder is made if it is not there, and removed again if the block fails before the run has begun in it.

    Raises:
        OutputInUseError: another run owns it.
        OutputExistsError, CheckpointError, ConfigError: see :func:`check_output`; a folder that is refused is left as
            it is.
        FileWriteError: it cannot be made.
    """
    with checked_and_owned(folder, lambda: check_output(folder, config)):
        remove_unfinished(folder)
        try:
            yield
        finally:
            if not is_run(folder):
                _remove_if_empty(folder / CHECKPOINTS)


@contextmanager
def checked_and_owned(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Own a folder that passes a check; one that is refused is left as it is.

    Args:
        folder: the folder.
        check: refuses it. Called before the folder is touched, unless another run owns it or did when it was killed,
            and again when it is ours.

    Raises:
        OutputInUseError: another run owns it; and what ``check`` raises.
    """
    if not (folder / LOCK_FILE).exists():
        check()
    with owning_folder(folder):
        check()
        yield


def check_output(folder: Path, config: Any) -> None:
    """Refuse a folder that this run may not write to.

    Args:
        folder: the output folder.
        config: the configuration, a dataclass with a field ``resume``.

    Raises:
        OutputExistsError: it exists, and ``resume`` is not set.
        CheckpointError: it is to be resumed, but holds something else than a run with this configuration.
        ConfigError: it cannot be made.
    """
    check_can_make(folder)
    if not folder.exists() or (config.resume and _is_blank(folder)) or has_only(folder, LOCK_FILE):
        return
    if not config.resume:
        state = (
            "a finished run" if is_finished(folder) else "an interrupted run" if is_run(folder) else "something else"
        )
        raise OutputExistsError(
            f"{folder}: expected no such folder; found {state}. Choose another output"
            f"{', or continue the run with resume=true' if is_run(folder) else ''}."
        )
    if not is_run(folder):
        raise CheckpointError(f"{folder}: expected the folder of a run to resume, with {CONFIG_FILE}; found none.")
    try:
        stored = _leaves(read_yaml(folder / CONFIG_FILE))
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: expected the configuration of a run ({error}).") from error
    given = _leaves(yaml.safe_load(config_yaml(config)))
    for key in sorted(stored.keys() | given.keys()):
        is_longer = key == _STEPS and _is_more(given.get(key), stored.get(key))
        if key not in _NOT_OF_THE_RUN and stored.get(key) != given.get(key) and not is_longer:
            raise CheckpointError(
                f"{folder}: the run that is here has {shown(key)[1:-1]}={shown(stored.get(key))}; found "
                f"{shown(given.get(key))}. Resume it with its own {CONFIG_FILE}, or choose another output."
            )


def check_can_make(path: Path) -> None:
    """Check that a file or folder that is not there can be made, before anything is computed for it.

    Raises:
        ConfigError: it would be in a file, or in a folder that may not be written to.
    """
    if path.exists():
        return
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir():
        raise ConfigError(f"{path}: expected a place in a folder; {place} is none. Choose another output.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{path}: expected a place to write to; {place} is write-protected. Choose another output.")


def is_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return (folder / CONFIG_FILE).is_file()


def is_finished(folder: Path) -> bool:
    """Whether a run wrote all of its results to this folder."""
    return (folder / METRICS_FILE).is_file()


def is_extended(folder: Path, config: Any) -> bool:
    """Whether a configuration has the run of a folder take more steps than it was to take."""
    try:
        stored = _leaves(read_yaml(folder / CONFIG_FILE))
    except ConfigError:  # missing, or damaged, which check_output names
        return False
    return _is_more(config.optimization.max_steps, stored.get(_STEPS))


def begin(folder: Path, config: Any) -> None:
    """Make the folder, with the configuration in it.

    The one of an interrupted run is left as it is; a finished run that is to take more steps is unfinished again.
    """
    if is_run(folder) and not is_extended(folder, config):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_FILE).unlink(missing_ok=True)
    write_text(folder / CONFIG_FILE, config_yaml(config))


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write what the trainer logged, one JSON object a line."""
    write_text(folder / HISTORY_FILE, "".join(json.dumps(entry) + "\n" for entry in history))


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the figures, which makes the run a finished one."""
    write_json(folder / METRICS_FILE, metrics)


def read_metrics(folder: Path) -> dict[str, float]:
    """The figures of a finished run.

    Raises:
        ConfigError: there is no finished run in this folder.
    """
    path = folder / METRICS_FILE
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected the figures of a finished run ({error}).") from error
    return cast("dict[str, float]", metrics)


def draw_curve(folder: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the training loss, and the held-out loss where there is one, over the steps.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    check_can_draw()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=3)
    axes.set(title=title, xlabel="step", ylabel="loss, nats")
    axes.legend()
    write_atomically(folder / CURVE_FILE, lambda temporary: figure.savefig(temporary, format="png"))


def check_can_draw() -> None:
    """Check that the curve can be drawn, before anything is trained.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "the curve needs the package matplotlib; install it with pip install 'ruprompt-fast[train]'."
        ) from error


def has_only(folder: Path, *names: str) -> bool:
    """Whether the folder holds some of these files, or unfinished ones, and nothing else."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    found = [path.name for path in folder.iterdir()]
    return bool(found) and all(name in names or is_unfinished(name) for name in found)


def _is_blank(folder: Path) -> bool:
    """Whether a run that was cut off in its first moments left nothing here but folders and an unfinished file."""
    leftovers = [path.name for path in folder.rglob("*") if not path.is_dir()]
    return folder.is_dir() and all(name == LOCK_FILE or is_unfinished(name) for name in leftovers)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _is_more(given: object, stored: object) -> bool:
    return isinstance(given, int) and isinstance(stored, int) and given > stored


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted keys."""
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): config}
    return {key: value for name in config for key, value in _leaves(config[name], f"{prefix}{name}.").items()}
