"""Every setting with every odd value, in every mode: an answer or a named error, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from attack.settings_matrix import FEW_VALUES, FIELDS, MODES, VALUES, Target, judge
from attack.tally import FAULTS


@pytest.fixture(scope="module")
def on_the_engine() -> Target:
    target = Target.make("llama")
    assert target.model.stats().path == "engine"
    return target


@pytest.fixture(scope="module")
def on_transformers() -> Target:
    target = Target.make("t5")
    assert target.model.stats().path == "fallback"
    return target


def faults(target: Target, field: str, modes: Iterable[str], values: Iterable[str]) -> list[str]:
    found = []
    for mode in modes:
        for value in values:
            outcome, what = judge(target, mode, {field: VALUES[value]()})
            if outcome in FAULTS:
                found.append(f"{mode} {field}={value}: {outcome}: {what}")
        if harm := target.harm():
            found.append(f"{mode} {field}: {harm}")
    return found


@pytest.mark.parametrize("field", FIELDS)
def test_on_the_engine(on_the_engine: Target, field: str) -> None:
    assert faults(on_the_engine, field, MODES, VALUES) == []


@pytest.mark.parametrize("field", FIELDS)
def test_on_transformers(on_transformers: Target, field: str) -> None:
    assert faults(on_transformers, field, ("sampled", "beams"), FEW_VALUES) == []
