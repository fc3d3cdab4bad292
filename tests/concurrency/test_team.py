"""How many threads compute: what is decided from the system's counts, and that it stays within one thread."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from patience import join_all

from ruprompt_fast.concurrency.team import Team, TeamSize, use_threads

CALM, CROWDED = {"waiting": 0.0, "idle": 0.0}, {"waiting": 0.67, "idle": 0.0}
FREE = {"waiting": 0.0, "idle": 1.0}


def decided(size: TeamSize, *counts: dict[str, float], start: float, step: float = 0.1) -> list[int]:
    found = []
    for number, count in enumerate(counts):
        size.decide(**count, at=start + step * number)
        found.append(size.now)
    return found


def test_it_shrinks_beside_another_program_and_grows_when_that_is_gone() -> None:
    size = TeamSize(2, 2)
    assert decided(size, CALM, CALM, CROWDED, CROWDED, CALM, CALM, start=100.0) == [2, 2, 2, 1, 1, 1]
    assert decided(size, FREE, start=101.0) == [2]


def test_a_moment_of_another_program_is_no_reason() -> None:
    assert decided(TeamSize(2, 2), *[CROWDED, CALM] * 500, start=100.0) == [2] * 1000


def test_a_team_that_has_grown_for_nothing_shrinks_at_once() -> None:
    size = TeamSize(2, 2)
    assert decided(size, CROWDED, CROWDED, start=100.0) == [2, 1]
    assert decided(size, FREE, CROWDED, start=101.0) == [2, 1]


def test_it_never_leaves_its_bounds() -> None:
    size = TeamSize(4, 4)
    assert decided(size, *[{"waiting": 9.0, "idle": 0.0}] * 4, start=100.0) == [4, 1, 1, 1]
    assert decided(size, {"waiting": 0.0, "idle": 64.0}, start=110.0) == [4]


def test_it_shrinks_by_the_threads_that_had_no_processor() -> None:
    assert decided(TeamSize(16, 16), *[{"waiting": 2.8, "idle": 0.0}] * 2, start=100.0) == [16, 13]


def test_a_team_alone_stays_as_it_is() -> None:
    size = TeamSize(2, 2)
    assert decided(size, *[{"waiting": 0.05, "idle": 0.6}] * 1000, start=0.0) == [2] * 1000


def test_growing_onto_processors_that_are_not_free_is_tried_less_and_less() -> None:
    """Where the system counts idle processors wrongly, the team is full for one window in sixteen seconds."""
    size = TeamSize(2, 2)
    full = 0
    for number in range(6000):
        size.decide(waiting=0.67 if size.now == 2 else 0.0, idle=1.0, at=100.0 + 0.1 * number)
        full += size.now == 2
    assert full < 45


def test_it_is_tried_again_where_the_system_counts_no_idle_processor() -> None:
    size = TeamSize(2, 2)
    assert decided(size, CROWDED, CROWDED, start=100.0) == [2, 1]
    assert decided(size, CALM, CALM, start=129.0, step=2.0) == [1, 2]


def test_other_threads_keep_their_number() -> None:
    before = torch.get_num_threads()
    found: list[int] = []

    def compute() -> None:
        use_threads(before + 2)
        found.append(torch.get_num_threads())

    for work in (compute, lambda: found.append(torch.get_num_threads())):
        thread = threading.Thread(target=work)
        thread.start()
        join_all([thread])
    assert found == [before + 2, before]
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
def test_mkl_takes_the_number_also_from_a_caller_who_has_set_torchs() -> None:
    code = (
        "import ctypes, torch; from ruprompt_fast.concurrency.team import Team\n"
        "mkl = ctypes.CDLL(torch._C.__file__)\n"
        "torch.set_num_threads(3)\n"
        "with Team(2).working(): assert mkl.MKL_Get_Max_Threads() == 2\n"
        "assert mkl.MKL_Get_Max_Threads() == torch.get_num_threads() == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS=1", "OMP_NUM_THREADS=3", "OMP_WAIT_POLICY=active", "A=b"])
def test_whatever_the_environment_says(variable: str) -> None:
    code = (
        "import torch; from ruprompt_fast.concurrency.team import Team; team = Team(2); "
        "team.allow(torch.get_num_threads()); team.adjust(); assert torch.get_num_threads() == 2"
    )
    name, value = variable.split("=")
    subprocess.run([sys.executable, "-c", code], env={"PATH": "", name: value}, check=True)


def test_between_pieces_of_work_the_caller_keeps_its_number() -> None:
    before = torch.get_num_threads()
    team = Team(before + 1)
    with team.working():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="failed"), team.working():
        raise ValueError("failed")
    assert torch.get_num_threads() == before


def test_a_team_follows_its_callers_number() -> None:
    before = torch.get_num_threads()
    team = Team()
    found = []
    for most in (3, 1, before):
        team.allow(most)
        found.append(torch.get_num_threads())
    assert found == [3, 1, before]
