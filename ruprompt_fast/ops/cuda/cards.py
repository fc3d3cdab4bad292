"""What a graphics card can do, as far as the choice of a kernel depends on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec

import torch

from ruprompt_fast.errors import MissingDependencyError, UnsupportedModelError, described

# By the first capability: the wheels of PyTorch that have code for it. CUDA 13 has none for Volta, and PyTorch 2.14 is
# the last with CUDA 12; Blackwell needs CUDA 12.8.
_WHEELS = {
    (5, 0): 'the cu126 wheels of PyTorch, the last of which are those of version 2.14: "torch==2.14.*"',
    (7, 5): 'wheels of PyTorch for CUDA 12.6 or later (cu126, cu128, cu130): "torch>=2.8"',
    (10, 0): 'wheels of PyTorch for CUDA 12.8 or later (cu128, cu130): "torch>=2.8"',
}
_OLDEST = (7, 0)
_OLDEST_TRITON = (3, 4)


@dataclass(frozen=True)
class Card:
    """A CUDA device.

    Attributes:
        name: as the driver gives it.
        capability: its compute capability, (7, 0) for a V100.
    """

    name: str
    capability: tuple[int, int]

    @property
    def has_fast_dot(self) -> bool:
        """Whether ``tl.dot`` runs on tensor cores: on sm_70 and sm_75 Triton compiles it to single multiplications."""
        return self.capability >= (8, 0)


V100 = Card("V100", (7, 0))
"""The oldest card that the kernels are written for; what Triton interprets on the CPU takes its ways."""


def card_of(device: torch.device) -> Card:
    """The card behind a device; for the CPU, where Triton interprets, a V100."""
    if device.type != "cuda":
        return V100
    return _card(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache(maxsize=16)
def _card(index: int) -> Card:
    return Card(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))


def check_has_code(card: Card, architectures: Sequence[str] | None = None) -> None:
    """Refuse a card that cannot run what is installed.

    Args:
        card: the card.
        architectures: what torch was compiled for; defaults to ``torch.cuda.get_arch_list()``.

    Raises:
        MissingDependencyError: the installed torch has no code for it, and the message names the wheels that have; or
            Triton is older than the kernels need.
        UnsupportedModelError: the engine's kernels cannot run: the card is older than Volta, or Triton is missing.
    """
    architectures = torch.cuda.get_arch_list() if architectures is None else architectures
    number = "sm_{}{}".format(*card.capability)
    if not any(_runs(architecture, card.capability) for architecture in architectures):
        wheels = next((text for first, text in reversed(_WHEELS.items()) if card.capability >= first), None)
        raise MissingDependencyError(
            f"torch {torch.__version__} has no code for {card.name} ({number}); it has {', '.join(architectures)}. "
            + (f"Install {wheels}." if wheels else "No wheels of PyTorch 2.8 or later have; move the model to the CPU.")
        )
    if card.capability < _OLDEST:
        raise UnsupportedModelError(f"the engine's kernels need sm_70 or newer; {card.name} is {number}.")
    if find_spec("triton") is None:
        raise UnsupportedModelError(
            "the engine's kernels need Triton, which is not installed: pip install 'ruprompt-fast[triton]'."
        )
    _check_triton(version("triton"))


def _check_triton(installed: str) -> None:
    if tuple(map(int, re.findall(r"\d+", installed)[:2])) < _OLDEST_TRITON:
        raise MissingDependencyError(
            f"the engine's kernels need Triton 3.4 or newer; found {installed}. Torch 2.8 and later bring it."
        )


def check_triton_runs() -> None:
    """Refuse a Triton that cannot launch a kernel here. It has a C compiler make what launches them, once.

    Raises:
        MissingDependencyError: it cannot; the message says what it misses.
    """
    try:
        from triton.runtime import driver

        driver.active.get_current_device()
    except Exception as error:  # its own, the compiler's, the linker's
        raise MissingDependencyError(
            f"Triton launches no kernel here: {described(error)}. It needs a C compiler (gcc, clang or what CC names) "
            "and Python's headers (python3-dev) once, when it first runs."
        ) from error


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether a card runs code for an architecture: machine code within a major version, PTX on whatever is newer."""
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if found is None:
        return False
    kind, *version, only = found.groups()
    compiled_for = (int(version[0]), int(version[1]))
    if only:
        return compiled_for == capability
    return compiled_for <= capability and (kind == "compute" or compiled_for[0] == capability[0])
