"""Prompt: a format and a provider that belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ruprompt_fast.errors import NotInitializedError, PromptInitError
from ruprompt_fast.prompts import patching
from ruprompt_fast.prompts.files.prompt_config import PromptConfig
from ruprompt_fast.prompts.files.prompt_folder import StoredPrompt
from ruprompt_fast.prompts.files.storage import StoredPromptMixin
from ruprompt_fast.prompts.format.base_format import BasePromptFormat
from ruprompt_fast.prompts.format.patched_input import tokenize_for_patched
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.format.texts import add_text
from ruprompt_fast.prompts.prompt_context import PromptContext
from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider
from ruprompt_fast.prompts.providers.module_provider import as_provider
from ruprompt_fast.prompts.providers.prefix_tuning import PrefixTuningProvider
from ruprompt_fast.prompts.providers.tensor_provider import TensorPromptProvider

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Self


class Prompt(StoredPromptMixin):
    """A soft prompt: how its rows, texts and fields are arranged, and the rows.

        >>> prompt = Prompt(PromptFormat("<P*60>{text}<P*20>"), TensorPromptProvider())
        >>> prompt.patch(model, tokenizer)  # train the model's parameters named "prompt_provider"
        >>> prompt.save_pretrained("my_prompt")

        >>> prompt = Prompt.from_pretrained("konodyuk/prompt_rugpt3large_joke")
        >>> prompt.patch(model, tokenizer)
        >>> model.generate(**prompt.tokenize("Заходят в бар"))

    Args:
        format: the arrangement.
        provider: what makes the rows; any other module that returns [rows, width] is wrapped into a provider.
        config: what is known about the model it is for.

    Attributes:
        format: the format.
        provider: the provider.
        config: the config.
        ctx: what the prompt is in use with.

    Raises:
        PromptInitError: ``format`` or ``provider`` is something else.
    """

    def __init__(
        self, format: BasePromptFormat, provider: BasePromptProvider | nn.Module, config: PromptConfig | None = None
    ) -> None:
        if not isinstance(format, BasePromptFormat):
            raise PromptInitError(f"a prompt needs a PromptFormat; found {type(format).__name__}.")
        # Nearly every format is a PromptFormat; the others' users know what theirs lacks.
        self.format = cast(PromptFormat, format)
        self.provider = as_provider(provider)
        self.config = PromptConfig() if config is None else config
        self.ctx = PromptContext()
        self._patched: PreTrainedModel | None = None  # ctx.model may be one that was only initialized with

    @property
    def is_initialized(self) -> bool:
        """Whether the prompt has its compiled format and its rows."""
        return self.ctx.is_initialized

    @property
    def is_attached(self) -> bool:
        """Whether a model is patched with the prompt."""
        return self.ctx.is_attached

    def patch(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Initialize the prompt and attach it: :meth:`initialize`, then :meth:`attach`.

        Raises:
            PromptInitError: a deep prompt, which no embedding can hold.
        """
        patching.refuse_deep([self])
        self.initialize(model, tokenizer)
        self.attach(model, tokenizer)

    def initialize(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compile the format and make the rows; of a loaded prompt check that it is for this model.

        Raises:
            PromptLengthError: the template has no rows, or too many to initialize.
            PromptInitError: the provider cannot be initialized in this way.
            PromptMismatchError: the rows were made for another template, width or model.
            TemplateError: the rows of a deep prompt are not one run at the template's very start.
            UnsupportedModelError: a deep prompt, and an encoder-decoder or a model whose layers differ.
        """
        self.format.initialize(tokenizer)
        if self.provider.is_deep:
            self.format.without_leading_rows()
        embedding = patching.original_embedding(model)
        width = patching.embedding_width(embedding)
        length = cast(int, self.format.prompt_length)
        was_initialized = self.provider.is_initialized
        self.provider.bind_tokenizer(tokenizer)
        self.provider.bind_model(model)
        self.provider.initialize(length, width, embedding, self.format.init_tokens or {})
        row_width = self.provider.row_width(width)
        patching.check_rows(self.provider, length, row_width, self.config.pretrained_model_name)
        if was_initialized:
            patching.check_base(self, model)
        else:
            self.config.base_model = patching.base_of(model)
        self.config.prompt_length = length
        self.config.embedding_dim = row_width
        self.config.kv_shape = self.provider.kv_shape
        if not was_initialized or self.config.pretrained_model_name is None:
            # A loaded prompt keeps the name it was trained under, which says more than the path of a copy.
            self.config.pretrained_model_name = getattr(model.config, "name_or_path", None) or ""
        self.ctx.model = model
        self.ctx.tokenizer = tokenizer
        self.ctx.is_initialized = True

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Replace the model's input embedding and add the marker to the tokenizer.

        Whatever is attached to this model is detached from it, and this prompt from any other model.

        Raises:
            NotInitializedError: the prompt is not initialized.
            PromptInitError: a deep prompt, which no embedding can hold.
            PromptMismatchError: the rows were made for another width; nothing is changed then.
        """
        if not self.is_initialized:
            raise NotInitializedError("a prompt must be initialized before it is attached; patch() does both.")
        embedding = patching.attach([self], model, tokenizer)
        if self._patched is not None and self._patched is not model:
            patching.detach(self._patched, self.ctx.embedding)
        self.ctx.embedding = embedding
        self._patched = self.ctx.model = model
        self.ctx.tokenizer = tokenizer
        self.ctx.is_attached = True

    def detach(self, model: PreTrainedModel | None = None) -> None:
        """Give a model its own embedding back, the same object; the marker stays in the tokenizer.

        Args:
            model: the model to restore, whatever it is patched with. Defaults to the one that this prompt is attached
                to, and leaves it alone if another prompt has been attached since.
        """
        if model is not None:
            patching.detach(model)
        elif self._patched is not None:
            patching.detach(self._patched, self.ctx.embedding)
        self._patched = None
        self.ctx.embedding = None
        self.ctx.is_attached = False

    def rows(self) -> Tensor:
        """A copy of the rows, [prompt_length, width], without a graph.

        Raises:
            NotInitializedError: there are none yet.
        """
        rows: Tensor = self.provider()
        return rows.detach().clone()

    def __call__(self, text: str | None = None, **fields: Any) -> Any:
        """The text form, see :meth:`PromptFormat.__call__`.

        Args:
            text: the only field, or the field ``text``.
            fields: the other fields; also ``return_ranges``.
        """
        add_text(fields, text, self.format.fields)
        return self.format(**fields)

    def tokenize(self, text: str | None = None, **fields: str) -> BatchEncoding:
        """What the patched model reads, for ``model.generate(**prompt.tokenize("..."))``.

        Unlike ``tokenizer(prompt("..."))`` it puts special tokens where the template says, leaves out those that the
        tokenizer puts after a text that a decoder goes on with, and takes any text as text.

        Args:
            text: the only field, or the field ``text``; a prompt without fields comes before it.
            fields: the other fields.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 [1, tokens], on the model's device.

        Raises:
            NotInitializedError: the prompt is not attached to a model.
            MissingFieldError, FieldTypeError: a field has no value, or one that is not a string.
        """
        add_text(fields, text, self.format.fields)
        return tokenize_for_patched(self.format, self.ctx, fields)

    def as_dict(self) -> dict[str, Any]:
        """What ``prompt.json`` holds.

        Raises:
            NotInitializedError: the prompt is not initialized.
        """
        if not self.is_initialized:
            raise NotInitializedError("a prompt must be initialized before it is saved; call patch() or initialize().")
        base = self.config.base_model
        return {
            "format": self.format.as_dict(),
            "config": self.config.as_dict(),
            **({} if base is None else {"base_model": base.as_dict()}),
        }

    @classmethod
    def _from_stored(cls, stored: StoredPrompt) -> Self:
        shape = stored.config.kv_shape
        provider: BasePromptProvider = (
            TensorPromptProvider.from_pretrained(stored.rows)
            if shape is None
            else PrefixTuningProvider.from_pretrained(stored.rows, shape)
        )
        prompt = cls(stored.format, provider, stored.config)
        prompt.ctx.is_initialized = True
        return prompt

    def __repr__(self) -> str:
        state = "initialized" if self.is_initialized else "not initialized"
        return f"{type(self).__name__}({self.format.template!r}, {type(self.provider).__name__}, {state})"
