"""Odd values on the command line: a line or two on standard error and a status, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from attack.tally import Tally

from ruprompt_fast import bundled
from ruprompt_fast.cli import main
from ruprompt_fast.runs.answer_config import EvaluateConfig, GenerateConfig
from ruprompt_fast.runs.config import TrainConfig
from ruprompt_fast.runs.sweep_grid import SweepConfig

KINDS = {"train": TrainConfig, "evaluate": EvaluateConfig, "generate": GenerateConfig, "sweep": SweepConfig}

VALUES = [
    "", " ", "-1", "0", "1", "-0.5", "0.5", "1e999", "-1e999", "nan", ".nan", "inf", "1e-400", "9" * 30, "9" * 5000,
    "null", "true", "no", "[]", "{}", "[[]]", "{a: 1}", "[1, a, null]", "{1: {2: {3: 4}}}", "[" * 2000, "{" * 200,
    "*a", "&a [*a]", "!!python/object/apply:os.system [true]", "!!binary x", "2020-01-01", "0x10", "0o17", "1:30",
    "\x00", "a\x00b", "\udcff\udcfe", "\ud800", "\x1b[31m", "а" * 5000, "x" * 300, "/" + "y/" * 2500, "~nobody/x", "~",
    "/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "/", ".", "..", "./", "//", "/root/x\n", "a\nb", "\t",
    "<P*3>", "{", "}", "{}", "{text", "<P*99999999999>", "<P*3>{text}{text}", "{text!r}", "{0}", "<P*2>{a.b}",
    "<P>" * 50,
    "https://example.invalid/x", "a/b/c", "-", "--", "---", "=", "a=b", "%s", "$HOME", "${x}", "'", '"', "`", "\\",
    "text2text", "classification", "style", "bfloat16", "float16", "cuda:99", "meta", "mps", "cpu:7", "skip", "fail",
]  # fmt: skip
"""What is given for one key after another."""

LONGEST_LINE = 2100
SLOW_SECONDS = 60.0
"""Processor time of a command; what else runs on the machine does not count."""


def attack(seconds: float, seed: int) -> Tally:
    """Give the commands one or two odd values at a time, or odd arguments, for about so long."""
    tally = Tally("command line")
    rng = random.Random(seed)
    deadline = time.monotonic() + seconds
    logging.disable(logging.CRITICAL)
    before = Path.cwd()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.chdir(folder)
            make_files(folder)
            while time.monotonic() < deadline:
                try_one(tally, rng, folder)
    finally:
        os.chdir(before)
        logging.disable(logging.NOTSET)
    return tally


def try_one(tally: Tally, rng: random.Random, folder: Path) -> None:
    """One command with something odd, judged."""
    command = rng.choice(sorted(KINDS))
    arguments = base_arguments(command, folder, is_complete=rng.random() < 0.1)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.1:
            arguments.insert(rng.randint(0, len(arguments)), rng.choice(VALUES + odd_files(folder)))
            continue
        key, value = rng.choice(keys_of(KINDS[command])), rng.choice(VALUES + odd_files(folder))
        arguments += [f"--{key}", value] if rng.random() < 0.2 else [f"{key}={value}"]
    judge(tally, [command, *arguments])


def judge(tally: Tally, arguments: list[str]) -> None:
    """Run a command in this process; count how it ends."""
    what = f"{arguments!r}"
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    started = time.process_time()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status: Any = main(arguments)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException as error:
        tally.record("raw", f"{type(error).__name__}: {error}: {what}")
        if isinstance(error, KeyboardInterrupt):
            raise
        return
    err.flush()
    said = err.buffer.getvalue().decode()
    lines = [line for line in said.splitlines() if line.startswith("ruprompt-fast: ")]
    if time.process_time() - started > SLOW_SECONDS:
        tally.record("hung", what)
    elif "Traceback" in said or "RUPROMPT_FAST_TRACEBACK" in said:
        tally.record("raw", f"{said[-200:]}: {what}")
    elif status in (1, 2) and len(lines) == 1 and len(lines[0]) <= LONGEST_LINE:
        tally.record("refused")
    elif status == 0:
        tally.record("answered")
    else:
        tally.record("wrong", f"status {status}, {len(lines)} lines: {said[-200:]}: {what}")


def keys_of(kind: Any, place: str = "") -> list[str]:
    """The dotted keys of a configuration."""
    types = get_type_hints(kind)
    return [key for part in fields(kind) for key in _keys(f"{place}{part.name}", types[part.name])]


def _keys(name: str, kind: Any) -> Iterator[str]:
    yield name
    if is_dataclass(kind):
        yield from keys_of(kind, f"{name}.")


def base_arguments(command: str, folder: Path, is_complete: bool) -> list[str]:
    """A command that works; without ``is_complete`` there is no model, so it costs little."""
    model = "bundled" if is_complete else str(folder / "no_model")
    shared = [f"model.name={model}", "model.device=cpu", "model.dtype=float32"]
    output = f"output={folder / os.urandom(6).hex()}"
    if command in ("train", "sweep"):
        grid = ["grid.length=[1]", "grid.init=[vocab]", "grid.seed=[0]"] if command == "sweep" else []
        task = ["task.template=<P*2>{text}", "task.target={answer}"]
        data = [f"data.train={folder / 'rows.jsonl'}", f"data.validation={folder / 'rows.jsonl'}"]
        return [*task, *data, *shared, *grid, output, "optimization.max_steps=1", "optimization.batch_size=2"]
    shared += [f"prompt={bundled.PROMPTS['proverb']}", "generation.max_new_tokens=2", "batch_size=2"]
    if command == "generate":
        return [*shared, f"input={folder / 'rows.jsonl'}", f"{output}.jsonl"]
    return [*shared, f"data={folder / 'rows.jsonl'}", f"task={folder / 'task.yaml'}", output]


def make_files(folder: Path) -> None:
    """Good files, and files that are none."""
    rows = [{"text": "да", "answer": "нет"}, {"text": "нет", "answer": "да"}]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    template = json.loads((bundled.PROMPTS["proverb"] / "prompt.json").read_text(encoding="utf-8"))["format"][
        "template"
    ]
    task = {"task": {"template": template, "objective": "style"}, "data": {"train": "x.jsonl"}, "output": "x"}
    (folder / "task.yaml").write_text(json.dumps(task), encoding="utf-8")
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "bad.yaml").write_bytes(b"a: [1\n\xff")
    (folder / "deep.yaml").write_text("[" * 5000)
    (folder / "scalar.yaml").write_text("5")
    (folder / "keys.yaml").write_text("1: 2\nnull: 3\n? [a]\n: 4\n")
    (folder / "zeros.jsonl").write_bytes(bytes(100))
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "prompt").mkdir()
    (folder / "prompt" / "prompt.json").write_text("{}")
    (folder / "prompt" / "config.yaml").write_text("[]")


def odd_files(folder: Path) -> list[str]:
    """Paths of files that are there, and are something else than asked for."""
    return [str(path) for path in sorted(folder.iterdir()) if len(path.stem) != 12]
