"""Deep prompts: keys and values for every layer, which come before the text (prefix tuning, Li and Liang 2021)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ruprompt_fast.errors import PromptInitError, PromptLengthError, UnsupportedModelError
from ruprompt_fast.precision import without_autocast
from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider
from ruprompt_fast.prompts.providers.kv_shape import KVShape, check_kv_shape, kv_shape_of
from ruprompt_fast.prompts.providers.reparametrized import check_sizes, follow, seeded, two_layers
from ruprompt_fast.prompts.providers.row_init import RowInit, check_init_tokens, check_prompt_length, check_tokens
from ruprompt_fast.prompts.providers.tensor_provider import given_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MODES = ("vocab", "random", "text")


class PrefixTuningProvider(BasePromptProvider):
    """Keys and values of every layer, trained directly or through a two-layer network.

    The prompt is at positions 0 to rows - 1, before the text and its special tokens. A row holds the keys and
    values of one position, by layer and key before value: PEFT's layout of prefix tuning. Keys are what the model's
    cache holds, so nothing rotates them any more.

    Training starts from the keys and values of real tokens, as the paper found best: the model reads the tokens once.
    With ``hidden_dim`` the output of a network over trained inputs is added to them; its last layer starts at zero.
    What is saved is the keys and values, without the network.

    Args:
        init: the tokens whose keys and values come first: ``vocab`` draws distinct ones from the vocabulary, ``text``
            takes those of a text, repeated or cut. ``random`` draws numbers from a normal distribution instead.
        text: the text of ``init="text"``.
        hidden_dim: None makes the keys and values themselves the parameters; a number trains them through a network
            with a hidden layer of that width, -1 of the model's.
        seed: makes the first values repeatable.
        std: standard deviation of ``init="random"``.

    Attributes:
        weights: the parameter, [rows, kv_shape.row_width]; None before initialization, and with a network.

    Raises:
        PromptInitError: ``init`` is not known, or the arguments do not belong together.
    """

    is_deep = True
    weights: nn.Parameter | None
    inputs: nn.Parameter | None
    start: Tensor | None

    def __init__(
        self,
        init: Literal["vocab", "random", "text"] = "vocab",
        *,
        text: str | None = None,
        hidden_dim: int | None = None,
        seed: int | None = None,
        std: float = 1.0,
    ) -> None:
        super().__init__()
        if init not in _MODES:
            raise PromptInitError(f"init of a deep prompt must be one of {', '.join(_MODES)}; found {init!r}.")
        if hidden_dim is not None:
            check_sizes(hidden_dim=hidden_dim)
        self.init = init
        self.hidden_dim = hidden_dim
        self._row_init: RowInit | None = RowInit(init, text, seed=seed, std=std)
        # Not registered as a submodule (hence the tuple): the model is only read from.
        self._model: tuple[PreTrainedModel] | None = None
        self.register_parameter("weights", None)
        self.register_parameter("inputs", None)
        self.register_buffer("start", None)
        self.mlp: nn.Sequential | None = None

    def bind_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the tokenizer that the text and the vocabulary are of."""
        if self._row_init is not None:
            self._row_init.tokenizer = tokenizer

    def bind_model(self, model: PreTrainedModel) -> None:
        """Take the model to read keys and values from; of initialized rows check that they are for it.

        Raises:
            UnsupportedModelError: an encoder-decoder, or a model whose layers differ.
            PromptMismatchError: the rows are for a model of other sizes.
        """
        if self.kv_shape is None:
            kv_shape_of(model.config)
            self._model = (model,)
        else:
            check_kv_shape(self.kv_shape, model.config)

    def initialize(
        self, prompt_length: int, embedding_dim: int, embedding: nn.Module, init_tokens: dict[int, int]
    ) -> None:
        """Make the first keys and values, see :meth:`BasePromptProvider.initialize`.

        Raises:
            PromptLengthError: no rows, or more than the model has positions.
            PromptTooLongError: more rows than there are tokens to draw from.
            PromptInitError: :meth:`bind_model` was not called, or the arguments do not belong together.
            UnsupportedModelError: the layers' keys and values have other shapes than the model's config says.
        """
        if self._row_init is None:
            return
        check_prompt_length(prompt_length)
        if self._model is None:
            raise PromptInitError("a deep prompt is made from the model: initialize the provider through its Prompt.")
        (model,) = self._model
        shape = kv_shape_of(model.config)
        start = _first_rows(self._row_init, model, shape, prompt_length, embedding, init_tokens)
        if self.hidden_dim is None:
            self.weights = nn.Parameter(start)
        else:
            self.hidden_dim = embedding_dim if self.hidden_dim == -1 else self.hidden_dim
            self.start = start
            with seeded(self._row_init.seed):
                self.inputs = nn.Parameter(torch.randn(prompt_length, embedding_dim))
                self.mlp = two_layers(embedding_dim, self.hidden_dim, shape.row_width, from_zero=True)
        follow(self, embedding)
        self.kv_shape = shape
        self._row_init = self._model = None  # copies of the provider should carry neither

    def forward(self) -> Tensor:
        """The rows, [rows, kv_shape.row_width]; :meth:`keys_values` are views of them."""
        if self.weights is not None:
            return self.weights
        if self.start is None or self.inputs is None or self.mlp is None:
            raise self._uninitialized()
        return self.start + cast(Tensor, self.mlp(self.inputs))

    def keys_values(self) -> list[tuple[Tensor, Tensor]]:
        """The key and value of every layer, each [rows, num_key_value_heads, head_dim], with their graph.

        Raises:
            NotInitializedError: there are none yet.
        """
        if self.kv_shape is None:
            raise self._uninitialized()
        parameter = cast(Tensor, self.inputs if self.weights is None else self.weights)
        with without_autocast(parameter.device):
            return self.kv_shape.split(self())

    @property
    def num_rows(self) -> int:
        """How many positions the keys and values take.

        Raises:
            NotInitializedError: there are none yet.
        """
        rows = self.start if self.weights is None else self.weights
        if rows is None:
            raise self._uninitialized()
        return rows.shape[0]

    @property
    def is_initialized(self) -> bool:
        """Whether the keys and values exist."""
        return self.kv_shape is not None

    @classmethod
    def from_pretrained(cls, weights: Tensor, kv_shape: KVShape) -> PrefixTuningProvider:
        """A provider with a copy of these rows, which are its parameter.

        Args:
            weights: [rows, kv_shape.row_width].
            kv_shape: the sizes of the keys and values.

        Raises:
            PromptInitError: ``weights`` is not a dense floating-point tensor of that width.
            NonFiniteRowsError: it contains NaN or infinity.
        """
        parameter = given_rows(weights)
        if parameter.shape[1] != kv_shape.row_width:
            raise PromptInitError(
                f"rows of a deep prompt for {kv_shape} must be {kv_shape.row_width} wide; found {parameter.shape[1]}."
            )
        provider = cls()
        provider._row_init = None
        provider.weights = parameter
        provider.kv_shape = kv_shape
        return provider


