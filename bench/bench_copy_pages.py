"""Copying pages of all layers in one launch against a copy of as many bytes that lie together."""

from __future__ import annotations

from typing import Any

import pytest
from gpu.kernels import CASES
from kernel_cases import CANDIDATES, NEEDS_CARD, SETTING, cases_of, time_beside_copy


@NEEDS_CARD
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", cases_of("copy_pages"))
def bench_copy_pages(benchmark: Any, name: str, candidate: str) -> None:
    time_beside_copy(benchmark, name, CASES[name](SETTING), candidate)
