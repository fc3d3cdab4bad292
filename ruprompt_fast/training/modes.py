"""Which parts of a model train: the providers do, everything else stays as it is in use, without dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from ruprompt_fast.embedding import note_update
from ruprompt_fast.errors import SettingError
from ruprompt_fast.training.arguments import CHECKPOINTING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments


def set_training_mode(model: nn.Module, providers: Iterable[nn.Module]) -> None:
    """Let the providers train, keep the rest in evaluation mode, and let layers recompute what they are asked to.

    transformers' layers recompute their activations only while their own ``training`` is set. Some of them (OPT) also
    drop out by that flag, so it is set around a layer's forward and cleared inside.
    """
    model.eval()
    for provider in providers:
        provider.train()
    for layer in _checkpointed_layers(model):
        if not isinstance(layer._gradient_checkpointing_func, _InEvaluationMode):
            layer._gradient_checkpointing_func = _InEvaluationMode(layer, layer._gradient_checkpointing_func)
        layer.training = True


@contextmanager
def prepared_for_training(model: PreTrainedModel) -> Iterator[None]:
    """Take back after a run what it does to a model: checkpointing, training mode, accelerate's autocast around it."""
    was_checkpointing = _is_checkpointing(model)
    forward = vars(model).get("forward")
    try:
        yield
    finally:
        model.eval()
        for layer in _checkpointed_layers(model):
            if isinstance(layer._gradient_checkpointing_func, _InEvaluationMode):
                layer._gradient_checkpointing_func = layer._gradient_checkpointing_func.checkpoint
        if _is_checkpointing(model) and not was_checkpointing:
            _disable_checkpointing(model)
            model.disable_input_require_grads()  # enabled along with it
        if forward is None and "_original_forward" in vars(model):
            del model._original_forward, model.forward
        vars(model).pop("_is_accelerate_prepared", None)  # or the next run would get no autocast


def check_can_checkpoint(model: nn.Module) -> None:
    """Check that activation checkpointing would do something.

    Raises:
        SettingError: the model has no layers that know how.
    """
    if not any(isinstance(module, GradientCheckpointingLayer) for module in model.modules()):
        raise SettingError(
            f"activation checkpointing needs transformers' GradientCheckpointingLayer; {type(model).__name__} has "
            f"none. Leave {CHECKPOINTING} out; take smaller batches and more gradient_accumulation_steps."
        )


def _is_checkpointing(model: nn.Module) -> bool:
    return any(True for _ in _checkpointed_layers(model))


def _disable_checkpointing(model: nn.Module) -> None:
    """By the name that newer versions of transformers have for it, or the older one."""
    disable: Any = getattr(model, "activation_checkpointing_disable", None)
    disable = disable or model.gradient_checkpointing_disable
    disable()


def _checkpointed_layers(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            yield module


class NoteUpdates(TrainerCallback):
    """Tells the embedding of every update; without it an evaluation would see the rows of the one before.

    Args:
        parameters: the parameters that train.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise all versions."""
        note_update(self.parameters)


class _InEvaluationMode:
    """A checkpoint function whose layer runs, and runs again in the backward, in evaluation mode.

    Args:
        layer: the layer.
        checkpoint: the function that it had: calls a function with arguments, and again in the backward.
    """

    def __init__(self, layer: nn.Module, checkpoint: Callable[..., Any]) -> None:
        self.layer = layer
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def run(*inputs: Any) -> Any:
            was_training = self.layer.training
            self.layer.training = False
            try:
                return function(*inputs)
            finally:
                self.layer.training = was_training

        return self.checkpoint(run, *args, **kwargs)
