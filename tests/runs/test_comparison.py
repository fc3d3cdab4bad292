"""When a difference counts as larger than its error."""

from __future__ import annotations

import numpy as np
import pytest

from ruprompt_fast.runs.comparison import compare_chrf, compare_means, compare_ratios
from ruprompt_fast.runs.metrics import chrf_metric, reference_streams, text_metrics


def test_a_constant_difference_is_certain() -> None:
    values = np.random.default_rng(0).random(40)
    found = compare_means((values + 0.01).tolist(), values.tolist(), seed=1)
    assert found.value == pytest.approx(0.01)
    assert found.is_certain


def test_no_difference_is_none() -> None:
    found = compare_means([0.0, 1.0, 1.0], [0.0, 1.0, 1.0], seed=1)
    assert (found.value, found.p_value, found.is_certain) == (0.0, 1.0, False)


def test_one_row_of_many_is_chance() -> None:
    found = compare_means([1.0, *[0.0] * 99], [0.0] * 100, seed=1)
    assert found.value == pytest.approx(0.01)
    assert not found.is_certain


def test_chance_is_rarely_taken_for_more() -> None:
    """Of comparisons of two samples of one distribution about one in twenty counts."""
    rng = np.random.default_rng(0)
    pairs = rng.random((200, 2, 50))
    certain = sum(compare_means(first.tolist(), second.tolist(), seed=1).is_certain for first, second in pairs)
    assert certain <= 20


def test_ratios_weigh_parts_by_their_size() -> None:
    first, second = np.array([[2.0, 1.0], [30.0, 10.0]]), np.array([[1.0, 1.0], [30.0, 10.0]])
    assert compare_ratios(first, second, seed=0).value == pytest.approx(32 / 11 - 31 / 11)


def test_the_same_draws_for_the_same_seed() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(30).tolist(), rng.random(30).tolist()
    assert compare_means(first, second, seed=5) == compare_means(first, second, seed=5)


def test_chrf() -> None:
    references = [[f"пословица номер {index}", "другая"] if index % 2 else [f"строка {index}"] for index in range(40)]
    right = [known[0] for known in references]
    wrong = [text[::-1] for text in right]
    found = compare_chrf(right, {"same": right, "wrong": wrong}, reference_streams(references), chrf_metric())
    assert (found["same"].value, found["same"].is_certain) == (0.0, False)
    expected = text_metrics(right, references)["chrf"] - text_metrics(wrong, references)["chrf"]
    assert found["wrong"].value == pytest.approx(expected)
    assert found["wrong"].is_certain
