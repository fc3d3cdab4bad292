"""Data parallel training: two processes do what one does with twice the batch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS
from tolerances import relative_error

from ruprompt_fast import Prompt

TESTS = Path(__file__).parents[1]
STEPS_ERROR = 1e-5


def run(folder: Path, processes: int, batch_size: int) -> None:
    paths = [str(TESTS), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    program = [str(Path(__file__).with_name("distributed_run.py")), str(folder), str(batch_size)]
    start = [sys.executable, *(launcher if processes > 1 else []), *program]
    result = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    run(tmp_path / "one", processes=1, batch_size=2)
    run(tmp_path / "two", processes=2, batch_size=1)
    shutil.copytree(tmp_path / "two", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-7")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-6")
    run(tmp_path / "resumed", processes=2, batch_size=1)
    metrics = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")}
    assert metrics["two"]["losses"] == pytest.approx(metrics["one"]["losses"], rel=STEPS_ERROR)
    for name in ("eval_loss", "eval_tensor_loss", "eval_lstm_loss"):
        assert metrics["two"][name] == pytest.approx(metrics["one"][name], rel=STEPS_ERROR)
    for name in ("tensor", "lstm"):
        one, two, resumed = (
            Prompt.from_pretrained(tmp_path / folder / "final" / name).rows() for folder in ("one", "two", "resumed")
        )
        assert relative_error(two, one) < STEPS_ERROR
        assert two.equal(resumed)
