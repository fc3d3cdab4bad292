"""Fast soft prompts: one frozen language model, many trained prompts, mixed freely in every batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast._lazy import lazy_names
from ruprompt_fast._registration import register_on_import

if TYPE_CHECKING:
    from ruprompt_fast import bundled as bundled
    from ruprompt_fast import ops as ops
    from ruprompt_fast.callbacks import FreezeTransformerUnfreezePrompt, ReduceCheckpoint, SavePretrainedPrompt
    from ruprompt_fast.core import ClassificationOutput, GenerationOutput
    from ruprompt_fast.embedding import SplicedEmbedding
    from ruprompt_fast.model import FastPromptModel
    from ruprompt_fast.pipelines import Text2TextGenerationWithPromptPipeline, TextGenerationWithPromptPipeline
    from ruprompt_fast.prompts import (
        LSTMPromptProvider,
        MLPPromptProvider,
        MultiPrompt,
        PrefixTuningProvider,
        Prompt,
        PromptEnsemble,
        PromptFormat,
        TensorPromptProvider,
        Text2TextPreprocessor,
    )
    from ruprompt_fast.training import PromptTrainer, Task

__version__ = "0.1.0"

_HOMES = {
    "ClassificationOutput": "core",
    "FastPromptModel": "model",
    "FreezeTransformerUnfreezePrompt": "callbacks",
    "GenerationOutput": "core",
    "LSTMPromptProvider": "prompts",
    "MLPPromptProvider": "prompts",
    "MultiPrompt": "prompts",
    "PrefixTuningProvider": "prompts",
    "Prompt": "prompts",
    "PromptEnsemble": "prompts",
    "PromptFormat": "prompts",
    "PromptTrainer": "training",
    "ReduceCheckpoint": "callbacks",
    "SavePretrainedPrompt": "callbacks",
    "SplicedEmbedding": "embedding",
    "Task": "training",
    "TensorPromptProvider": "prompts",
    "Text2TextGenerationWithPromptPipeline": "pipelines",
    "Text2TextPreprocessor": "prompts",
    "TextGenerationWithPromptPipeline": "pipelines",
    "bundled": "",
    "ops": "",
}

__all__ = [
    "ClassificationOutput",
    "FastPromptModel",
    "FreezeTransformerUnfreezePrompt",
    "GenerationOutput",
    "LSTMPromptProvider",
    "MLPPromptProvider",
    "MultiPrompt",
    "PrefixTuningProvider",
    "Prompt",
    "PromptEnsemble",
    "PromptFormat",
    "PromptTrainer",
    "ReduceCheckpoint",
    "SavePretrainedPrompt",
    "SplicedEmbedding",
    "Task",
    "TensorPromptProvider",
    "Text2TextGenerationWithPromptPipeline",
    "Text2TextPreprocessor",
    "TextGenerationWithPromptPipeline",
    "bundled",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

register_on_import()
