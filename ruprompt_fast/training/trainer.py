"""PromptTrainer: transformers' Trainer for soft prompts over a frozen model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import EvalLoopOutput

from ruprompt_fast.concurrency.team import Team
from ruprompt_fast.errors import SettingError, TrainingDataError
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.training.arguments import checked_arguments, default_arguments, uses_checkpointing
from ruprompt_fast.training.attaching import (
    Trainable,
    attach_for_training,
    collect_prompts,
    detach,
    freeze_around,
    make_encoders,
)
from ruprompt_fast.training.datasets import EncodedDataset, EpochOrder, EpochSampler, Rows, encode_rows
from ruprompt_fast.training.evaluation import EvaluationTotals, PromptBatch, evaluation_batches
from ruprompt_fast.training.guards import DivergenceGuard, StepGuard, check_optimizer
from ruprompt_fast.training.modes import NoteUpdates, check_can_checkpoint, set_training_mode
from ruprompt_fast.training.runners import make_runner
from ruprompt_fast.training.saving_trainer import PromptSavingTrainer
from ruprompt_fast.training.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.training.examples import Example


class PromptTrainer(PromptSavingTrainer):
    """Trains soft prompts over a frozen model; everything else is transformers' ``Trainer``.

        >>> task = Task("<P*60>{text}<P*20>", target=" {summary}")
        >>> prompt = prompt_for(task, TensorPromptProvider())
        >>> args = TrainingArguments("run", **recipe_for(prompt.provider).arguments(max_steps=400))
        >>> trainer = PromptTrainer(model, args, prompt=prompt, task=task, tokenizer=tokenizer, train_dataset=rows)
        >>> trainer.train(resume_from_checkpoint=True)
        >>> trainer.save_model("my_prompt")

    Every prefix runs once per batch, samples are packed, and logits are computed where there are labels, if the model's
    attention can be routed (``trainer.runner.name``); the loss and the gradient are those of plain padded training.
    The loss is the mean over all labels, or all classified samples, of all accumulated batches and processes. The model
    stays in evaluation mode: it has no dropout. The gradient's norm is cut for each prompt by itself. Only the prompts
    are saved; a killed run resumes exactly. The model keeps the prompts attached; ``detach_prompts`` takes them off.

    Args:
        model: any causal model, or an encoder-decoder for text-to-text tasks. Its weights are frozen. A model that is
            patched with the prompt stays as it is; one that is not gets it without a marker in the tokenizer, in place
            of whatever was attached.
        args: transformers' arguments; None for the recipe of the prompt's provider. They are copied.
        prompt: a prompt; several by name, which are trained in one run on data of their own; or an ensemble, whose
            members all train on every row. Providers become float32.
        task: what the prompt learns; by name for several prompts.
        tokenizer: the model's.
        train_dataset: rows with the task's columns; by name for several prompts. None for a trainer that evaluates.
        eval_dataset: likewise.
        callbacks: transformers' callbacks.
        optimizers: an optimizer over the providers' parameters and a schedule, instead of those that ``args`` name.
        compute_metrics: not supported, evaluation keeps no predictions.
        divergence: when a run counts as diverged; None takes the default values.

    Attributes:
        runner: what makes batches and their loss; ``runner.reason`` says why it is not the packed one.
        prompts: the prompts with their tasks.

    Raises:
        TaskError, TemplateError, LabelError: task, prompt and data do not fit each other.
        TrainingDataError, MissingFieldError, FieldTypeError, ContextLengthError: a row is bad; all are encoded here.
        PromptMismatchError: a prompt is for another model.
        SettingError: an argument is not supported.
        FrozenWeightsError: ``optimizers`` has other parameters than the prompts'.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments | None = None,
        *,
        prompt: Trainable,
        task: Task | Mapping[str, Task],
        tokenizer: PreTrainedTokenizerBase,
        train_dataset: Rows | Mapping[str, Rows] | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        compute_metrics: None = None,
        divergence: DivergenceGuard | None = None,
    ) -> None:
        if compute_metrics is not None:
            raise SettingError(
                "compute_metrics is not supported: evaluation keeps no predictions. It gives eval_loss, and "
                "eval_accuracy for a classification; measure texts after training."
            )
        self.prompts = collect_prompts(prompt, task)
        self.ensemble = prompt if isinstance(prompt, PromptEnsemble) else None
        args = checked_arguments(default_arguments([one.provider for one in self.prompts]) if args is None else args)
        if uses_checkpointing(args):
            check_can_checkpoint(model)
        set_seed(args.seed)  # for providers that draw their first values
        attached = attach_for_training(model, self.prompts, tokenizer)
        use_cache = getattr(model.config, "use_cache", None)
        try:
            self._encoders = make_encoders(self.prompts, attached, model, tokenizer)
            train_set = None if train_dataset is None else self._encode(train_dataset, "train_dataset")
            eval_set = None if eval_dataset is None else self._encode(eval_dataset, "eval_dataset")
            self.trained = freeze_around(model, [one.provider for one in self.prompts])
            check_optimizer(optimizers[0], self.trained)
            order = EpochOrder()
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_set,
                eval_dataset=eval_set,
                callbacks=[order, NoteUpdates(self.trained.values()), *(callbacks or [])],
                optimizers=optimizers,
            )
            model.eval()
            self.runner = make_runner(model, attached.embedding, attached.deep)
        except BaseException:
            detach(model, attached)
            raise
        finally:
            if use_cache is not None:
                model.config.use_cache = use_cache  # the base class sets what batches of ours say for themselves
        self._order = order
        self._team = Team()
        self._embedding = attached.embedding
        self.data_collator = self._collate
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True
        self._check_clipping()
        self.guard = StepGuard(self.trained, divergence or DivergenceGuard())

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of one step, and what their summed loss is divided by: the items of all processes.

        Every member of an ensemble has a loss of its own over the same items.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        num_items = sum(batch["num_items"] for batch in batches) / self._num_members
        if self.args.world_size == 1:
            return batches, num_items  # a number of the host's: a tensor would have to get to the device
        return batches, self._over_processes(torch.tensor(num_items, device=device), "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | float | None = None,
    ) -> Any:
        """A batch's share of the mean loss, in nats.

        Args:
            model: the model, or what data parallelism wraps it into.
            inputs: a batch of the runner.
            return_outputs: whether to return the runner's ``BatchLoss`` too.
            num_items_in_batch: from :meth:`get_batch_samples`; None divides by the batch's own items.
        """
        set_training_mode(self.network, [one.provider for one in self.prompts])
        result = self.runner.loss(model, inputs)
        num_items = result.num_items / self._num_members if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes, the loss is a sum over them.
        loss = result.total / num_items * self.accelerator.num_processes
        return (loss, result) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | float | None = None
    ) -> Tensor:
        """One forward and backward; the last one of a step checks loss, gradients and frozen weights.

        Raises:
            FrozenWeightsError: a frozen weight trains.
            DivergenceError: the loss or a gradient is not finite, or the loss has run away; the prompt is the last good
                one then, which is saved in ``output_dir/last_good``.
        """
        self.guard.begin_step(self.state.global_step)
        with self._team.working(), self.runner.routing():
            loss = super().training_step(model, inputs, cast(Any, num_items_in_batch)) / self._num_members
        self._step_loss = self._step_loss + loss
        if self.accelerator.sync_gradients:
            step_loss, self._step_loss = self._over_processes(self._step_loss, "mean"), 0.0
            may_overflow = getattr(self.accelerator, "scaler", None) is not None  # which then skips the step
            problem = self.guard.check_step(self.network, self.state.global_step, float(step_loss), may_overflow)
            if problem is not None:
                self.stop_diverged(problem)
        return loss

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[PromptBatch]:
        """This process's batches of the rows, or of the trainer's ``eval_dataset``."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise TrainingDataError("there is no eval_dataset; give one to the trainer or to evaluate().")
        if not isinstance(dataset, EncodedDataset):
            dataset = self._encode(dataset, "eval_dataset")
        args = self.args
        return evaluation_batches(dataset, self.runner, args.eval_batch_size, args.process_index, args.world_size)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[PromptBatch]:
        """As :meth:`get_eval_dataloader`."""
        return self.get_eval_dataloader(test_dataset)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate rows, see :class:`PromptTrainer`; gives loss and accuracy over all of them and by prompt."""
        if eval_dataset is not None and not isinstance(eval_dataset, EncodedDataset):
            eval_dataset = self._encode(eval_dataset, "eval_dataset")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader[PromptBatch],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss over all batches of all processes; there are no predictions."""
        self.check_attached()
        model = self.network.eval()
        self.callback_handler.eval_dataloader = dataloader
        totals = EvaluationTotals(
            [one.name for one in self.prompts],
            self.args.device,
            self.prompts[0].task.objective == "classification",
        )
        for prompt, batch in dataloader:
            with self._team.working(), self.runner.routing(), self.accelerator.autocast():
                totals.add(prompt, self.runner.loss(model, self._prepare_inputs(batch)))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = totals.metrics(self._over_processes(totals.sums, "sum"), metric_key_prefix)
        share = torch.tensor(sum(map(len, cast(Any, dataloader.dataset))), device=self.args.device)
        num_samples = int(self._over_processes(share, "sum"))
        return EvalLoopOutput(predictions=cast(Any, None), label_ids=None, metrics=metrics, num_samples=num_samples)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """4 operations for each token and weight: the weights themselves need no gradient."""
        ids = inputs.get("inputs", inputs).get("input_ids")
        if self._num_weights is None:
            self._num_weights = self.network.num_parameters(exclude_embeddings=True)
        return 0 if ids is None else 4 * ids.numel() * self._num_weights

    _num_weights: int | None = None

    @property
    def _num_members(self) -> int:
        return 1 if self.ensemble is None else len(self.prompts)

    def _over_processes(self, value: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
        return value if self.args.world_size == 1 else cast(Tensor, self.accelerator.reduce(value, reduction))

    def _encode(self, rows: Any, what: str) -> EncodedDataset:
        return encode_rows(rows, self._encoders, self.ensemble is not None, what)

    def _collate(self, items: Sequence[list[Example]]) -> dict[str, Any]:
        return self.runner.collate([example for column in zip(*items, strict=True) for example in column])

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = cast(EncodedDataset, self.train_dataset)
        strategy = getattr(self.args, "train_sampling_strategy", "random")
        if strategy == "sequential":
            return super()._get_train_sampler(dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        lengths = dataset.lengths if strategy == "group_by_length" else None
        self._order.sampler = EpochSampler(len(dataset), cast(int, self.args.data_seed), lengths, size)
        return self._order.sampler

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self.accelerator.unscale_gradients()
        norms = [clip_grad_norm_(one.provider.parameters(), self.args.max_grad_norm) for one in self.prompts]
        # That of a prompt without gradients, of which the batch has no example, is a 0 on the CPU.
        return cast(Tensor, torch.stack([norm.to(self.args.device, non_blocking=True) for norm in norms]).norm())

    def _check_clipping(self) -> None:
        if len(self.prompts) > 1 and self.args.max_grad_norm > 0 and not hasattr(Trainer, "_clip_grad_norm"):
            raise SettingError(
                "this version of transformers cuts the norm of all gradients together, which would couple the prompts: "
                "set max_grad_norm=0, or update transformers."
            )
