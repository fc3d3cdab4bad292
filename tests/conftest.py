"""Settings for the whole suite, and the backends that its engines run on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# In CI the same examples every time: a change is judged by what it changes. Elsewhere new ones are drawn at every run.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("local", deadline=None)  # two test processes on two cores: a slow example is no finding
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "every_backend: runs on the CPU's backend, the second one, and CUDA's on a device that is rehearsed"
    )
    config.addinivalue_line("markers", "cpu_backend(why): runs on the CPU's backend only after all")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    definition = metafunc.definition
    if definition.get_closest_marker("every_backend") and not definition.get_closest_marker("cpu_backend"):
        metafunc.parametrize("backend", ["cpu", "second", "cuda"], indirect=True, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the parameters of tests that are marked as the CPU's."""
    items[:] = [item for item in items if not (item.get_closest_marker("cpu_backend") and runs_on_another(item))]


def runs_on_another(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    return call is not None and call.params.get("backend", "cpu") != "cpu"


@pytest.fixture(scope="module", autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend that engines are made on; fixtures of a module that serve a model take it."""
    name: str = getattr(request, "param", "cpu")
    if name == "cpu":
        yield name
        return
    from backends.second_backend import SecondBackend

    from ruprompt_fast.backends import BACKENDS, Backend
    from ruprompt_fast.backends.cpu.runner import CpuRunner
    from ruprompt_fast.backends.cuda import CudaBackend
    from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice

    def refuse(*arguments: object) -> None:
        raise RuntimeError("this engine was made on the CPU's backend, and a test of another one uses it")

    def make(device: torch.device, dtype: torch.dtype) -> Backend:
        return SecondBackend(dtype) if name == "second" else CudaBackend(RehearsalDevice(), dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "cpu", make)
        patch.setattr(CpuRunner, "launch", refuse)
        yield name
