"""What is said about cards that cannot run what is installed."""

from __future__ import annotations

import re

import pytest
import torch

from ruprompt_fast.errors import MissingDependencyError, UnsupportedModelError
from ruprompt_fast.ops.cuda import cards
from ruprompt_fast.ops.cuda.cards import V100, Card, check_has_code, check_triton_runs

CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU128 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CU130 = [*CU128, "compute_120"]
H100, L4, B200, NEWER = (
    Card(name, capability)
    for name, capability in (("H100", (9, 0)), ("L4", (8, 9)), ("B200", (10, 0)), ("newer", (13, 0)))
)


@pytest.mark.parametrize(
    ("card", "architectures"),
    [
        (V100, CU126),
        (H100, CU126),
        (L4, CU126),
        (B200, CU128),
        (NEWER, CU130),
        (H100, ["sm_90a"]),
        (Card("B300", (10, 3)), CU128),
    ],
    ids=str,
)
def test_cards_that_run(card: Card, architectures: list[str]) -> None:
    check_has_code(card, architectures)


@pytest.mark.parametrize(
    ("card", "architectures", "wheels"),
    [
        (V100, CU130, r'Install the cu126 wheels of PyTorch, .* "torch==2\.14\.\*"'),
        (Card("P100", (6, 0)), CU130, "Install the cu126 wheels"),
        (Card("T4", (7, 5)), ["sm_80", "sm_90"], "Install wheels of PyTorch for CUDA 12.6 or later"),
        (B200, CU126, "Install wheels of PyTorch for CUDA 12.8 or later"),
        (NEWER, CU128, "CUDA 12.8 or later"),
        (Card("H20a", (9, 1)), ["sm_90a"], "CUDA 12.6 or later"),
        (Card("K40", (3, 5)), CU126, "move the model to the CPU"),
    ],
    ids=str,
)
def test_cards_that_torch_has_no_code_for(card: Card, architectures: list[str], wheels: str) -> None:
    number = "sm_{}{}".format(*card.capability)
    with pytest.raises(MissingDependencyError, match=rf"torch .* has no code for {card.name} \({number}\); .*{wheels}"):
        check_has_code(card, architectures)


def test_cards_that_our_kernels_do_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedModelError, match="kernels need sm_70 or newer; P100 is sm_60"):
        check_has_code(Card("P100", (6, 0)), CU126)
    monkeypatch.setattr(cards, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModelError, match=r"need Triton, .* pip install 'ruprompt-fast\[triton\]'"):
        check_has_code(V100, CU126)


def test_a_triton_that_cannot_launch_says_what_it_needs() -> None:
    """Without a card it finds no driver; without a compiler its error is of the same kind."""
    if torch.cuda.is_available():
        check_triton_runs()
        return
    with pytest.raises(MissingDependencyError, match="no kernel here: .*driver.* It needs a C compiler"):
        check_triton_runs()


@pytest.mark.parametrize(
    ("installed", "runs"), [("3.4.0", True), ("3.10.1", True), ("4.0", True), ("3.3.1", False), ("2.1.0", False)]
)
def test_an_old_triton_is_refused(installed: str, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "version", lambda name: installed)
    if runs:
        check_has_code(V100, ["sm_70"])
    else:
        with pytest.raises(MissingDependencyError, match=f"3.4 or newer; found {re.escape(installed)}"):
            check_has_code(V100, ["sm_70"])
