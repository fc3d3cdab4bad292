"""Stage ``speed``: kernels against the card's bandwidth, the engine against transformers and against itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gpu.clock import kernel_seconds
from gpu.kernels import CASES
from gpu.measurement import Measurement, Record, Setting, need
from gpu.row_kernels import copy

BATCHES = (1, 16, 64, 4)
"""In the order of what they say, as a stage may be cut off."""

TOY_BATCHES = (2,)


def measurements(setting: Setting) -> list[Measurement]:
    """The stage: what is wanted first, what only explains it last."""
    batches = TOY_BATCHES if setting.toy else BATCHES
    return [
        Measurement("copy", functools.partial(copy_bandwidth, setting), 15.0),
        *(_timed_kernel(name, setting) for name in CASES if name.startswith("splice")),
        *(Measurement(f"decode, batch {batch}", functools.partial(_decode, batch, setting), 45.0) for batch in batches),
        _of_serving("mixed workload", "mixed", setting, 40.0),
        _of_serving("prompts are free", "prompts_are_free", setting, 40.0),
        _of_serving("first token", "first_token", setting, 15.0),
        *(_timed_kernel(name, setting) for name in CASES if not name.startswith("splice")),
        *(_slow_peer("transformers, generate_batch", "continuous", batch, setting) for batch in batches),
        _slow_peer("transformers, compiled", "compiled", 1, setting),
    ]


def copy_bandwidth(setting: Setting, record: Record) -> None:
    """What a large copy reads and writes in a second."""
    record({"GB/s": bandwidth(setting) / 1e9})


@functools.cache
def bandwidth(setting: Setting) -> float:
    """Bytes per second that a large copy reads and writes."""
    case = copy(setting)
    return case.num_bytes / kernel_seconds(case.run, setting)


def _timed_kernel(name: str, setting: Setting) -> Measurement:
    return Measurement(f"kernel: {name}", functools.partial(_kernel, name, setting), 15.0)


def _kernel(name: str, setting: Setting, record: Record) -> None:
    """A kernel's time, and the bandwidth that it reaches as a share of a copy's."""
    case = CASES[name](setting)
    seconds = kernel_seconds(case.run, setting)
    rate = case.num_bytes / seconds
    record({"us": 1e6 * seconds, "GB/s": rate / 1e9, "of copy": rate / bandwidth(setting)})


def _decode(batch: int, setting: Setting, record: Record) -> None:
    need("pytest")  # the peers' module skips what is not installed with it
    from gpu import decode

    decode.decode(batch, setting, record, bandwidth(setting))


def _slow_peer(name: str, function: str, batch: int, setting: Setting) -> Measurement:
    def run(record: Record) -> None:
        need("pytest")
        from gpu import decode

        decode.decode_peer(name, getattr(decode, function), batch, setting, record)

    return Measurement(f"decode, {name}, batch {batch}", run, 60.0)


def _of_serving(name: str, function: str, setting: Setting, limit_s: float) -> Measurement:
    def run(record: Record) -> None:
        need("pytest")
        from gpu import decode, serving

        decode.free_memory(setting)
        measure: Callable[[Setting, Record], Any] = getattr(serving, function)
        measure(setting, record)

    return Measurement(name, run, limit_s)
