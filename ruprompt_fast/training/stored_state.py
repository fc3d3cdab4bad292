"""What a checkpoint holds of prompt and trainer: written, read, and compared with what is there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.trainer_callback import TrainerState
from transformers.utils import SAFE_WEIGHTS_NAME

from ruprompt_fast.embedding import PROVIDERS_KEY, provider_tensors
from ruprompt_fast.errors import CheckpointError, PromptFileError, shown
from ruprompt_fast.file_writer import write_tensors
from ruprompt_fast.prompts.files.reading.safetensors_file import read_safetensors

if TYPE_CHECKING:
    from transformers import TrainingArguments

TRAINER_STATE_NAME = "trainer_state.json"


def write_parameters(folder: Path, parameters: Mapping[str, Tensor]) -> None:
    """Write the providers' tensors by their names in the model."""
    write_tensors(folder / SAFE_WEIGHTS_NAME, parameters)


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


def read_state(folder: Path) -> TrainerState:
    """The trainer's state in a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = folder / TRAINER_STATE_NAME
    try:
        return cast(TrainerState, TrainerState.load_from_json(str(path)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected the state of a trainer ({error}).") from error


def finished_state(folder: Path, args: TrainingArguments) -> TrainerState | None:
    """The state in a checkpoint after which nothing is left to train, or None if something is.

    transformers would train one step more: it looks at the step number only after a step.
    """
    state = read_state(folder)
    planned: float = args.max_steps
    if args.max_steps <= 0:
        planned = state.max_steps if math.ceil(args.num_train_epochs) == state.num_train_epochs else math.inf
    control = cast("dict[str, Any]", state.stateful_callbacks or {}).get("TrainerControl", {}).get("args", {})
    was_stopped = bool(control.get("should_training_stop")) and state.global_step < state.max_steps
    return state if was_stopped or state.global_step >= planned else None


@contextmanager
def naming_load_errors(checkpoint: str | None) -> Iterator[None]:
    """Name what transformers and torch raise for a state that is not what they wrote."""
    try:
        yield
    except Exception as error:  # a malformed pickle can make the unpickler, or what takes its content, raise anything
        raise CheckpointError(
            f"{checkpoint}: the state of the optimizer or of the random generators cannot be restored "
            f"({type(error).__name__}: {error}). Take an older checkpoint."
        ) from error


class LoadingCheck:
    """Refuses weights of other prompts than a model's, while transformers' ``Trainer`` may load some.

    ``Trainer`` loads what it knows of a checkpoint and warns of the rest, so a prompt that the checkpoint does not hold
    would go on from where it is.

    Args:
        model: a patched model; :meth:`close` takes the check off it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._waiting: set[str] = set()  # of a checkpoint in several files, which are loaded one by one
        self._is_between_parts = False
        self._hook = model.register_load_state_dict_pre_hook(self._check)

    def finish(self) -> None:
        """Say that everything is loaded that was to be loaded.

        Raises:
            CheckpointError: it was a checkpoint in several files, which do not hold all of the prompts.
        """
        waiting, self._waiting, self._is_between_parts = self._waiting, set(), False
        if waiting:
            raise _of_another_prompt(sorted(waiting), [])

    def close(self) -> None:
        """Take the check off the model."""
        self._hook.remove()

    def _check(self, model: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        expected = {prefix + name: list(tensor.shape) for name, tensor in provider_tensors(model).items()}
        others = {prefix + name for name in model.state_dict() if PROVIDERS_KEY in name} - expected.keys()
        found = {name: list(value.shape) for name, value in state.items() if PROVIDERS_KEY in name}
        wrong = {name for name, shape in found.items() if name not in others and shape != expected.get(name)}
        missing = expected.keys() - found.keys()
        num_weights = sum(PROVIDERS_KEY not in name for name, _ in model.named_parameters())
        is_part = 0 < len(state) - len(found) < num_weights
        if wrong or (missing and not is_part):
            wanted = {name: expected[name] for name in sorted(missing | (wrong & expected.keys()))}
            raise _of_another_prompt(wanted, {name: found[name] for name in sorted(wrong)})
        if is_part:
            self._waiting = (self._waiting if self._is_between_parts else set(expected)) - found.keys()
            self._is_between_parts = True


def _of_another_prompt(expected: object, found: object) -> CheckpointError:
    return CheckpointError(
        f"the weights are of another prompt, or of a run without FreezeTransformerUnfreezePrompt: expected the "
        f"parameters {shown(expected, 400)}; found {shown(found, 400)}. Resume with the prompt that the checkpoint was "
        "made of, or begin a new run."
    )
