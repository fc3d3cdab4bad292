"""transformers pipelines with a prompt, under ruPrompts' task names.

Importing this module registers ``text-generation-with-prompt`` and ``text2text-generation-with-prompt`` with
``transformers.pipeline``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from transformers import AutoModelForCausalLM
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.text_generation import ReturnType, TextGenerationPipeline

from ruprompt_fast.errors import MissingFieldError
from ruprompt_fast.integration import check_fits, context_length
from ruprompt_fast.prompts import Prompt
from ruprompt_fast.prompts.ensemble import single_prompt
from ruprompt_fast.prompts.format.texts import text_field
from ruprompt_fast.requests.decoding import TextDecoder
from ruprompt_fast.requests.merging import merged_config
from ruprompt_fast.requests.stopping import stop_ids

# Settings of the tokenizer's call, which apply to a prompt's text form only.
_TOKENIZER_SETTINGS = (
    "prefix",
    "handle_long_generation",
    "add_special_tokens",
    "truncation",
    "padding",
    "tokenizer_encode_kwargs",
)

_DEFAULT_MODEL = ("ai-forever/rugpt3large_based_on_gpt2", "main")


class PromptPipeline(TextGenerationPipeline):
    """A text-generation pipeline whose model is patched with a prompt.

    Args:
        prompt: a prompt, a folder that holds one, or its id on the Hugging Face Hub.
        *args: arguments of ``transformers.TextGenerationPipeline``.
        **kwargs: likewise; generation settings among them are defaults for every call.
    """

    default_generation_parameters: ClassVar[dict[str, Any]] = {}
    _default_new_tokens = 100

    def __init__(self, prompt: Prompt | str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**self.default_generation_parameters, **kwargs})
        self.prompt = single_prompt(prompt)
        self.prompt.patch(self.model, cast(Any, self.tokenizer))
        cast(Any, self.model).to(self.device)
        # At least one token, as in ruPrompts, which knew no end-of-text token but id 0 and decoded that like any other.
        defaults = {
            "eos_token_id": stop_ids(self.model.generation_config, cast(Any, self.tokenizer)),
            "suppress_tokens": self._marker_ids() or None,
            "min_new_tokens": 1,
        }
        for name, value in defaults.items():
            if value is not None:
                self._forward_params.setdefault(name, value)

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Generate for a string, a dict of fields, a list of either, or the fields as keywords."""
        if inputs is None:
            names = self.prompt.format.fields or ("text",)
            inputs = {name: kwargs.pop(name) for name in names if name in kwargs}
            if not inputs:
                raise MissingFieldError(f"give the prompt's field(s) {', '.join(names)}, or a text; found nothing.")
        return super().__call__(inputs, **kwargs)

    def postprocess(self, model_outputs: Any, return_type: Any = ReturnType.FULL_TEXT, **kwargs: Any) -> Any:
        """The texts decoded after the input, with their first space, as ``FastPromptModel`` returns them.

        With settings of the decoding, such as ``skip_special_tokens``, transformers decodes.
        """
        records = super().postprocess(model_outputs, return_type, **kwargs)
        if (
            model_outputs["input_ids"] is None
            or return_type not in (ReturnType.NEW_TEXT, ReturnType.FULL_TEXT)
            or kwargs
        ):
            return records
        row_id = len(cast(Any, self.tokenizer))
        markers = self.prompt.format.prompt_token_ids
        input_ids = [row_id if token in markers else token for token in model_outputs["input_ids"][0].tolist()]
        decoder = TextDecoder(cast(Any, self.tokenizer), row_id)
        before = model_outputs["prompt_text"] if return_type == ReturnType.FULL_TEXT else ""
        for record, sequence in zip(records, model_outputs["generated_sequence"][0].tolist(), strict=True):
            record["generated_text"] = before + decoder.text(input_ids, sequence[len(input_ids) :])
        return records

    def _fields(self, inputs: str | Mapping[str, str]) -> dict[str, str]:
        return {text_field(self.prompt.format.fields): inputs} if isinstance(inputs, str) else dict(inputs)

    def _forward(self, model_inputs: Any, **generate_kwargs: Any) -> Any:
        if self.model.get_input_embeddings() is not self.prompt.ctx.embedding:  # another prompt was attached meanwhile
            self.prompt.attach(self.model, cast(Any, self.tokenizer))
        input_len = model_inputs["input_ids"].shape[1]
        settings = merged_config(generate_kwargs.get("generation_config"), self.model.generation_config, {})
        asked = generate_kwargs.get("max_new_tokens") or settings.max_new_tokens
        if asked is None and generate_kwargs.get("max_length") is None and settings.max_length is None:
            limit = context_length(self.model.config)
            check_fits(self.model.config, input_len, 1, index=0)
            room = self._default_new_tokens if limit is None else limit - input_len
            generate_kwargs["max_new_tokens"] = asked = min(self._default_new_tokens, room)
        check_fits(self.model.config, input_len, asked or 1, index=0)
        return super()._forward(model_inputs, **generate_kwargs)

    def _read(self, fields: Mapping[str, str], shown: str, settings: Mapping[str, Any]) -> Any:
        """The ids of these fields as for serving; None if settings of the tokenizer's call are given."""
        if any(settings.get(name) not in (None, "") for name in _TOKENIZER_SETTINGS):
            return None
        encoded = self.prompt.tokenize(**fields)
        encoded["prompt_text"] = shown
        return encoded

    def _marker_ids(self) -> list[int]:
        vocab_size = self.model.config.get_text_config().vocab_size
        return [marker for marker in self.prompt.format.prompt_token_ids if marker < vocab_size]


