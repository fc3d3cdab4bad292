"""The grid of a sweep: every combination of its axes' values on top of one training configuration.

The axes are those of Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", figure 3: the
prompt's length and the first values of its rows, repeated over seeds; and those that recipes are measured with.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from ruprompt_fast.errors import ConfigError
from ruprompt_fast.prompts.providers.init_mode import InitMode
from ruprompt_fast.runs.config import ProviderConfig, TrainConfig
from ruprompt_fast.training.task import Task

ProviderName = Literal["tensor", "lstm", "mlp", "residual", "prefix", "prefix-mlp"]
OptimName = Literal["adamw", "adafactor"]
ScheduleName = Literal["constant", "linear", "cosine"]

_PAPER_INITS: tuple[InitMode, ...] = ("random", "vocab", "text", "labels")
_OWN_INIT = ("lstm", "mlp")
_KINDS: Mapping[ProviderName, Literal["tensor", "lstm", "mlp", "prefix"]] = {
    "tensor": "tensor",
    "lstm": "lstm",
    "mlp": "mlp",
    "residual": "mlp",
    "prefix": "prefix",
    "prefix-mlp": "prefix",
}
_ROWS = re.compile(r"<P\*\d+>")


@dataclass
class Grid:
    """The values of each axis; None leaves an axis out, and the configuration's own value holds.

    Attributes:
        length: numbers of virtual tokens; each replaces the number of the template's first ``<P*N>``.
        init: first values of the rows. ``text`` needs ``provider.text``; ``labels`` takes ``provider.labels``, or else
            the label words of a classification task. Combinations that cannot be are skipped, with the reason.
        provider: ``tensor``, ``lstm``, ``mlp``, ``residual`` (an MLP with a residual connection), ``prefix`` (keys
            and values of every layer) and ``prefix-mlp`` (those through an MLP of width ``provider.hidden_dim``).
            ``lstm``, ``mlp`` and ``residual`` make their own first values: they are trained once, whatever ``init`` is.
        learning_rate: peak learning rates.
        optim: optimizers.
        schedule: what the learning rate does after warm-up.
        warmup_fraction: the part of the steps in which the learning rate rises.
        seed: seeds of the rows' first values and of the order of the data; results are averaged over them.
    """

    length: list[int] | None = field(default_factory=lambda: [1, 5, 20, 100, 150])
    init: list[InitMode] | None = field(default_factory=lambda: [*_PAPER_INITS])
    provider: list[ProviderName] | None = None
    learning_rate: list[float] | None = None
    optim: list[OptimName] | None = None
    schedule: list[ScheduleName] | None = None
    warmup_fraction: list[float] | None = None
    seed: list[int] | None = field(default_factory=lambda: [0, 1, 2])


@dataclass
class SweepConfig(TrainConfig):
    """A training configuration, and the grid of what varies in it.

    Attributes:
        grid: the values of each axis.
    """

    grid: Grid = field(default_factory=Grid)


@dataclass(frozen=True)
class Axes:
    """One value of each axis; None where the grid leaves the axis out, or where the provider does not have it."""

    length: int | None = None
    init: InitMode | None = None
    provider: ProviderName | None = None
    learning_rate: float | None = None
    optim: OptimName | None = None
    schedule: ScheduleName | None = None
    warmup_fraction: float | None = None
    seed: int | None = None


AXES = tuple(axis.name for axis in fields(Axes))
"""The names of the axes, in the order of tables."""


@dataclass(frozen=True)
class Cell:
    """One combination, and its training configuration."""

    axes: Axes
    config: TrainConfig


@dataclass(frozen=True)
class SkippedCell:
    """A combination that cannot be trained, and why."""

    axes: Axes
    reason: str


def plan_cells(config: SweepConfig) -> tuple[list[Cell], list[SkippedCell]]:
    """All combinations: those to train, seeds outermost, and those that cannot be.

    Raises:
        ConfigError: an axis without values or with the same value twice, a length or rate that is not positive, a
            template without ``<P*N>``, or a grid of which nothing can be trained.
    """
    base = TrainConfig(**{part.name: getattr(config, part.name) for part in fields(TrainConfig)})
    _check(base, config.grid)
    cells: dict[Axes, Cell] = {}
    skipped = []
    for axes in _combinations(config.grid):
        provider = _provider(base.provider, axes)
        if axes.init is not None and provider.kind in _OWN_INIT:
            axes = replace(axes, init=None)
        elif reason := _why_not(base.task, provider, axes):
            skipped.append(SkippedCell(axes, reason))
            continue
        cells.setdefault(axes, Cell(axes, _apply(base, provider, axes)))
    if not cells:
        reasons = sorted({cell.reason for cell in skipped})
        raise ConfigError(f"expected a grid with at least one possible combination; found none: {'; '.join(reasons)}.")
    return list(cells.values()), skipped


def with_length(template: str, length: int) -> str:
    """The template with this number of rows in its first ``<P*N>``.

    Raises:
        ConfigError: there is no ``<P*N>`` in it.
    """
    changed, count = _ROWS.subn(f"<P*{length}>", template, count=1)
    if not count:
        raise ConfigError(
            f"a sweep over lengths sets the number in the template's first <P*N>; found {template!r}. "
            "Write the rows as <P*20>, or set grid.length=null."
        )
    return changed


def _combinations(grid: Grid) -> Iterator[Axes]:
    given = {name: values for name in AXES if (values := getattr(grid, name)) is not None}
    names = sorted(given, key=lambda name: name != "seed")  # stable: the other axes keep their order
    for values in itertools.product(*(given[name] for name in names)):
        yield Axes(**dict(zip(names, values, strict=True)))


def _provider(base: ProviderConfig, axes: Axes) -> ProviderConfig:
    """The cell's provider, its first values aside."""
    name = axes.provider
    if name is None:
        return base
    hidden_dim = None if name in ("tensor", "prefix") else base.hidden_dim
    return replace(base, kind=_KINDS[name], residual=name == "residual", hidden_dim=hidden_dim)


