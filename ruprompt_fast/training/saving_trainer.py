"""The half of the trainer that writes and reads: prompts, checkpoints, and the last good state."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ruprompt_fast.cache import model_identity
from ruprompt_fast.errors import (
    DetachedModelError,
    DivergenceError,
    FileWriteError,
    OutputInUseError,
    SettingError,
    TrainingDataError,
)
from ruprompt_fast.file_writer import naming_write_errors
from ruprompt_fast.prompts.patching import note_base
from ruprompt_fast.training.attaching import description_of
from ruprompt_fast.training.checkpoints import RunFolder
from ruprompt_fast.training.modes import prepared_for_training
from ruprompt_fast.training.ownership import owning_folder
from ruprompt_fast.training.stored_state import (
    finished_state,
    naming_load_errors,
    read_parameters,
    write_parameters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.trainer_callback import TrainerState

    from ruprompt_fast.embedding import SplicedEmbedding
    from ruprompt_fast.prompts.ensemble import PromptEnsemble
    from ruprompt_fast.training.attaching import PromptInTraining
    from ruprompt_fast.training.datasets import EncodedDataset
    from ruprompt_fast.training.guards import StepGuard

LAST_GOOD_FOLDER = "last_good"


class PromptSavingTrainer(Trainer):
    """Writes prompts only; its checkpoints are complete or do not count, and resume exactly.

    Attributes:
        prompts: the prompts with their tasks.
        ensemble: the ensemble that they are the members of, or None.
        trained: the providers' parameters by their names in the model.
        guard: what watches the steps.
    """

    prompts: list[PromptInTraining]
    ensemble: PromptEnsemble | None
    trained: dict[str, nn.Parameter]
    guard: StepGuard
    _embedding: SplicedEmbedding
    _step_loss: Tensor | float = 0.0
    _num_kept: int | None = None

    @property
    def network(self) -> PreTrainedModel:
        """The model, unwrapped."""
        return cast("PreTrainedModel", self.model)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint: True for the newest complete checkpoint of this run in ``output_dir``, or from the
                beginning if it has none yet; a folder for that checkpoint.
            trial: not supported.
            ignore_keys_for_eval: without effect, as there are no predictions.

        Raises:
            TrainingDataError: the trainer was made without ``train_dataset``.
            DetachedModelError: the prompts were taken off the model, for instance by a later trainer.
            OutputExistsError: a new run would write into a folder with checkpoints.
            OutputInUseError: another run writes its checkpoints to ``output_dir`` now.
            CheckpointError: the checkpoint is missing, incomplete, damaged, or of another run.
            FileWriteError: a checkpoint cannot be written; the one before is whole.
            FrozenWeightsError, DivergenceError: see :meth:`training_step`.
        """
        if trial is not None:
            raise SettingError("hyperparameter search through Trainer is not supported; train once for each setting.")
        if self.train_dataset is None:
            raise TrainingDataError("there is no train_dataset; give one to the trainer.")
        self.check_attached()
        with self._owned():
            return self._train(resume_from_checkpoint, ignore_keys_for_eval)

    def _train(self, resume_from_checkpoint: str | bool | None, ignore_keys_for_eval: list[str] | None) -> TrainOutput:
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        state = None if checkpoint is None else finished_state(checkpoint, self.args)
        if checkpoint is not None and state is not None:
            return self._take_finished(checkpoint, state)
        for one in self.prompts:
            note_base(one.prompt, self.network)
        self.guard.reset()
        self._step_loss = 0.0  # a run that was interrupted leaves some
        evaluates_first = self.args.eval_on_start
        self.args.eval_on_start = evaluates_first and checkpoint is None  # it would count twice for early stopping
        # Which checkpoints go is for RunFolder to say: transformers would remove the last one of a limit of 1, without
        # which a finished run trains its end again.
        self._num_kept, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with prepared_for_training(self.network):
                return super().train(
                    resume_from_checkpoint=None if checkpoint is None else str(checkpoint),
                    ignore_keys_for_eval=ignore_keys_for_eval,
                )
        finally:
            self.args.eval_on_start = evaluates_first
            self.args.save_total_limit = self._num_kept
            self.is_in_train = False
            self.model_wrapped = self.network  # the next run prepares the model again

    def check_attached(self) -> None:
        """Check that the model still has the embedding whose ids the examples are made of.

        Raises:
            DetachedModelError: it has another one.
        """
        if self.network.get_input_embeddings() is not self._embedding:
            raise DetachedModelError(
                "the model has not this trainer's prompts any more: they were detached, or another trainer or patch() "
                "took their place. Make a new PromptTrainer; prompts keep what they learned."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the prompt, ready for ``from_pretrained``; several prompts into folders of their names.

        Args:
            output_dir: the folder; None for ``args.output_dir``.
        """
        if self.args.should_save:
            self._write_prompts(Path(output_dir or cast(str, self.args.output_dir)))

    def stop_diverged(self, problem: str) -> NoReturn:
        """Go back to the last good prompt, save it and stop.

        Raises:
            DivergenceError: always.
        """
        step = self.guard.restore()
        self.network.zero_grad()
        folder = Path(cast(str, self.args.output_dir)) / LAST_GOOD_FOLDER
        where = "there was no good prompt before: it was not finite from the beginning"
        if step is not None:
            where = f"the prompt is that of step {step} again, which {self._saved_in(folder)}"
        raise DivergenceError(
            f"training went wrong at step {self.state.global_step}: {problem}; {where}. Take a lower learning_rate "
            f"(found {self.args.learning_rate:g}) or a longer warm-up; recipe_for() knows values that work."
        )

    def _saved_in(self, folder: Path) -> str:
        """Save the prompts where no other run does at the moment; says where."""
        if self.args.should_save:
            try:
                with owning_folder(folder):
                    self._write_prompts(folder)
            except (OutputInUseError, FileWriteError) as error:
                return f"could not be saved: {error}"
        return f"is saved in {folder}"

    def _write_prompts(self, folder: Path) -> None:
        self.network.eval()  # a provider of one's own may drop out while it trains
        if self.ensemble is not None:
            self.ensemble.save_pretrained(folder)
            return
        for one in self.prompts:
            one.prompt.save_pretrained(one.folder(folder))

    def _state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the model: the providers' parameters and buffers, by their names in it."""
        buffers = {id(buffer) for one in self.prompts for buffer in one.provider.buffers()}
        kept = {name: buffer for name, buffer in self.network.named_buffers() if id(buffer) in buffers}
        return {**self.trained, **kept}

    @property
    def _run_folder(self) -> RunFolder:
        return RunFolder(Path(cast(str, self.args.output_dir)), self._identity())

    @property
    def _writes(self) -> bool:
        """Whether this process writes checkpoints; of several, the first does."""
        return bool(self.args.should_save and self.args.save_strategy != "no")

    def _owned(self) -> AbstractContextManager[None]:
        """The output folder as this run's own, where it writes checkpoints."""
        return owning_folder(Path(cast(str, self.args.output_dir))) if self._writes else nullcontext()

    def _identity(self) -> dict[str, Any]:
        if self._identity_cache is None:
            dataset = cast("EncodedDataset", self.train_dataset)
            args = self.args
            self._identity_cache = {
                "model": f"{type(self.model).__name__} {model_identity(self.network).hex()}",
                "prompts": {one.name: description_of(one) for one in self.prompts},
                "seeds": [args.seed, args.data_seed],
                "rows": len(dataset),
                "data": dataset.digest(self._embedding.first_prompt_id),
                "batches": {
                    "per_device_train_batch_size": args.per_device_train_batch_size,
                    "gradient_accumulation_steps": args.gradient_accumulation_steps,
                    "processes": args.world_size,
                    "train_sampling_strategy": getattr(args, "train_sampling_strategy", "random"),
                    "dataloader_drop_last": args.dataloader_drop_last,
                },
                # A checkpoint's optimizer brings its own learning rate, so another one would be ignored.
                "optimizer": {"optim": str(args.optim), "learning_rate": args.learning_rate},
                "mixed_precision": self.accelerator.mixed_precision,
            }
        return self._identity_cache

    _identity_cache: dict[str, Any] | None = None

    def _find_checkpoint(self, resume: str | bool | None) -> Path | None:
        """The checkpoint to resume from; None for a new run. What begins in a new folder claims it."""
        run = self._run_folder
        checkpoint = None
        is_elsewhere = False
        if isinstance(resume, str | Path):
            checkpoint = run.checked(Path(resume))
            is_elsewhere = checkpoint.resolve().parent != run.root.resolve()
        if resume and self.args.should_save and not is_elsewhere:
            run.clean()
        self.accelerator.wait_for_everyone()
        if resume is True:
            checkpoint = run.latest(bool(self.args.load_best_model_at_end))
        if self._writes and (checkpoint is None or is_elsewhere):
            run.begin()
        elif self._writes:
            run.claim()
        self.accelerator.wait_for_everyone()
        return checkpoint

    def _take_finished(self, checkpoint: Path, state: TrainerState) -> TrainOutput:
        self._load_from_checkpoint(str(checkpoint))
        state.is_local_process_zero = self.is_local_process_zero()
        state.is_world_process_zero = self.is_world_process_zero()
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        return TrainOutput(state.global_step, sum(losses) / len(losses) if losses else float("nan"), {})

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = self._run_folder
        folder = run.root / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with naming_write_errors(folder):
            if self.args.should_save:
                run.reopen(folder)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                write_parameters(folder, self._state_tensors())
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with naming_write_errors(folder):
                run.complete(folder, self.state.global_step, self._num_kept, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_parameters(Path(resume_from_checkpoint), self._state_tensors())

    def _load_best_model(self) -> None:
        run = self._run_folder
        best = run.find(cast(str, self.state.best_model_checkpoint))
        run.check_whole(best)
        read_parameters(best, self._state_tensors())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with naming_load_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with naming_load_errors(checkpoint):
            super()._load_rng_state(checkpoint)
