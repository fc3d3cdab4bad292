"""Stage ``training``: a step of training, against PEFT and ruPrompts' way."""

from __future__ import annotations

import functools
from importlib.util import find_spec

from gpu.clock import Candidate, in_turns
from gpu.decode import record_errors
from gpu.measurement import Measurement, Record, Setting, need

ROWS = 100
ROUNDS = 4


def measurements(setting: Setting) -> list[Measurement]:
    """The stage."""
    return [Measurement("training", functools.partial(training, setting), 40.0)]


def training(setting: Setting, record: Record) -> None:
    """Seconds of a step and peak memory, each candidate in a process of its own."""
    need("pytest", "accelerate")
    from bench_training import SAME_LOSS
    from training_data import TOKENS_PER_BATCH
    from training_peers import Setting as TrainingSetting
    from training_peers import TrainingProcess

    rounds, rows = (1, 8) if setting.toy else (ROUNDS, ROWS)
    trained = TrainingSetting(None, rows, num_steps=1 + rounds)
    names = ["ours", *(["PEFT"] if find_spec("peft") else []), *([] if setting.toy else ["ruPrompts"])]
    # They load while the first one begins.
    processes = {name: TrainingProcess(name, trained) for name in names}

    def candidate(name: str) -> Candidate:
        return Candidate(lambda _: processes[name].step(), rounds=rounds)

    try:
        timings = in_turns({name: functools.partial(candidate, name) for name in names}, setting.device)
    finally:
        for process in processes.values():
            process.close()
    record_errors(timings, record)
    for name, timing in timings.items():
        if timing.seconds:
            record({f"{name}, ms per step": 1e3 * timing.median, f"{name}, tokens/s": TOKENS_PER_BATCH / timing.median})
            record({f"{name}, peak MiB": processes[name].steps[-1].peak_bytes / 2**20})
            record({f"times {name}": timing.median / timings["ours"].median} if name != "ours" else {})
    losses = {name: [step.loss for step in process.steps] for name, process in processes.items()}
    record(losses=losses)
    for name, theirs in losses.items():
        if any(abs(one - other) > SAME_LOSS * one for one, other in zip(losses["ours"], theirs, strict=False)):
            raise AssertionError(f"the losses of {name} are not ours: {theirs} and {losses['ours']}")
