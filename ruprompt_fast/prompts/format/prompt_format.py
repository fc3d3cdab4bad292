"""PromptFormat: a template, compiled for a tokenizer, that turns fields into text or ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ruprompt_fast.errors import NotInitializedError, TemplateError, shown
from ruprompt_fast.prompts.format.base_format import BasePromptFormat, Ranges
from ruprompt_fast.prompts.format.encoding import EncodedPrompt, encode_layout
from ruprompt_fast.prompts.format.init_texts import ids_in_place
from ruprompt_fast.prompts.format.layout import Layout, Rows, field_names
from ruprompt_fast.prompts.format.marker_tokens import marker_token
from ruprompt_fast.prompts.format.special_tokens import Reading, SpecialTokens
from ruprompt_fast.prompts.format.template import (
    PROMPT_TOKEN,
    check_template,
    compile_parts,
    marker_for_key,
    parse_compiled,
    parse_template,
)
from ruprompt_fast.prompts.format.text_form import TextForm
from ruprompt_fast.prompts.format.tokenizer_state import tokenizer_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptFormat(BasePromptFormat):
    """Arranges virtual tokens, literal text and fields.

    In a template ``<P>`` is one virtual token (a row of the prompt's numbers), ``<P*20>`` are twenty,
    ``<P>some text</P>`` is one for each token of the text, initialized from its embedding, and ``{name}`` is a field.
    Braces are written twice to mean themselves.

    ``<bos>``, ``<eos>`` and the text of any special token of the tokenizer are that token. The special tokens
    that the tokenizer itself puts around every text are where ``<|leading|>`` and ``<|trailing|>`` say, and are not
    added a second time where the template holds them already, as ``<P*40><bos>{text}`` does. Where a template says
    nothing, they are at the very beginning and the end, as in ruPrompts; PEFT's order is ``<P*40><|leading|>{text}``.

        >>> format = PromptFormat("<P*3>{text}<P>")
        >>> format.initialize(tokenizer)
        >>> format(text="one two", return_ranges=True)
        ('<|P|><|P|><|P|>one two<|P|>', {'text': slice(15, 22, None)})
        >>> format.encode({"text": "one two"}, tokenizer).input_ids
        [50257, 50258, 50259, 505, 734, 50260]

    Two forms come out. The text form, from calling the format, has the marker ``<|P|>`` for every row, as in ruPrompts;
    fields may not contain markers or special tokens. :meth:`encode` gives ids with row ids inside; there all text is
    plain text.

    Values must be strings; the caller converts numbers.

    Args:
        template: the template.
        compiled_template: its compiled form, as stored in ``prompt.json``.
        tokenizer: initializes the format at once.

    Attributes:
        template: the template.
        compiled_template: the compiled form; None before initialization.
        prompt_token: the marker of the text form.
        key: the key in the marker, or None.

    Raises:
        TemplateError: one of the templates cannot be read.
    """

    def __init__(
        self,
        template: str,
        compiled_template: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        check_template(template)
        self.template = template
        self.compiled_template = compiled_template
        self.prompt_token = PROMPT_TOKEN
        self.key: str | None = None
        self._layout: Layout | None = None
        self._specials: SpecialTokens | None = None
        self._text_form: TextForm | None = None  # made when it is first asked for, and again when the format changes
        self._init_tokens: dict[int, int] = {}
        self._prompt_token_ids: list[int] = []
        if compiled_template is None:
            self._fields = field_names(parse_template(template))
        else:
            self._layout, self.key = parse_compiled(compiled_template)
            self._fields = self._layout.fields
            self.prompt_token = marker_for_key(self.key)
        if tokenizer is not None:
            self.initialize(tokenizer)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in order of appearance."""
        return self._fields

    @property
    def layout(self) -> Layout:
        """The compiled template's parts.

        Raises:
            NotInitializedError: the format is not initialized.
        """
        if self._layout is None:
            raise NotInitializedError(
                f"the format {shown(self.template)} is not initialized; call initialize(tokenizer) on it or on its "
                "prompt."
            )
        return self._layout

    @property
    def is_initialized(self) -> bool:
        """Whether the format is compiled."""
        return self._layout is not None

    @property
    def prompt_length(self) -> int | None:
        """The number of virtual tokens; None before initialization."""
        return None if self._layout is None else self._layout.prompt_length

    @property
    def init_tokens(self) -> dict[int, int] | None:
        """Token ids to initialize rows from, by row; None before initialization, empty for a reloaded format."""
        return None if self._layout is None else self._init_tokens

    @property
    def prompt_tokens(self) -> list[str]:
        """The marker of the text form, as a list of one."""
        return [self.prompt_token]

    @property
    def prompt_token_ids(self) -> list[int]:
        """The marker's id, as a list of one; empty before :meth:`add_tokens`."""
        return self._prompt_token_ids

    def initialize(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compile the template; a format that is compiled already only learns the tokenizer's special tokens.

        Raises:
            TemplateError: a text between ``<P>`` and ``</P>`` has no tokens, or the tokenizer lacks a special token
                that the template names.
        """
        specials = self._learn(tokenizer)
        if self._layout is not None:
            return
        parts = parse_template(self.template)
        ids = iter(ids_in_place(parts, tokenizer))
        layout, self._init_tokens = compile_parts(parts, lambda text: next(ids))
        self._layout = specials.compile(layout)
        self.compiled_template = self._layout.compiled(self.prompt_token)

    def set_key(self, key: str | None = None) -> None:
        """Change the marker to ``<|[key]P|>``, or back to ``<|P|>``; :meth:`add_tokens` must be called again.

        Raises:
            TemplateError: the key contains a part of a marker.
        """
        marker = marker_for_key(key)
        self.key = key
        if marker == self.prompt_token:
            return
        self.prompt_token = marker
        self._prompt_token_ids = []
        self._text_form = None
        if self._layout is not None:
            self.compiled_template = self._layout.compiled(marker)

    def add_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Add the marker to a tokenizer, for the text form; returns its id, as a list of one."""
        if self.prompt_token not in tokenizer.get_added_vocab():
            tokenizer.add_tokens([marker_token(tokenizer, self.prompt_token)])
        self._prompt_token_ids = [tokenizer.get_added_vocab()[self.prompt_token]]
        self._learn(tokenizer)
        return self._prompt_token_ids

    def format(self, item: Mapping[str, Any], return_ranges: bool = False) -> str | tuple[str, Ranges]:
        """Format one item, see :meth:`__call__`."""
        if self._text_form is None:
            self._text_form = TextForm(self.layout, self._specials, self.prompt_token)
        return self._text_form.format(item, return_ranges)

    def encode(
        self,
        fields: Mapping[str, str],
        tokenizer: PreTrainedTokenizerBase,
        first_row_id: int | None = None,
        add_special_tokens: bool = True,
        is_continued: bool = False,
        reads_control_text: bool = False,
    ) -> EncodedPrompt:
        """Turn fields into ids, with row k of the prompt as the id ``first_row_id + k``.

        The ids are those that tokenizing the text form gives after :meth:`add_tokens`, special tokens included, with
        row ids in place of the markers. But the tokenizer is not changed, fields that contain markers, braces or
        special tokens are plain text, and special tokens are where the template says. What follows rows and the
        tokenizer's leading tokens has the ids that the tokenizer gives to a text of its own. Tokenizing is the cost: a
        run of rows counts as one token, whatever its length.

        Args:
            fields: the value of every field; other entries are ignored.
            tokenizer: the model's tokenizer.
            first_row_id: the id of the first virtual token; defaults to the smallest id that the tokenizer cannot give.
            add_special_tokens: whether to add the tokenizer's special tokens, such as a beginning-of-text token.
            is_continued: whether a decoder continues the text. The tokens that the tokenizer puts after every text
                are then left out, unless the template holds them; an encoder reads them.
            reads_control_text: whether a special token's text in a field is that token, as when the tokenizer reads it.

        Raises:
            NotInitializedError: the format is not initialized.
            MissingFieldError: a field has no value.
            FieldTypeError: a value is not a string.
            TokenIdError: ``first_row_id`` is an id that the tokenizer can give.
            TemplateError: the tokenizer lacks a special token that the template names.
        """
        reading = Reading(add_special_tokens, is_continued, reads_control_text)
        return self.encode_batch([fields], tokenizer, first_row_id, *reading)[0]

    def encode_batch(
        self,
        list_of_fields: Sequence[Mapping[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        first_row_id: int | None = None,
        add_special_tokens: bool = True,
        is_continued: bool = False,
        reads_control_text: bool = False,
    ) -> list[EncodedPrompt]:
        """Encode several items in one call of the tokenizer, see :meth:`encode`."""
        reading = Reading(add_special_tokens, is_continued, reads_control_text)
        return encode_layout(self.layout, list_of_fields, tokenizer, self.prompt_token, reading, first_row_id)

    def static_prefix(
        self,
        tokenizer: PreTrainedTokenizerBase,
        first_row_id: int | None = None,
        add_special_tokens: bool = True,
    ) -> list[int]:
        """The ids before the first field, up to the last virtual token there and the special tokens right after it.

        They begin every :meth:`encode` of the same arguments, so their keys and values can be kept. Literal text after
        that row is left out: its tokens may join those of the field. Empty if no row comes before the first field.
        """
        empty = dict.fromkeys(self.fields, "")
        encoded = self.encode(empty, tokenizer, first_row_id, add_special_tokens)
        return encoded.input_ids[: encoded.prefix_len]

    def with_text(self) -> PromptFormat:
        """The format of a request: one without fields is a prefix, which the field ``text`` follows, as in ruPrompts.

        Raises:
            NotInitializedError: the format is not initialized.
            TemplateError: nothing can follow the tokens that the tokenizer puts after a text.
        """
        state = self.as_dict()
        if self.fields:
            return self
        return PromptFormat(state["template"] + "{text}", compiled_template=state["compiled_template"] + "{text}")

    def without_leading_rows(self) -> PromptFormat:
        """The format of the text after a deep prompt, whose rows are no part of what is tokenized.

        Raises:
            NotInitializedError: the format is not initialized.
            TemplateError: the rows are not one run at the very start.
        """
        parts = self.layout.parts
        if len(self.layout.runs) != 1 or not isinstance(parts[0], Rows):
            raise TemplateError(
                f"the rows of a deep prompt are one run at the very start of the template, as in '<P*20>{{text}}'; "
                f"found {shown(self.template)}. Move them there, or use TensorPromptProvider."
            )
        compiled = Layout(parts[1:]).compiled(self.prompt_token)
        return PromptFormat(compiled, compiled)

    def as_dict(self) -> dict[str, Any]:
        """The arguments that make an equal format, as stored in ``prompt.json``.

        Raises:
            NotInitializedError: the format is not initialized.
        """
        _ = self.layout
        return {"template": self.template, "compiled_template": self.compiled_template}

    def _learn(self, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        self._specials = tokenizer_state(tokenizer).specials(tokenizer)
        self._text_form = None
        return self._specials

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.template!r}, compiled_template={self.compiled_template!r})"
