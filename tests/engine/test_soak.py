"""The short form of ``make soak``."""

from __future__ import annotations

import pytest
from engine.soak import Soak, work


@pytest.mark.parametrize("seed", [0])
def test_random_work_changes_no_text_and_keeps_no_memory(seed: int) -> None:
    report = Soak(seed).run(work(30))
    assert report.problems == []
