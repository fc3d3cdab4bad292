"""Checkpoints that are whole or do not count, and know which run they are of.

A checkpoint is written file by file, may be cut off anywhere, and may be damaged later. It counts when its manifest
(:mod:`ruprompt_fast.training.manifest`) is in it, which is written last, and every file is what the manifest says.
Older checkpoints are removed after that, so there is always one to go on from. What a run removes says that the run
wrote it; everything else stays.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ruprompt_fast.errors import CheckpointError, OutputExistsError, shown
from ruprompt_fast.file_writer import is_unfinished, remove_unfinished, sync, write_json
from ruprompt_fast.training.manifest import (
    COMPLETE_FILE,
    WRITING_FILE,
    damage_of,
    files_of,
    is_complete,
    read_json,
    read_manifest,
    step_of,
    write_manifest,
)
from ruprompt_fast.training.stored_state import read_state

RUN_FILE = "training_run.json"

_logger = logging.getLogger(__name__)

Identity = Mapping[str, Any]
"""What two processes must agree on to be parts of one run; plain values, as in JSON."""


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
        is_ours = self._known_run() is not None
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
        write_json(self.root / RUN_FILE, {"run": self.identity})

    def clean(self) -> None:
        """Remove what is left of checkpoints that were cut off while they were written or removed.

        Raises:
            CheckpointError: the folder is of another run; nothing is removed then.
        """
        known = self._known_run()
        if known is not None:
            self._check_identity(known, self.root / RUN_FILE)
            remove_unfinished(self.root)
            self._remove_incomplete()

    def latest(self, needs_best: bool = False) -> Path | None:
        """The newest whole checkpoint, or None if the run was cut off before the first.

        A damaged one is passed over, with a warning that names the file.

        Args:
            needs_best: pass over those too whose best checkpoint so far is damaged.

        Raises:
            CheckpointError: it is of another run, or without the optimizer's state; or there are only damaged ones.
        """
        damaged = []
        for folder in reversed(self._folders()):
            if not (folder / COMPLETE_FILE).is_file():
                continue  # cut off, and not yet a checkpoint
            problem = damage_of(folder) or (self._damage_of_best(folder) if needs_best else None)
            if problem is None:
                return self.checked(folder)
            _logger.warning("%s is damaged and passed over: %s", folder, problem)
            damaged.append(problem)
        if damaged:
            raise CheckpointError(
                f"{self.root}: expected a whole checkpoint to resume from; found {len(damaged)}, all damaged: "
                f"{'; '.join(damaged[:3])}. Put back what was there, or start a new run in another output_dir."
            )
        return None

    def checked(self, folder: Path) -> Path:
        """A checkpoint that may be resumed from.

        Raises:
            CheckpointError: it is missing, incomplete, damaged, without the optimizer's state, or of another run.
        """
        if not (folder / COMPLETE_FILE).is_file():
            raise CheckpointError(
                f"{folder}: expected a complete checkpoint with {COMPLETE_FILE}; it is missing, or was cut off while "
                "it was written. Take an older one, or resume_from_checkpoint=True for the newest whole one."
            )
        self.check_whole(folder)
        manifest = read_manifest(folder)
        self._check_identity(manifest.run, folder)
        if "optimizer.pt" not in manifest.files:
            raise CheckpointError(
                f"{folder}: expected the optimizer's state; found none, as with save_only_model=True, so the run "
                "cannot go on exactly. Start a new run from its prompt."
            )
        return folder

    def check_whole(self, folder: Path) -> None:
        """Check that a checkpoint is what was written.

        Raises:
            CheckpointError: a file is missing or damaged; the message names it.
        """
        problem = damage_of(folder)
        if problem is not None:
            raise CheckpointError(
                f"{folder}: expected a complete checkpoint; it is damaged: {problem}. Take an older one, or "
                "resume_from_checkpoint=True for the newest whole one."
            )

    def find(self, stored: str) -> Path:
        """A checkpoint that a state names; the run's folder may have been moved since."""
        return Path(stored) if Path(stored).is_dir() else self.root / Path(stored).name

    def reopen(self, folder: Path) -> None:
        """Let a checkpoint that is about to be written or removed not count meanwhile, and say whose it is."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / WRITING_FILE, {"run": self.identity})
        (folder / COMPLETE_FILE).unlink(missing_ok=True)

    def complete(self, folder: Path, step: int, keep: int | None, best: str | None) -> None:
        """Declare a checkpoint complete, then remove the oldest others.

        Args:
            folder: the checkpoint; everything else is in it.
            step: the step that it is of.
            keep: how many checkpoints may stay; None for all.
            best: the checkpoint of the best prompt so far, which stays too.
        """
        write_manifest(folder, self._plain_identity, step)
        (folder / WRITING_FILE).unlink(missing_ok=True)
        sync(self.root)
        if keep is not None and keep > 0:
            self._rotate(step, keep, None if best is None else Path(best).resolve())

    def _rotate(self, step: int, keep: int, best: Path | None) -> None:
        # Later ones are what a run left that went on from an earlier one; they are written again later.
        known = [folder for folder in self._folders() if is_complete(folder) and (step_of(folder) or 0) <= step]
        removable = [folder for folder in known[:-1] if folder.resolve() != best and self._is_written_by_us(folder)]
        for folder in removable[: max(0, len(known) - keep)]:
            self._remove(folder)

    def _is_written_by_us(self, folder: Path) -> bool:
        """Whether a complete checkpoint is this run's, and holds nothing else."""
        manifest = read_manifest(folder)
        others = files_of(folder).keys() - manifest.files.keys()
        # What a run was writing that was killed is its own: its mark, when it was about to remove the checkpoint.
        foreign = sorted(name for name in others if not is_unfinished(Path(name).name))
        if foreign:
            _logger.warning("%s stays: it holds files that this run did not write, %s.", folder, shown(foreign))
        return not foreign and bool(manifest.run == self._plain_identity)

    def _remove_incomplete(self) -> None:
        for folder in self._folders():
            if not is_complete(folder) and self._is_begun_by_us(folder):
                self._remove(folder)

    def _is_begun_by_us(self, folder: Path) -> bool:
        """Whether this run was writing or removing the checkpoint when it died."""
        marker = folder / WRITING_FILE
        if marker.is_file():
            return bool(self._run_in(marker) == self._plain_identity)
        # Before its mark was written, or after that was removed.
        return all(is_unfinished(path.name) for path in folder.iterdir())

    def _remove(self, folder: Path) -> None:
        self.reopen(folder)
        marker = folder / WRITING_FILE
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != marker:
                path.unlink()
        marker.unlink()  # last: what is left of a removal that was cut off is known by it
        folder.rmdir()

    def _folders(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        found = [path for path in self.root.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if step_of(path) is not None]
        return sorted(
            (path for path in found if path.is_dir() and not path.is_symlink()), key=lambda p: step_of(p) or 0
        )

    def _known_run(self) -> Any:
        """What the folder says its run is; None if it does not say it, or its file is damaged."""
        path = self.root / RUN_FILE
        known = self._run_in(path)
        if known is None and path.is_file():
            _logger.warning("%s is damaged: nothing that is in its folder is removed.", path)
        return known

    def _run_in(self, path: Path) -> Any:
        try:
            return read_json(path).get("run")
        except CheckpointError:
            return None

    def _damage_of_best(self, folder: Path) -> str | None:
        best = read_state(folder).best_model_checkpoint
        if best is None or self.find(best).resolve() == folder.resolve():
            return None
        return damage_of(self.find(best))

    @property
    def _plain_identity(self) -> Any:
        return json.loads(json.dumps(self.identity))

    def _check_identity(self, stored: Any, path: Path) -> None:
        expected = self._plain_identity
        if not isinstance(stored, dict):
            raise CheckpointError(f"{path}: expected the description of a run; found {shown(stored)}.")
        for name in sorted(expected.keys() | stored.keys()):
            if expected.get(name) != stored.get(name):
                raise CheckpointError(
                    f"{path} is of another run: expected {name} = {shown(expected.get(name), 400)}; found "
                    f"{shown(stored.get(name), 400)}. Resume with what the run began with, or choose another "
                    "output_dir for a new run."
                )
