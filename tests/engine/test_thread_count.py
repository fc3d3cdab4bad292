"""``threads``: what a model computes on, and that its answers do not depend on it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from engine.engine_cases import ENDLESS, INPUTS, NAMES, Fault, hooked, serve
from patience import join_all

from ruprompt_fast.errors import SettingError


def counted(model: Any) -> list[int]:
    """torch's threads in every step of a batch."""
    found: list[int] = []
    with hooked(model, Fault(lambda: found.append(torch.get_num_threads()))):
        model.generate(INPUTS, NAMES, max_new_tokens=4, **ENDLESS)
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_fixed_number(threads: int) -> None:
    before = torch.get_num_threads()
    assert set(counted(serve(threads=threads))) == {threads}
    assert torch.get_num_threads() == before


def test_by_default_no_more_than_the_caller_has() -> None:
    model = serve()
    found: dict[int, list[int]] = {}

    def call(threads: int) -> None:
        torch.set_num_threads(threads)
        found[threads] = counted(model)

    before = torch.get_num_threads()
    for threads in (1, 3):
        thread = threading.Thread(target=call, args=(threads,))
        thread.start()
        join_all([thread])
    torch.set_num_threads(before)
    assert set(found[1]) == {1}
    assert max(found[3]) <= 3


def test_answers_are_the_same_to_the_bit() -> None:
    settings = {"max_new_tokens": 12, "output_scores": True, **ENDLESS}
    expected = serve(threads=1).generate(INPUTS, NAMES, **settings)
    for threads in (2, 3, 7):
        assert serve(threads=threads).generate(INPUTS, NAMES, **settings) == expected


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "two", 10**6])
def test_other_numbers_are_refused(threads: Any) -> None:
    with pytest.raises(SettingError, match="threads"):
        serve(threads=threads)
