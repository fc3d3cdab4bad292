"""The short form of ``make soak``."""

from __future__ import annotations

import pytest
from engine.soak import Soak


@pytest.mark.parametrize("seed", [0])
def test_random_work_changes_no_text_and_keeps_no_memory(seed: int) -> None:
    report = Soak(seed).run(15)
    assert report.problems == []
    assert min(report.done.values()) > 0
    assert len(report.done) == 7
    for what in ("preemptions", "prefix_evictions", "prefix_loads", "text_page_hits", "copies"):
        assert report.counts[what] > 0, what
