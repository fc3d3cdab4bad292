"""Requests to a process that loads prompts, which may hang or die of them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from patience import HANG_SECONDS

_WORKER = Path(__file__).with_name("prompt_worker.py")


class Loader:
    """A worker process, started when it is needed and again when it died.

    Use it in a ``with`` block.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, **request: Any) -> tuple[str, str]:
        """Outcome of a request, one of :data:`attack.tally.Outcome`, and what to say of it."""
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._stop("crashed")
        answer = self._read(process)
        if answer is None:
            return self._stop("hung")
        if not answer:
            return self._stop("crashed")
        reply = json.loads(answer)
        return reply["outcome"], reply["what"]

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        if not self._read(self._process):
            raise RuntimeError("the process that loads prompts did not start")
        return self._process

    def _read(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """A line of the process; empty if it ended, None if there is none although it did not end."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], HANG_SECONDS)
        return process.stdout.readline() if ready else None

    def _stop(self, outcome: str) -> tuple[str, str]:
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        with process:  # closes its pipes
            return outcome, f"exit status {process.wait()}"

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._stop("ended")
