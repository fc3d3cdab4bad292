"""Models on the engine: on the CPU's backend, and on the CUDA backend with and without graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Literal, TypeAlias

import torch
from engine_models import random_gpt2
from transformers import GPT2LMHeadModel

from gpu.measurement import Record, Setting
from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends import BACKENDS
from ruprompt_fast.backends.cuda import CudaBackend
from ruprompt_fast.backends.cuda.device import CudaDevice, Device
from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice
from ruprompt_fast.errors import GraphError

Way: TypeAlias = Literal["cpu", "eager", "graphs"]
"""The CPU's backend; the CUDA backend launching every step by itself; the CUDA backend as users have it."""

WAYS: tuple[Way, ...] = ("cpu", "eager", "graphs")


def place(way: Way, setting: Setting) -> str:
    """The device that a model of this way is on."""
    return "cpu" if way == "cpu" else setting.device


@contextmanager
def engines_run(way: Way, setting: Setting) -> Iterator[None]:
    """Engines that are made within the block run like this; without a card the CUDA backend rehearses on the CPU."""
    if way == "cpu" or (way == "graphs" and setting.on_card):
        yield
        return
    before = BACKENDS[setting.device]
    BACKENDS[setting.device] = lambda device, dtype: CudaBackend(_device(way, setting), dtype)
    try:
        yield
    finally:
        BACKENDS[setting.device] = before


def _device(way: Way, setting: Setting) -> Device:
    """A device of the CUDA backend; one that captures nothing runs every step eagerly."""
    device: Any = CudaDevice(torch.device("cuda")) if setting.on_card else RehearsalDevice()
    if way == "eager":

        def refuse(launches: Any) -> Any:
            raise GraphError("this check runs every step eagerly.")

        device.capture = refuse
    return device  # type: ignore[no-any-return]


def served(source: Any, way: Way, setting: Setting, *, dtype: str, **arguments: Any) -> FastPromptModel:
    """A model on the engine; a transformers model given as an object is changed.

    Raises:
        RuntimeError: it takes the transformers fallback.
    """
    with engines_run(way, setting):
        model = FastPromptModel.from_pretrained(source, device=place(way, setting), dtype=dtype, **arguments)
    stats = model.stats()
    if stats.path != "engine":
        raise RuntimeError(f"the model does not run on the engine: {stats.reason}")
    return model


def record_steps(model: FastPromptModel, record: Record, who: str = "") -> None:
    """What the runner has done: graphs, replays, and why a size of steps has no graph; nothing of the CPU's."""
    engine = model.stats().engine
    if engine is not None and engine.runner is not None:
        record({f"{who}{name}": value for name, value in asdict(engine.runner).items()})


def measured_gpt2(setting: Setting) -> GPT2LMHeadModel:
    """A GPT-2 of the shape that the benchmarks have, random weights, on the device in :func:`measured_dtype`."""
    with torch.device(setting.device):
        return random_gpt2().to(getattr(torch, measured_dtype(setting))).eval()


def measured_dtype(setting: Setting) -> str:
    """What figures are measured in: every card has float16, a CPU computes float32."""
    return "float16" if setting.on_card else "float32"