def _first_rows(
    row_init: RowInit,
    model: PreTrainedModel,
    shape: KVShape,
    prompt_length: int,
    embedding: nn.Module,
    init_tokens: dict[int, int],
) -> Tensor:
    """[prompt_length, shape.row_width] on the model's device; :func:`follow` decides the dtype."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and prompt_length >= positions:
        raise PromptLengthError(
            f"{prompt_length} rows leave no room for text in the model's context of {positions}; use fewer rows."
        )
    weight = cast(Tensor, embedding.weight)
    if row_init.mode == "random":
        if init_tokens:
            raise PromptInitError(
                "the template's <P>text</P> wants rows that start from tokens, init='random' draws numbers. Write "
                "<P*N>, or use init='vocab'."
            )
        read_keys_values(model, [0], shape)  # a model that is not as its config says should be refused here
        return row_init.noise(prompt_length, shape.row_width).to(weight.device)
    check_init_tokens(init_tokens, prompt_length)
    ids = row_init.token_ids(prompt_length, weight.shape[0])
    ids = [init_tokens.get(row, token) for row, token in enumerate(ids)]
    check_tokens(ids, weight.shape[0])
    return read_keys_values(model, ids, shape)


def read_keys_values(model: PreTrainedModel, ids: Sequence[int], shape: KVShape) -> Tensor:
    """What the model keeps of single tokens at positions 0, 1, ...; [len(ids), shape.row_width].

    Args:
        model: a decoder; it reads the tokens in evaluation mode, and is in its own again afterwards.
        ids: token ids.
        shape: the sizes that its config gives.

    Raises:
        UnsupportedModelError: the model keeps something else.
    """
    from transformers import DynamicCache

    if "past_key_values" not in inspect.signature(model.base_model.forward).parameters:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes no keys and values from outside; use TensorPromptProvider for it."
        )
    cache = DynamicCache()  # without the config: sliding layers keep every token, too
    input_ids = torch.tensor([list(ids)], device=model.device)
    with torch.no_grad(), _evaluating(model):
        model.base_model(input_ids=input_ids, past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    expected = (1, shape.num_key_value_heads, len(ids), shape.head_dim)
    found = [tuple(getattr(part, "shape", ())) for layer in layers for part in (layer.keys, layer.values)]
    if found != [expected] * (2 * shape.num_layers):
        raise UnsupportedModelError(
            f"a deep prompt needs keys and values {list(expected)} in each of {shape.num_layers} layers, as the config "
            f"says; {type(model).__name__} keeps {sorted(set(found))} in {len(layers)}. Use TensorPromptProvider."
        )
    rows = torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in layers])
    return rows.permute(3, 0, 1, 2, 4).reshape(len(ids), shape.row_width)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block, the model and all its parts are in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
