"""What a checkpoint says about itself: whose it is, of which step, and the digest of each of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ruprompt_fast.errors import CheckpointError, shown
from ruprompt_fast.file_writer import file_digest, sync, write_json

COMPLETE_FILE = "complete.json"
"""Written last, when everything else has reached the disk: a checkpoint counts if it is there and true."""

WRITING_FILE = "incomplete.json"
"""Is in a checkpoint while it is written or removed, and says whose it is."""

_STEP = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d{{1,18}})")


@dataclass(frozen=True)
class Manifest:
    """The content of :data:`COMPLETE_FILE`.

    Attributes:
        run: what the run is.
        step: the step that the checkpoint is of.
        files: size and SHA-256 of every other file, by its path in the checkpoint.
    """

    run: Any
    step: int
    files: Mapping[str, Mapping[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with a digest of themselves."""
        content = {"run": self.run, "step": self.step, "files": dict(self.files)}
        return {**content, "digest": _digest_of(content)}


def step_of(folder: Path) -> int | None:
    """The step in the name of a checkpoint's folder; None for another name."""
    match = _STEP.fullmatch(folder.name)
    return None if match is None else int(match[1])


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint by their paths in it, those that describe it aside."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name not in (COMPLETE_FILE, WRITING_FILE)}


def write_manifest(folder: Path, run: Any, step: int) -> None:
    """Describe what is in a checkpoint now; everything is on the disk when this returns."""
    files = files_of(folder)
    for path in files.values():
        sync(path)
    for directory in {folder, *(path.parent for path in files.values())}:
        sync(directory)
    described = {name: {"size": path.stat().st_size, "sha256": file_digest(path)} for name, path in files.items()}
    write_json(folder / COMPLETE_FILE, Manifest(run, step, described).as_dict())
    sync(folder)


def read_manifest(folder: Path) -> Manifest:
    """The description of a checkpoint.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / COMPLETE_FILE
    content = read_json(path)
    if content.pop("digest", None) != _digest_of(content):
        raise CheckpointError(f"{path}: its content is not what was written; it is damaged, or of an older version.")
    return Manifest(content["run"], content["step"], content["files"])


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was written to the end, and nothing of it is missing."""
    try:
        files = read_manifest(folder).files
    except CheckpointError:
        return False
    return all(_has_size(folder / name, file["size"]) for name, file in files.items())


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words that name the file; None if it is what was written."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return str(error)
    if step_of(folder) not in (None, manifest.step):
        return f"{folder / COMPLETE_FILE}: it is of step {manifest.step}, so not of this folder"
    for name, file in manifest.files.items():
        path = folder / name
        if not _has_size(path, file["size"]):
            return f"{path}: it is missing, or has not the {file['size']} bytes that were written"
        try:
            if file_digest(path) != file["sha256"]:
                return f"{path}: its content is not what was written"
        except OSError as error:
            return f"{path}: it cannot be read ({error.strerror or error})"
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON object ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object; found {shown(content)}.")
    return content


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