def _why_not(task: Task, provider: ProviderConfig, axes: Axes) -> str | None:
    if axes.init == "text" and provider.text is None:
        return "init text needs provider.text"
    if axes.init in ("labels", "frequent") and provider.kind == "prefix":
        return f"a prefix provider cannot start from {axes.init}"
    if axes.init == "labels":
        labels = _labels(task, provider)
        if labels is None:
            return f"init labels needs a classification task or provider.labels; the objective is {task.objective}"
        if axes.length is not None and len(labels) > axes.length:
            return f"{len(labels)} labels do not fit into {axes.length} rows"
    return None


def _apply(base: TrainConfig, provider: ProviderConfig, axes: Axes) -> TrainConfig:
    old = base.optimization
    optimization = replace(
        old,
        learning_rate=old.learning_rate if axes.learning_rate is None else axes.learning_rate,
        optim=axes.optim or old.optim,
        schedule=axes.schedule or old.schedule,
        warmup_fraction=old.warmup_fraction if axes.warmup_fraction is None else axes.warmup_fraction,
    )
    task = base.task
    if axes.length is not None:
        task = replace(task, template=with_length(task.template, axes.length))
    seed = base.seed if axes.seed is None else axes.seed
    provider = _with_init(task, provider, axes)
    return replace(base, task=task, provider=provider, optimization=optimization, seed=seed)


def _with_init(task: Task, provider: ProviderConfig, axes: Axes) -> ProviderConfig:
    """The provider with what its first values need, and without what belongs to another init of the grid."""
    init = axes.init
    if init is None and provider.kind not in _OWN_INIT:
        return provider
    return replace(
        provider,
        init=init or ProviderConfig.init,
        text=provider.text if init == "text" else None,
        labels=_labels(task, provider) if init == "labels" else None,
        std=provider.std if init == "random" else None,
    )


def _labels(task: Task, provider: ProviderConfig) -> list[str] | None:
    if provider.labels is not None:
        return provider.labels
    return task.label_words if task.objective == "classification" else None


def _check(base: TrainConfig, grid: Grid) -> None:
    for name in AXES:
        values = getattr(grid, name)
        if values is None:
            continue
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"grid.{name} must list each of its values once; found {values}. null leaves it out.")
        if name in ("length", "learning_rate") and min(values) <= 0:
            raise ConfigError(f"grid.{name} must be above zero; found {min(values)}.")
    if "prefix-mlp" in (grid.provider or ()) and base.provider.hidden_dim is None:
        raise ConfigError("the provider prefix-mlp needs the width of its MLP: set provider.hidden_dim.")
    if grid.length is not None:
        with_length(base.task.template, 1)
