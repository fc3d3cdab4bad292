"""Training arguments: those that the trainer cannot keep are refused by name, none is ignored."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import nn
from transformers import TrainingArguments

from ruprompt_fast.errors import SettingError
from ruprompt_fast.training.recipes import provider_kind, recipe_for

# Refused where they are set to anything but nothing, with what to do instead.
_UNSUPPORTED = {
    "label_smoothing_factor": "the loss is the cross entropy of the labels as they are; leave it at 0",
    "neftune_noise_alpha": "noise would be added to the prompt's rows too; leave it out",
    "use_liger_kernel": "it replaces the layers and the loss; leave it out",
    "torch_compile": "batches of texts have another shape at every step; leave it out",
    "torch_compile_backend": "batches of texts have another shape at every step; leave it out",
    "torch_compile_mode": "batches of texts have another shape at every step; leave it out",
    "auto_find_batch_size": "a resumed run would find another one; set per_device_train_batch_size",
    "deepspeed": "the frozen model is not sharded; use data parallelism through torchrun",
    "fsdp": "the frozen model is not sharded; use data parallelism through torchrun",
    "parallelism_config": "the frozen model is not sharded; use data parallelism through torchrun",
    "fp16_full_eval": "it would convert the prompt; load the model in float16 instead",
    "bf16_full_eval": "it would convert the prompt; load the model in bfloat16 instead",
    "push_to_hub": "push the prompt after training with Prompt.push_to_hub",
    "include_for_metrics": "evaluation keeps no predictions",
    "batch_eval_metrics": "evaluation keeps no predictions",
    "optim_target_modules": "only the prompt trains",
    "ignore_data_skip": "a resumed run goes on where it was cut off; leave it out",
    "group_by_length": "set train_sampling_strategy='group_by_length'",
}
_SAMPLING = ("random", "sequential", "group_by_length")

_KNOWN = {part.name for part in fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _KNOWN else "gradient_checkpointing"
"""The training argument that has layers recompute their activations, whose name depends on transformers' version."""


def checked_arguments(args: TrainingArguments) -> TrainingArguments:
    """A copy of the arguments as the trainer uses them.

    It keeps the data's columns, does not hide NaN, restores callbacks on resuming (early stopping counts), and shuffles
    by ``data_seed``, which is ``seed`` unless given.

    Raises:
        SettingError: an argument is set that the trainer does not support; the message names it.
    """
    for name, advice in _UNSUPPORTED.items():
        value = getattr(args, name, None)
        if value:
            raise SettingError(f"{name}={value!r} is not supported in prompt training: {advice}.")
    if args.n_gpu > 1:
        raise SettingError(
            f"expected one GPU for each process; found {args.n_gpu}. Start one process for each with torchrun, or set "
            "CUDA_VISIBLE_DEVICES to one of them."
        )
    if args.world_size > 1 and not args.average_tokens_across_devices:
        raise SettingError("average_tokens_across_devices=False is not supported: losses are means over all processes.")
    sampling = getattr(args, "train_sampling_strategy", _SAMPLING[0])
    if sampling not in _SAMPLING:
        raise SettingError(f"train_sampling_strategy must be one of {list(_SAMPLING)}; found {sampling!r}.")
    _check_checkpointing(args)
    _check_accelerator(args.accelerator_config)
    kept = copy.copy(args)
    kept.remove_unused_columns = False
    kept.logging_nan_inf_filter = False
    kept.restore_callback_states_from_checkpoint = True
    kept.dataloader_pin_memory = args.dataloader_pin_memory and args.device.type != "cpu"  # torch warns of it there
    if args.world_size > 1 and args.ddp_find_unused_parameters is None:
        kept.ddp_find_unused_parameters = True  # a batch need not hold every deep prompt
    kept.data_seed = args.seed if args.data_seed is None else args.data_seed
    return kept


def default_arguments(providers: Sequence[nn.Module]) -> TrainingArguments:
    """The recipe of the providers, in the folder ``trainer_output``.

    Raises:
        SettingError: they have different recipes.
    """
    kinds = sorted({provider_kind(provider) for provider in providers})
    if len(kinds) > 1:
        raise SettingError(f"providers of different kinds, {kinds}, have different recipes; give args.")
    return TrainingArguments("trainer_output", **recipe_for(providers[0]).arguments())


def uses_checkpointing(args: TrainingArguments) -> bool:
    """Whether layers are to recompute their activations; ``gradient_checkpointing`` is the argument's older name."""
    return bool(getattr(args, "activation_checkpointing", None) or getattr(args, "gradient_checkpointing", None))


def _check_checkpointing(args: TrainingArguments) -> None:
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        settings = getattr(args, name, None) or {}
        if settings.get("use_reentrant"):
            raise SettingError(
                f"{name}={{'use_reentrant': True}} is not supported: gradients would not reach the shared keys and "
                "values of a prompt. Leave it out."
            )


def _check_accelerator(config: Any) -> None:
    for name in ("split_batches", "dispatch_batches"):
        if getattr(config, name, None):
            raise SettingError(f"accelerator_config.{name}=True is not supported; leave it out.")
    if not getattr(config, "use_seedable_sampler", True):
        raise SettingError("accelerator_config.use_seedable_sampler=False is not supported: runs could not be resumed.")
