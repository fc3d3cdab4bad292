"""A trained prompt, or an ensemble, answering rows of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ruprompt_fast.core import Class, GenerationOutput
from ruprompt_fast.errors import ConfigError
from ruprompt_fast.prompts import Prompt
from ruprompt_fast.prompts.ensemble import PromptEnsemble, members_of
from ruprompt_fast.requests.merging import merged_config
from ruprompt_fast.requests.new_tokens import new_tokens
from ruprompt_fast.runs.answer_config import ServedModelConfig
from ruprompt_fast.runs.artifacts import CONFIG_FILE
from ruprompt_fast.runs.config import BUNDLED, ModelConfig, TrainConfig
from ruprompt_fast.runs.parsing import read_config
from ruprompt_fast.runs.start import BUNDLED_MODEL_NAME
from ruprompt_fast.training.attaching import collect_prompts
from ruprompt_fast.training.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.model import FastPromptModel

_NAME = "prompt"

# A prompt without fields is a prefix: this one follows it.
_TEXT = "text"

# Arguments of FastPromptModel.generate that GenerationConfig does not have.
_OWN_SETTINGS = ("presence_penalty", "frequency_penalty")


def find_task(source: str, config: str | None, prompt: Prompt | PromptEnsemble) -> Task | None:
    """The task of a training configuration: the one given, else the one in the prompt's folder, else None.

    Args:
        source: where the prompt comes from.
        config: a YAML file, the name of a shipped task, or None.
        prompt: the prompt.

    Raises:
        ConfigError: the configuration cannot be read.
        TaskError: the task is for another template than the prompt's.
    """
    found = _training_of(source) if config is None else read_config(TrainConfig, config)
    if found is None:
        return None
    collect_prompts(prompt, found.task)
    return found.task


def find_model(given: ServedModelConfig, source: str, prompt: Prompt | PromptEnsemble) -> ModelConfig:
    """The model that is to answer: the one given, else the one that the prompt was trained on.

    Args:
        given: what the configuration says.
        source: where the prompt comes from.
        prompt: the prompt.

    Raises:
        ConfigError: neither the configuration nor the prompt names a model; or the prompt's training configuration
            cannot be read.
    """
    trained = None if given.name is not None else _training_of(source)
    if given.name is not None:
        model = ModelConfig(given.name)
    elif trained is not None:
        model = ModelConfig(trained.model.name, trained.model.dtype)
    else:
        name = members_of(prompt)[0].config.pretrained_model_name
        if not name:
            raise ConfigError(f"{source}: the prompt does not say which model it is for; give one with --model NAME.")
        model = ModelConfig(BUNDLED if name == BUNDLED_MODEL_NAME else name)
    return replace(
        model,
        dtype=given.dtype or model.dtype,
        quantization=given.quantization,
        device=given.device,
        threads=given.threads,
    )


def serve(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> FastPromptModel:
    """The loaded model, ready to answer, quantized if its configuration says so."""
    from ruprompt_fast.model import FastPromptModel

    return FastPromptModel.from_pretrained(
        model, tokenizer=tokenizer, quantization=config.quantization, threads=config.threads
    )


def _training_of(source: str) -> TrainConfig | None:
    """The training configuration in a prompt's folder, if there is one."""
    path = Path(source).expanduser() / CONFIG_FILE
    return read_config(TrainConfig, path) if path.is_file() else None


def setting_names() -> list[str]:
    """The settings that generation knows, the seed aside."""
    from transformers import GenerationConfig

    return [*(name for name in vars(GenerationConfig()) if not name.startswith("_")), *_OWN_SETTINGS]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check generation settings before a model is loaded.

    Raises:
        UnknownArgumentError: a name that is no setting of generation.
        SettingError: a value that cannot work.
        ConfigError: the seed is among them.
    """
    from transformers import GenerationConfig

    if "seed" in settings:
        raise ConfigError("the seed is beside the settings of generation, not among them; write seed=...")
    merged_config(None, GenerationConfig(), _of_transformers(settings))


@dataclass(frozen=True)
class Answering:
    """A model and the prompt, or ensemble, that answers.

    Attributes:
        model: the model, which has the prompt.
        task: what it was trained to do, if known.
    """

    model: FastPromptModel
    task: Task | None

    @classmethod
    def start(cls, model: FastPromptModel, prompt: Prompt | PromptEnsemble, task: Task | None) -> Answering:
        """Load the prompt into the model.

        Raises:
            PromptMismatchError, NonFiniteRowsError: it is not for this model.
        """
        model.add_prompt(_NAME, prompt)
        return cls(model, task)

    @property
    def is_classification(self) -> bool:
        """Whether answers are label words."""
        return is_classification(self.task)

    def generate(
        self,
        inputs: Sequence[Mapping[str, str]],
        settings: Mapping[str, Any],
        seeds: Sequence[int],
        progress: bool | None = False,
    ) -> list[list[GenerationOutput]]:
        """Continue every input, each with its own seed.

        Args:
            inputs: the prompt's fields.
            settings: of generation.
            seeds: one for each input.
            progress: see :meth:`FastPromptModel.generate`.

        Returns:
            ``num_return_sequences`` outputs for each input.
        """
        outputs = self.model.generate(inputs, _NAME, **settings, seed=list(seeds), progress=progress)
        size = len(outputs) // len(inputs)
        return [outputs[start : start + size] for start in range(0, len(outputs), size)]

    def generate_plain(
        self, texts: Sequence[str], settings: Mapping[str, Any], seeds: Sequence[int], progress: bool | None = False
    ) -> list[GenerationOutput]:
        """Continue texts without the prompt, each with its own seed."""
        return self.model.generate(list(texts), None, **settings, seed=list(seeds), progress=progress)

    def classify_plain(self, texts: Sequence[str]) -> list[str]:
        """The classes of texts without the prompt."""
        labels = cast(Task, self.task).labels or {}
        return [str(output.label) for output in self.model.classify(list(texts), None, labels=labels)]

    def classify(self, inputs: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        """For every input ``output``, the label word, ``label``, its class, and ``scores``, probabilities by class."""
        task = cast(Task, self.task)
        labels = task.labels or {}
        outputs = self.model.classify(inputs, _NAME, labels=labels)
        words: dict[Class, str] = dict(zip(labels, task.label_words, strict=True))
        return [
            {"output": words[output.label], "label": output.label, "scores": dict(output.probabilities)}
            for output in outputs
        ]

    def check_fits(self, fields: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        """Check that an input and what is to be generated for it fit the model's context.

        Raises:
            ContextLengthError: they do not.
        """
        if self.is_classification:
            self.model.check_fits(fields, _NAME, labels=cast(Task, self.task).labels or {})
        else:
            (length,) = self.model.count_tokens(fields, _NAME)
            config = self.model.model.config
            merged = merged_config(None, self.model.model.generation_config, _of_transformers(settings))
            new_tokens(config, [0] * length, merged, 0)


def input_columns(prompt: Prompt | PromptEnsemble, task: Task | None) -> dict[str, str]:
    """The columns that hold the prompt's fields, by field.

    A prompt without fields has the one of the text that follows it, which a row may lack.
    """
    renamed = {} if task is None else task.columns
    return {name: renamed.get(name, name) for name in (members_of(prompt)[0].format.fields or (_TEXT,))}


def is_classification(task: Task | None) -> bool:
    """Whether answers are label words."""
    return task is not None and task.objective == "classification"


def _of_transformers(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _OWN_SETTINGS}
