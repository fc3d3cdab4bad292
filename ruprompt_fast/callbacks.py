"""Callbacks for training a prompt with transformers' own ``Trainer``, as in ruPrompts."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ruprompt_fast.embedding import hide_from_save, note_update, provider_tensors
from ruprompt_fast.errors import DivergenceError, FrozenWeightsError, MissingDependencyError
from ruprompt_fast.file_writer import write_tensors
from ruprompt_fast.precision import are_finite
from ruprompt_fast.prompts import MultiPrompt, Prompt
from ruprompt_fast.prompts.patching import note_base
from ruprompt_fast.prompts.providers.freeze import freeze_for, provider_parameters, unfreeze_for
from ruprompt_fast.training.guards import LossWatch, check_optimizer
from ruprompt_fast.training.stored_state import LoadingCheck

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

# What transformers names the parts of a model that it saves in several files.
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


class FreezeTransformerUnfreezePrompt(TrainerCallback):
    """Freezes the whole model, its output layer included, and lets only the prompts' providers train.

    Give it to the ``Trainer``'s constructor: the optimizer is made of what trains then. What trained before does so
    again when training has ended. While it trains, checkpoints hold the providers' parameters beside the base model's,
    so that ``Trainer`` can resume from them and reload the best one. A loss, gradient or prompt that is not finite
    stops the run: ``Trainer`` itself logs a loss of 0 and goes on.

    Raises:
        FrozenWeightsError: the optimizer has other parameters than the prompts', or nothing would train.
        CheckpointError: a checkpoint to resume from is of another prompt.
        DivergenceError: training produced NaN or infinity; the prompt is as it was before the step.
    """

    def __init__(self) -> None:
        self._losses = LossWatch()
        self._loss_hook: RemovableHandle | None = None
        self._loading: LoadingCheck | None = None

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Set ``requires_grad`` of every parameter, before the optimizer is made; check one that was given."""
        if model is not None:
            check_optimizer(optimizer, provider_parameters(model))
            freeze_for(self, model)
            self._loading = LoadingCheck(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Freeze the model if it is not, and check that the optimizer was made of the prompts' parameters."""
        if model is None:
            return
        if self._loading is not None:
            self._loading.finish()
        freeze_for(self, model)
        _check_trains(model, optimizer)
        hide_from_save(model, hidden=False)
        self._losses.take()
        self._loss_hook = model.register_forward_hook(self._losses)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the losses of a step, and its gradients unless they are scaled: a scaler skips steps that overflow."""
        if model is None:
            return
        loss = self._losses.take()
        gradients = [parameter.grad for parameter in provider_parameters(model).values()]
        if not math.isfinite(loss):
            self._stop(model, state, f"the loss is {loss}", args)
        if getattr(optimizer, "scaler", None) is None and not are_finite(gradients):
            self._stop(model, state, "a gradient of the prompt holds NaN or infinity", args)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Have the embedding compute its rows again: fused optimizers change parameters without a trace."""
        if model is None:
            return
        trained = provider_parameters(model).values()
        note_update(trained)
        if not are_finite(trained):
            self._stop(model, state, "the update made the prompt NaN or infinite", args)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Let train again what did before; the model's ``save_pretrained`` writes the base model only again."""
        if model is not None:
            self._let_go(model)

    def _let_go(self, model: PreTrainedModel) -> None:
        unfreeze_for(self, model)
        hide_from_save(model)
        if self._loss_hook is not None:
            self._loss_hook.remove()
        if self._loading is not None:
            self._loading.close()
            self._loading = None

    def _stop(self, model: PreTrainedModel, state: TrainerState, problem: str, args: TrainingArguments) -> NoReturn:
        model.zero_grad()
        self._let_go(model)
        raise DivergenceError(
            f"training went wrong at step {state.global_step}: {problem}. The steps before it may have spoiled the "
            f"prompt already: resume from a checkpoint before it with a lower learning_rate (found "
            f"{args.learning_rate:g}) or a longer warm-up; recipe_for() knows values that work."
        )


def _check_trains(model: PreTrainedModel, optimizer: torch.optim.Optimizer | None) -> None:
    """Check that something trains, and that nothing else will.

    Raises:
        FrozenWeightsError: it does not, or the optimizer has frozen weights of the model.
    """
    trained = provider_parameters(model)
    if not trained:
        raise FrozenWeightsError("the model has no prompts that train; call prompt.patch() before making the Trainer.")
    frozen = {id(parameter): name for name, parameter in model.named_parameters() if name not in trained}
    groups = [] if optimizer is None else optimizer.param_groups
    found = [frozen[id(parameter)] for group in groups for parameter in group["params"] if id(parameter) in frozen]
    if found:
        raise FrozenWeightsError(
            f"expected an optimizer of the prompts' parameters only; found {len(found)} frozen weights in it, such as "
            f"{found[0]}, because the model was not frozen yet when it was made. Give the callback to the Trainer's "
            "constructor; with model_init, call freeze_model() on what it returns."
        )


class ReduceCheckpoint(TrainerCallback):
    """Keeps only the providers' parameters in every checkpoint: kilobytes in place of the base model.

    ``Trainer`` resumes from such a checkpoint and reloads the best one as usual: the frozen model is in memory already.
    """

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Replace the checkpoint's weights; other ranks than the first leave them alone."""
        if model is None or not state.is_world_process_zero:
            return
        folder = _checkpoint_folder(args, state)
        # The new file is there before the old ones go: a run that is killed here has one or the other.
        write_tensors(os.path.join(folder, SAFE_WEIGHTS_NAME), provider_tensors(model))
        for name in os.listdir(folder):
            if name == SAFE_WEIGHTS_INDEX_NAME or _SHARD.fullmatch(name):
                os.remove(os.path.join(folder, name))


class SavePretrainedPrompt(TrainerCallback):
    """Saves the prompt into every checkpoint, ready for ``Prompt.from_pretrained``.

    Args:
        prompt: the prompt that is being trained; of a ``MultiPrompt``, each goes into a folder of its key's name.

    Raises:
        DivergenceError: the prompt holds NaN or infinity.
    """

    def __init__(self, prompt: Prompt | MultiPrompt) -> None:
        self.prompt = prompt

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the prompt's files beside the checkpoint's."""
        if not state.is_world_process_zero:
            return
        folder = _checkpoint_folder(args, state)
        if isinstance(self.prompt, Prompt):
            _save(self.prompt, model, folder)
            return
        for key, prompt in self.prompt.prompts.items():
            _save(prompt, model, os.path.join(folder, key))


def _save(prompt: Prompt, model: PreTrainedModel | None, folder: str) -> None:
    if model is not None:
        note_base(prompt, model)
    if not are_finite([prompt.rows()]):
        raise DivergenceError(
            f"{folder}: expected finite rows to save; training made NaN or infinity of them. Resume from an earlier "
            "checkpoint with a lower learning_rate; FreezeTransformerUnfreezePrompt notices it when it happens."
        )
    prompt.save_pretrained(folder)


class WBLogHydraConfig(TrainerCallback):
    """Logs a Hydra configuration to Weights and Biases when training starts.

    Args:
        cfg: an ``omegaconf.DictConfig``.

    Raises:
        MissingDependencyError: ``omegaconf`` or ``wandb`` is not installed.
    """

    def __init__(self, cfg: Any) -> None:
        try:
            import omegaconf
            import wandb
        except ImportError as error:
            raise MissingDependencyError(
                f"WBLogHydraConfig needs the package {error.name}; pip install hydra-core wandb."
            ) from error
        self._to_container = omegaconf.OmegaConf.to_container
        self._wandb = wandb
        self.cfg = cfg

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Send the configuration under the key ``hydra``."""
        self._wandb.config.update({"hydra": self._to_container(self.cfg)})


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> str:
    return os.path.join(args.output_dir or ".", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
