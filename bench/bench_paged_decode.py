"""Attention of decoding over pages against a copy of the bytes that it reads: keys and values once."""

from __future__ import annotations

from typing import Any

import pytest
from gpu.kernels import CASES
from kernel_cases import CANDIDATES, NEEDS_CARD, SETTING, cases_of, time_beside_copy


@NEEDS_CARD
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", cases_of("paged_decode"))
def bench_paged_decode(benchmark: Any, name: str, candidate: str) -> None:
    time_beside_copy(benchmark, name, CASES[name](SETTING), candidate)
