"""Checkpoints that are complete or do not count, and know which run they are of.

A checkpoint is written file by file and may be cut off anywhere. It counts when :data:`COMPLETE_FILE` stands in it,
which is written last, after everything else has reached the disk, and lists every file with its size. Older checkpoints
are removed after that, so there is always one to go on from.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from ruprompt_fast.errors import CheckpointError, OutputExistsError, PromptFileError
from ruprompt_fast.prompts.tensor_files import read_safetensors, write_atomically

if TYPE_CHECKING:
    from transformers import TrainingArguments

TRAINER_STATE_NAME = "trainer_state.json"
COMPLETE_FILE = "complete.json"
RUN_FILE = "training_run.json"

Identity = Mapping[str, Any]
"""What two processes must agree on to be parts of one run; plain values, as in JSON."""


def write_parameters(folder: Path, parameters: Mapping[str, Tensor]) -> None:
    """Write the providers' tensors by their names in the model."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in parameters.items()}
    save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


@torch.no_grad()
def read_parameters(folder: Path, parameters: Mapping[str, Tensor]) -> None:
    """Load what :func:`write_parameters` wrote into these tensors.

    Raises:
        CheckpointError: the file is missing or broken, or its names or shapes are others; nothing is changed then.
    """
    path = folder / SAFE_WEIGHTS_NAME
    try:
        stored = read_safetensors(path)
    except PromptFileError as error:
        raise CheckpointError(str(error)) from error
    expected = {name: list(value.shape) for name, value in parameters.items()}
    found = {name: list(value.shape) for name, value in stored.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise CheckpointError(
            f"{path}: expected the prompt's parameters { ({name: expected.get(name) for name in wrong}) }; found "
            f"{ ({name: found.get(name) for name in wrong}) }. Resume with the prompt that the checkpoint was made of."
        )
    for name, value in parameters.items():
        value.copy_(stored[name])


@dataclass(frozen=True)
class RunFolder:
    """A run's output folder with its checkpoints.

    Attributes:
        root: the folder.
        identity: what the run is.
    """

    root: Path
    identity: Identity

    def begin(self) -> None:
        """Claim the folder for a new run.

        Raises:
            OutputExistsError: it holds checkpoints.
        """
        is_ours = (self.root / RUN_FILE).is_file()
        found = [folder for folder in self._folders() if is_complete(folder) or not is_ours]
        if found:
            raise OutputExistsError(
                f"{self.root}: expected a folder without checkpoints for a new run; found {found[-1].name}. Resume "
                "with train(resume_from_checkpoint=True), or choose another output_dir."
            )
        self._remove_incomplete()
        self.claim()

    def claim(self) -> None:
        """Write down whose folder it is, so that another run does not mix with it."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(self.root / RUN_FILE, lambda path: _write_synced(path, {"run": self.identity}))

    def clean(self) -> None:
        """Remove what is left of checkpoints that were cut off while they were written or removed.

        Raises:
            CheckpointError: the folder is of another run; nothing is removed then.
        """
        run_file = self.root / RUN_FILE
        if run_file.is_file():
            self._check_identity(_read_json(run_file).get("run"), run_file)
            self._remove_incomplete()

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None if the run was cut off before the first.

        Raises:
            CheckpointError: it is of another run, or without the optimizer's state.
        """
        complete = [folder for folder in self._folders() if is_complete(folder)]
        return self.checked(complete[-1]) if complete else None

    def checked(self, folder: Path) -> Path:
        """A checkpoint that may be resumed from.

        Raises:
            CheckpointError: it is missing, incomplete, without the optimizer's state, or of another run.
        """
        if not is_complete(folder):
            raise CheckpointError(
                f"{folder}: expected a complete checkpoint with {COMPLETE_FILE}; it is missing, or was cut off while "
                "it was written. Take an older one, or resume_from_checkpoint=True for the newest complete one."
            )
        stored = _read_json(folder / COMPLETE_FILE)
        self._check_identity(stored.get("run"), folder)
        if "optimizer.pt" not in stored["files"]:
            raise CheckpointError(
                f"{folder}: expected the optimizer's state; found none, as with save_only_model=True, so the run "
                "cannot go on exactly. Start a new run from its prompt."
            )
        return folder

    def reopen(self, folder: Path) -> None:
        """Let a checkpoint that is about to be written again not count meanwhile."""
        (folder / COMPLETE_FILE).unlink(missing_ok=True)

    def complete(self, folder: Path, keep: int | None, best: str | None) -> None:
        """Declare a checkpoint complete, then remove the oldest others.

        Args:
            folder: the checkpoint; everything else is in it.
            keep: how many checkpoints may stay; None for all.
            best: the checkpoint of the best prompt so far, which stays too.
        """
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        for path in files.values():
            _sync(path)
        for directory in {folder, *(path.parent for path in files.values())}:
            _sync(directory)
        sizes = {name: path.stat().st_size for name, path in files.items() if name != COMPLETE_FILE}
        content = {"run": self.identity, "files": sizes}
        write_atomically(folder / COMPLETE_FILE, lambda path: _write_synced(path, content))
        _sync(folder)
        _sync(self.root)
        if keep is not None and keep > 0:
            self._rotate(keep, None if best is None else Path(best).resolve())

    def _rotate(self, keep: int, best: Path | None) -> None:
        complete = [folder for folder in self._folders() if is_complete(folder)]
        removable = [folder for folder in complete[:-1] if folder.resolve() != best]
        for folder in removable[: max(0, len(complete) - keep)]:
            self.reopen(folder)  # first, so that one cut off here does not count
            shutil.rmtree(folder)

    def _remove_incomplete(self) -> None:
        for folder in self._folders():
            if not is_complete(folder):
                shutil.rmtree(folder)

    def _folders(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        steps = {}
        for folder in self.root.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
            if match is not None and folder.is_dir():
                steps[int(match[1])] = folder
        return [folder for _, folder in sorted(steps.items())]

    def _check_identity(self, stored: Any, path: Path) -> None:
        expected = json.loads(json.dumps(self.identity))
        if not isinstance(stored, dict):
            raise CheckpointError(f"{path}: expected the description of a run; found {type(stored).__name__}.")
        for name in sorted(expected.keys() | stored.keys()):
            if expected.get(name) != stored.get(name):
                raise CheckpointError(
                    f"{path} is of another run: expected {name} = {expected.get(name)!r}; found {stored.get(name)!r}. "
                    "Resume with what the run began with, or choose another output_dir for a new run."
                )


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was written to the end, and nothing of it is missing."""
    try:
        files = _read_json(folder / COMPLETE_FILE).get("files")
    except CheckpointError:
        return False
    return isinstance(files, dict) and all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items()
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a JSON object ({error}); remove the file's folder.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object; found {type(content).__name__}.")
    return content


def _write_synced(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """Have a file or folder reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finished_state(folder: Path, args: TrainingArguments) -> TrainerState | None:
    """The state in a checkpoint behind which nothing is left to train, or None if something is.

    transformers would train one step more: it looks at the step number only after a step.
    """
    state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    planned: float = args.max_steps
    if args.max_steps <= 0:
        planned = state.max_steps if math.ceil(args.num_train_epochs) == state.num_train_epochs else math.inf
    control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
    was_stopped = bool(control.get("should_training_stop")) and state.global_step < state.max_steps
    return state if was_stopped or state.global_step >= planned else None
