"""Kills, interrupts and races tiny runs of train, generate and sweep; a program, as it forks.

    python -m attack.kills_worker FOLDER SECONDS SEED

Every run is a forked child that calls the command line. It prints a JSON list for each attack: outcome and what was
done. What a disturbed and resumed run leaves must be what an undisturbed one leaves, byte for byte.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from patience import exit_code_of
from runs.tiny_run import ROWS, save_model, tiny_config, write_rows
from training.killed_run import die_at

import ruprompt_fast.runs.sweep
import ruprompt_fast.runs.train  # noqa: F401
from ruprompt_fast import bundled
from ruprompt_fast.cli import main as command_line
from ruprompt_fast.runs.config import config_yaml

PROMPT_FILES = ("prompt.json", "prompt_provider.safetensors")
KILLS = 3
MEETINGS = 20


@dataclass
class Run:
    """A command that can be killed and started again.

    Attributes:
        name: the command.
        arguments: all but the output.
        result: what an output holds that must not depend on how often the run was cut off.
    """

    name: str
    arguments: list[str]
    result: Callable[[Path], Any]

    def command(self, output: Path) -> list[str]:
        return [self.name, *self.arguments, f"output={output}"]


def runs(folder: Path) -> list[Run]:
    """The commands, with their files in ``folder``."""
    model = save_model(folder / "model")
    config = tiny_config(folder, model, optimization={"max_steps": 6, "save_steps": 1})
    (folder / "config.yaml").write_text(config_yaml(config), encoding="utf-8")
    rows = write_rows(folder / "in.jsonl", [{"text": row["text"], "id": index} for index, row in enumerate(ROWS)])
    grid = ["grid.length=[1,2]", "grid.init=[random]", "grid.seed=[0]", "optimization.max_steps=3"]
    settings = ["generation.max_new_tokens=4", "generation.do_sample=true", "batch_size=2", "model.name=bundled"]
    return [
        Run("train", [str(folder / "config.yaml"), "resume=true"], _prompt),
        Run("generate", [f"prompt={bundled.PROMPTS['proverb']}", f"input={rows}", *settings], Path.read_bytes),
        Run("sweep", [str(folder / "config.yaml"), *grid], _cells),
    ]


def _prompt(output: Path) -> list[bytes]:
    return [(output / name).read_bytes() for name in PROMPT_FILES]


def _cells(output: Path) -> dict[str, Any]:
    lines = (output / "results.jsonl").read_text(encoding="utf-8").splitlines()
    results = {result["digest"]: result["metrics"] for result in map(json.loads, lines)}
    return {digest: (metrics, _prompt(output / "cells" / digest)) for digest, metrics in results.items()}


def _temporary(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name.endswith((".lock", ".tmp"))}


def start(command: list[str], log: Path, event: int | None = None, watched: Path = Path("/")) -> int:
    """Fork a child that runs a command; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if event is not None:
            die_at(watched, event)
        status = command_line(command)
    except KeyboardInterrupt:  # before the command line took over, or after
        status = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(status)


class Attacker:
    """Disturbs runs and tells how they took it."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.log = folder / "log"
        self.whole: dict[str, tuple[Any, float]] = {}

    def attack(self, run: Run) -> None:
        """One disturbed run, or two at once, and what is left of them."""
        output = self.folder / f"{run.name}.out"
        self.log.unlink(missing_ok=True)
        before = _temporary(output.parent)  # a save that was killed leaves its file, which no other run may remove
        expected, seconds = self._undisturbed(run)
        kind = self.rng.choice(("killed", "interrupted", "twice"))
        what = f"{run.name} {kind}"
        try:
            if kind == "twice":
                codes = self._twice(run, output)
                fine, what = sorted(codes, key=str) == [0, 2], f"{what}: exit codes {codes}"
            else:
                codes = [self._disturbed(run, output, kind, seconds) for _ in range(self.rng.randint(1, KILLS))]
                fine = set(codes) <= {0, 130, -signal.SIGKILL}
                what = f"{what}: exit codes {codes}"
                code = exit_code_of(start(run.command(output), self.log))
                fine, what = fine and code == 0, f"{what}, at the end {code}"
            log = self.log.read_text(errors="replace") if self.log.exists() else ""
            if None in codes:
                say("hung", what)
            elif "Traceback" in log or not fine:
                say("wrong" if fine else "raw", f"{what}: {log[-300:]}")
            elif run.result(output) != expected:
                say("wrong", f"{what}: another result")
            elif kind == "twice" and (left := _temporary(output.parent) - before):
                say("wrong", f"{what}: left {left}")
            else:
                say("answered", what)
        finally:
            self._remove(output)

    def _undisturbed(self, run: Run) -> tuple[Any, float]:
        if run.name not in self.whole:
            output = self.folder / f"{run.name}.whole"
            started = time.monotonic()
            if exit_code_of(start(run.command(output), self.log)) != 0:
                raise SystemExit(f"{run.name} failed undisturbed: {self.log.read_text()[-1000:]}")
            self.whole[run.name] = run.result(output), time.monotonic() - started
        return self.whole[run.name]

    def _disturbed(self, run: Run, output: Path, kind: str, seconds: float) -> int | None:
        if kind == "killed" and self.rng.random() < 0.5:
            event = self.rng.randint(1, 80)
            return exit_code_of(start(run.command(output), self.log, event, output.parent))
        child = start(run.command(output), self.log)
        time.sleep(self.rng.uniform(0.0, seconds))
        os.kill(child, signal.SIGKILL if kind == "killed" else signal.SIGINT)
        return exit_code_of(child)

    def _twice(self, run: Run, output: Path) -> list[int | None]:
        """Two at once, again and again until they have met: one may be over before the other begins."""
        refusal = "expected an output that no other run writes to; found one that process"
        codes: list[int | None] = []
        for _ in range(MEETINGS):
            self._remove(output)
            children = [start(run.command(output), self.log) for _ in range(2)]
            codes = [exit_code_of(child) for child in children]
            if codes != [0, 0] or refusal in self.log.read_text(errors="replace"):
                break
        return codes

    def _remove(self, output: Path) -> None:
        for path in self.folder.glob(f"{output.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.folder.glob(f".{output.name}*"):
            path.unlink()


def say(outcome: str, what: str) -> None:
    """Tell the parent."""
    print(json.dumps([outcome, what]), flush=True)


def main() -> None:
    """See the module."""
    folder, seconds, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    rng = random.Random(seed)
    output = os.dup(1)
    os.dup2(2, 1)  # what saving the model shows is no outcome
    commands = runs(folder)
    sys.stdout.flush()
    os.dup2(output, 1)
    attacker = Attacker(folder, rng)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        attacker.attack(rng.choice(commands))


if __name__ == "__main__":
    main()
