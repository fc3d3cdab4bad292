"""Callbacks for training a prompt with transformers' own ``Trainer``, as in ruPrompts."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ruprompt_fast.embedding import PROVIDERS_KEY, hide_from_save, note_update
from ruprompt_fast.errors import MissingDependencyError
from ruprompt_fast.prompts import MultiPrompt, Prompt, freeze_model
from ruprompt_fast.prompts.tensor_files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

# What transformers names the parts of a model that it saves in several files.
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


class FreezeTransformerUnfreezePrompt(TrainerCallback):
    """Freezes the whole model, its output layer included, and lets only the prompts' providers train.

    While it trains, checkpoints hold the providers' parameters beside the base model's, so that ``Trainer`` can resume
    from them and reload the best one.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Set ``requires_grad`` of every parameter."""
        if model is not None:
            freeze_model(model)
            hide_from_save(model, hidden=False)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Have the embedding compute its rows anew: fused optimizers change parameters without a trace."""
        if model is not None:
            note_update(parameter for parameter in model.parameters() if parameter.requires_grad)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """From here on the model's ``save_pretrained`` writes the base model only again."""
        if model is not None:
            hide_from_save(model)


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
        providers = _provider_state(model)
        # The new file stands before the old ones go: a run that is killed here has one or the other.
        write_atomically(
            os.path.join(folder, SAFE_WEIGHTS_NAME), lambda path: save_file(providers, path, metadata={"format": "pt"})
        )
        for name in os.listdir(folder):
            if name == SAFE_WEIGHTS_INDEX_NAME or _SHARD.fullmatch(name):
                os.remove(os.path.join(folder, name))


class SavePretrainedPrompt(TrainerCallback):
    """Saves the prompt into every checkpoint, ready for ``Prompt.from_pretrained``.

    Args:
        prompt: the prompt that is being trained; of a ``MultiPrompt``, each goes into a folder of its key's name.
    """

    def __init__(self, prompt: Prompt | MultiPrompt) -> None:
        self.prompt = prompt

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the prompt's files beside the checkpoint's."""
        if not state.is_world_process_zero:
            return
        folder = _checkpoint_folder(args, state)
        if isinstance(self.prompt, Prompt):
            self.prompt.save_pretrained(folder)
            return
        for key, prompt in self.prompt.prompts.items():
            prompt.save_pretrained(os.path.join(folder, key))


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


def _provider_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The providers' tensors by their names in the model; T5 lists one provider in three places, the first is kept."""
    state: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if PROVIDERS_KEY in name and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach().cpu().contiguous()
    return state
