"""Linear layers from int8 weights, against a copy of the bytes that they read, the weight once."""

from __future__ import annotations

from typing import Any

import pytest
from gpu.kernels import CASES
from kernel_cases import CANDIDATES, NEEDS_CARD, SETTING, cases_of, time_beside_copy


@NEEDS_CARD
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", cases_of("int8_linear"))
def bench_int8_linear(benchmark: Any, name: str, candidate: str) -> None:
    time_beside_copy(benchmark, name, CASES[name](SETTING), candidate)
