"""What the sampler has chosen on the device, on its way to the host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ruprompt_fast.backends.cuda.ahead import RunAhead
from ruprompt_fast.backends.cuda.device import Device, Event
from ruprompt_fast.backends.cuda.sampler import DeviceSampler
from ruprompt_fast.sampling.sampling_rows import Chosen, SampledToken, SamplingRow

_RESULT_WORDS = 4


class Choices:
    """Brings steps' choices to the host.

    Two buffers take turns: while a step's choices are read, those of the next step may arrive.

    Args:
        device: has them.
        sampler: makes them, and asks the host for those that it did not make.
        max_rows: rows of a step at most.
        run_ahead: whether the next step is launched first.

    Attributes:
        num_host_rows: rows that the host had to choose for.
    """

    def __init__(self, device: Device, sampler: DeviceSampler, max_rows: int, run_ahead: RunAhead) -> None:
        self._device = device
        self._sampler = sampler
        self._run_ahead = run_ahead
        self._buffers = [device.pinned((max_rows, _RESULT_WORDS), torch.int32) for _ in range(2)]
        self.num_host_rows = 0

    def of(
        self, rows: Sequence[SamplingRow | None], logits: Tensor, result: Tensor, is_for_device: bool
    ) -> LaunchedOnDevice:
        """A launched step, whose choices begin to arrive.

        Args:
            rows: what is wanted for each row of the logits.
            logits: [at least rows, vocabulary].
            result: what the sampler writes for them.
            is_for_device: whether the device chooses for all of them.
        """
        logits = logits[: len(rows)]
        if all(row is None for row in rows):
            return LaunchedOnDevice(self, logits, rows)
        self._buffers.reverse()
        host = self._buffers[0][: len(rows)]
        event = self._device.fetch(result[: len(rows)], host)
        runs_ahead = is_for_device and self._run_ahead.pays
        # The next step writes its logits to the same place.
        return LaunchedOnDevice(self, logits.clone() if runs_ahead else logits, rows, host, event, runs_ahead)

    def take(self, launched: LaunchedOnDevice) -> list[Chosen | None]:
        """Wait for a step; what was chosen for its rows."""
        if launched.event is None or launched.result is None:
            return [None] * len(launched.rows)
        started = time.perf_counter()
        launched.event.wait()
        self._run_ahead.note(time.perf_counter() - started)
        result = launched.result.numpy()
        chosen = self._sampler.finish(launched.rows, result, launched.logits, self._undecided)
        launched.overruled = [
            row
            for row, (choice, token) in enumerate(zip(chosen, result[:, 0].tolist(), strict=True))
            if isinstance(choice, SampledToken) and choice.token_ids[0] != token
        ]
        return chosen

    def _undecided(self, logits: Tensor) -> Tensor:
        """Logits that the host has to decide on, in its memory."""
        self.num_host_rows += len(logits)
        host = self._device.pinned(logits.shape, logits.dtype)
        self._device.fetch(logits, host).wait()
        return host


@dataclass(slots=True, eq=False)
class LaunchedOnDevice:
    """A :class:`~ruprompt_fast.backends.LaunchedStep`.

    Attributes:
        choices: brings them to the host.
        logits: [num_logits, vocabulary].
        rows: what is wanted for each of them.
        result: what the sampler chooses, in pinned host memory; None if nothing is wanted.
        event: after that was copied.
        runs_ahead: whether the next step is to be launched first.
        overruled: rows where the host has chosen another token than the device.
    """

    choices: Choices
    logits: Tensor
    rows: Sequence[SamplingRow | None]
    result: Tensor | None = None
    event: Event | None = None
    runs_ahead: bool = False
    overruled: Sequence[int] = ()

    def chosen(self) -> list[Chosen | None]:
        """Wait for the step, and return what was chosen."""
        return self.choices.take(self)
