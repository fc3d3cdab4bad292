"""Every kind of attack for some seconds; ``make attack`` has ten minutes."""

from __future__ import annotations

import pytest
from attack.kinds import KINDS, share

_SECONDS = 60.0


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_wrong_raw_hung_or_crashed(name: str) -> None:
    tally = KINDS[name](share(name, _SECONDS), 0)
    assert tally.problems == []
    assert tally.num_faults == 0
    assert tally.num_tried > 0
