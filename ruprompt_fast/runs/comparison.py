"""Whether one way to answer is better than another, or only was on these rows: paired bootstrap over rows.

Rows are drawn again and again, with repetition, the same ones for both ways (Koehn 2004, "Statistical Significance
Tests for Machine Translation Evaluation"). For chrF, which is one number for all rows, sacrebleu does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.05
"""A difference that chance gives less often is larger than its error."""

_NUM_SAMPLES = 1000
_CHUNK = 50

# sacrebleu draws the statistics of all samples at once.
_MAX_DRAWN = 2_000_000
_MIN_SAMPLES = 100


@dataclass(frozen=True)
class Difference:
    """How far the prompt's figure is above another.

    Attributes:
        value: the difference.
        p_value: how often chance gives as large a one.
    """

    value: float
    p_value: float

    @property
    def is_certain(self) -> bool:
        """Whether it is larger than its error."""
        return self.p_value < LEVEL


def compare_ratios(prompt: NDArray[np.float64], other: NDArray[np.float64], seed: int) -> Difference:
    """Compare two quotients of sums over the same parts of the rows.

    Args:
        prompt: [parts, 2], numerator and denominator of each part.
        other: likewise.
        seed: of the draws.
    """
    value = _ratio(prompt.sum(0)) - _ratio(other.sum(0))
    drawn = np.concatenate(
        [_ratio(counts @ prompt) - _ratio(counts @ other) for counts in _draws(len(prompt), seed)], axis=0
    )
    as_large = int((np.abs(drawn - value) >= abs(value)).sum())
    return Difference(float(value), (as_large + 1) / (len(drawn) + 1))


def compare_means(prompt: Sequence[float], other: Sequence[float], seed: int) -> Difference:
    """Compare the means of a measure that every row has."""
    return compare_ratios(with_ones(prompt), with_ones(other), seed)


def compare_chrf(
    prompt: Sequence[str],
    others: Mapping[str, Sequence[str]],
    streams: Sequence[Sequence[str]],
    metric: Any,
) -> dict[str, Difference]:
    """Compare the chrF of texts with that of other texts, by name.

    Args:
        prompt: the prompt's texts.
        others: the others'.
        streams: the references, see sacrebleu.
        metric: sacrebleu's.
    """
    from sacrebleu.significance import PairedTest

    num_samples = min(_NUM_SAMPLES, max(_MIN_SAMPLES, _MAX_DRAWN // len(prompt)))
    systems: list[tuple[str, Sequence[str]]] = [
        ("", list(prompt)),
        *((name, list(texts)) for name, texts in others.items()),
    ]
    _, found = PairedTest(systems, {"chrf": metric}, streams, test_type="bs", n_samples=num_samples)()
    first, *rest = cast("list[Any]", next(values for name, values in found.items() if name != "System"))
    return {
        name: Difference(first.score - result.score, float(result.p_value) if result.score != first.score else 1.0)
        for name, result in zip(others, rest, strict=True)
    }


def with_ones(values: Sequence[float]) -> NDArray[np.float64]:
    """Values over one each: their quotient of sums is the mean."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.stack([numbers, np.ones_like(numbers)], axis=1)


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = sums[..., 0] / sums[..., 1]
    return quotient


def _draws(num_parts: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each part is drawn, [samples, parts], some samples at a time."""
    rng = np.random.default_rng(seed)
    for _ in range(_NUM_SAMPLES // _CHUNK):
        yield rng.multinomial(num_parts, np.full(num_parts, 1 / num_parts), size=_CHUNK).astype(np.float64)