class TextGenerationWithPromptPipeline(PromptPipeline):
    """Continues a text after a prompt; task ``text-generation-with-prompt``.

    A prompt without fields comes before the text; one with fields gets the text as its only field, or the field
    ``text``. The result holds the given text and its continuation.

    Args:
        prompt: a prompt, a folder that holds one, or its id on the Hugging Face Hub.
        *args: arguments of ``transformers.TextGenerationPipeline``.
        **kwargs: likewise; generation settings among them are defaults for every call.
    """

    default_generation_parameters: ClassVar[dict[str, Any]] = {"return_full_text": True, "do_sample": True}

    def preprocess(self, inputs: str | Mapping[str, str], **kwargs: Any) -> Any:
        """Tokenize the prompt and the text after it."""
        fields = self._fields(inputs)
        shown = fields.get(text_field(self.prompt.format.fields), "")
        encoded = self._read(fields if self.prompt.format.fields else {"text": shown}, shown, kwargs)
        if encoded is not None:
            return encoded
        if self.prompt.format.fields:
            encoded = super().preprocess(self.prompt(**fields), **kwargs)
        else:
            encoded = super().preprocess(shown, **{**kwargs, "prefix": self.prompt() + kwargs.get("prefix", "")})
        encoded["prompt_text"] = shown
        return encoded


class Text2TextGenerationWithPromptPipeline(PromptPipeline):
    """Generates what follows the formatted input; task ``text2text-generation-with-prompt``.

    Args:
        prompt: a prompt, a folder that holds one, or its id on the Hugging Face Hub.
        *args: arguments of ``transformers.TextGenerationPipeline``.
        **kwargs: likewise; generation settings among them are defaults for every call.
    """

    default_generation_parameters: ClassVar[dict[str, Any]] = {"return_full_text": False, "do_sample": True}

    def preprocess(self, inputs: str | Mapping[str, str], **kwargs: Any) -> Any:
        """Format the fields (a string is the only field, or the field ``text``) and tokenize the result."""
        fields = self._fields(inputs)
        layout = self.prompt.format.layout
        shown, _ = layout.render(fields, [""] * len(layout.slots))
        encoded = self._read(fields, shown, kwargs)
        if encoded is not None:
            return encoded
        formatted = self.prompt(**fields)
        encoded = super().preprocess(formatted, **kwargs)
        encoded["prompt_text"] = formatted.replace(self.prompt.format.prompt_token, "")
        return encoded


for _task, _pipeline in {
    "text-generation-with-prompt": TextGenerationWithPromptPipeline,
    "text2text-generation-with-prompt": Text2TextGenerationWithPromptPipeline,
}.items():
    if _task not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            _task,
            pipeline_class=_pipeline,
            pt_model=AutoModelForCausalLM,
            default={"model": _DEFAULT_MODEL},
            type="text",
        )
