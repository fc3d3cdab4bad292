"""The embedding layer that also has the virtual tokens (rows) of soft prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ruprompt_fast.embedding.saving import hide_from_save
from ruprompt_fast.errors import PromptMismatchError, UnsupportedModelError
from ruprompt_fast.ops import resolve_markers, splice
from ruprompt_fast.precision import PreciseModules, widen, without_autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The embedding that a call brings rows for, and these rows; every thread has its own.
_CALL_ROWS: ContextVar[tuple[nn.Module, Tensor] | None] = ContextVar("call_rows", default=None)


@dataclass(frozen=True)
class PromptSlot:
    """One prompt in an embedding: the provider of its virtual tokens, their number, and the token that marks them.

    Attributes:
        provider: a module that returns the rows, [num_rows, width].
        num_rows: the number of virtual tokens.
        marker_id: the id whose k-th occurrence in a sequence is virtual token k; None if ids name the virtual tokens
            directly.
    """

    provider: nn.Module
    num_rows: int
    marker_id: int | None = None


@dataclass(frozen=True)
class Attachment:
    """Where an embedding is attached: the model, and (parent, name, child) for every child module that it replaced."""

    model: PreTrainedModel
    replaced: list[tuple[nn.Module, str, nn.Module | None]]


class SplicedEmbedding(nn.Module):
    """Looks up token ids in the original embedding and prompt ids in the virtual tokens of soft prompts.

    Semantics, for ids [..., sequence]::

        ids = resolve_markers(ids)            # k-th marker of a prompt -> the id of its row k
        rows = torch.cat([slot.provider() for slot in slots])
        out = torch.where(ids < first_prompt_id, original(ids), rows[ids - first_prompt_id])

    A virtual token replaces the *output* of the original embedding: modules that scale what they look up (Gemma) scale
    tokens only. The layer owns the original's ``weight`` under the same name, so a model's ``state_dict``, tied output
    layer and ``tie_weights()`` see no difference; the providers are submodules of ``prompt_providers`` and train as
    usual, in float32 whatever the model's dtype is or becomes.

    Args:
        original: the embedding module to replace; kept, and given back by :func:`detach_prompts`.
        first_prompt_id: the id of the first virtual token, above every token id and marker; defaults to the table's
            size.
        slots: the prompts, in the order of their virtual tokens.

    Raises:
        UnsupportedModelError: ``original`` has no two-dimensional ``weight``, or has submodules.
        PromptMismatchError: a provider's rows have another shape than its slot or the embedding says.
    """

    weight: nn.Parameter

    def __init__(
        self, original: nn.Module, first_prompt_id: int | None = None, slots: Sequence[PromptSlot] = ()
    ) -> None:
        super().__init__()
        weight = getattr(original, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
            raise UnsupportedModelError(
                f"the input embedding must have a weight of [tokens, width]; found {type(original).__name__}. "
                "Soft prompts need a model that embeds its tokens with one table."
            )
        # Code that switches or merges an adapter looks among the model's modules, where the original is not.
        # PEFT's adapters, and those like them, hold what they wrap as `base_layer`.
        if hasattr(original, "base_layer"):
            raise UnsupportedModelError(
                f"the input embedding must be a table without an adapter; found {type(original).__name__}. Merge it "
                "into the table first (PEFT: merge_and_unload())."
            )
        self.weight = weight
        self.first_prompt_id = max(weight.shape[0], first_prompt_id or 0)
        self.prompt_providers = PreciseModules()
        self.deep_prompt_providers = PreciseModules()
        self.slots: list[PromptSlot] = []
        self._prompt_starts: list[int] = []
        self._markers: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._rows_cache: tuple[tuple[Any, ...], Tensor] | None = None
        self.is_served = False  # whether an engine runs the model with its own layers
        # In a tuple, so that it is no submodule: its weight would be in the state dict twice.
        self._original = (original,)
        self.training = original.training
        self._attachment: Attachment | None = None
        for slot in slots:
            self.add_slot(slot)

    @property
    def original(self) -> nn.Module:
        """The module that this one replaces, sharing its weight."""
        module = self._original[0]
        if module.weight is not self.weight:  # replaced by tie_weights() or a conversion
            module.weight = self.weight
        return module

    @property
    def first_row_id(self) -> int:
        """The id of a prompt's virtual token 0 in a request; ``first_prompt_id``, the id before it, is for padding.

        The rows of a call (:meth:`rows_for_call`) begin at ``first_prompt_id``, so their table has a row for padding or
        its ids are moved down. The slots' rows, which train, have no padding.
        """
        return self.first_prompt_id + 1

    @property
    def num_embeddings(self) -> int:
        """Rows of the token table."""
        return self.weight.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Width of every row."""
        return self.weight.shape[1]

    @property
    def padding_idx(self) -> int | None:
        """The original's padding id."""
        return cast("int | None", getattr(self._original[0], "padding_idx", None))

    def add_slot(self, slot: PromptSlot) -> range:
        """Add one prompt after the others, with its parameters in float32; returns the ids of its virtual tokens."""
        with torch.no_grad():
            shape = tuple(slot.provider().shape)
        if len(shape) != 2 or shape[0] != slot.num_rows or shape[1] != self.row_width:
            raise PromptMismatchError(
                f"the prompt must give {slot.num_rows} rows of width {self.row_width}; "
                f"its provider {type(slot.provider).__name__} gives {list(shape)}. "
                "Use a prompt that was made for this model and template."
            )
        start = self.first_prompt_id + sum(known.num_rows for known in self.slots)
        if slot.marker_id is not None:
            if slot.marker_id >= self.first_prompt_id:
                raise PromptMismatchError(
                    f"the marker's id {slot.marker_id} must lie below the first prompt id {self.first_prompt_id}; "
                    "attach the prompts together so that room is left for every marker."
                )
            for column, value in zip(self._markers, (slot.marker_id, start, slot.num_rows), strict=True):
                column.append(value)
        slot.provider.train(self.training)
        widen(slot.provider)
        self.slots.append(slot)
        self._prompt_starts.append(start)
        self.prompt_providers.append(slot.provider)
        self._rows_cache = None
        if self._attachment is not None:
            hide_from_save(self._attachment.model)
        return range(start, start + slot.num_rows)

    def add_deep_provider(self, provider: nn.Module) -> None:
        """Let a provider of keys and values train with the model; the embedding itself does not use it."""
        provider.train(self.training)
        widen(provider)
        self.deep_prompt_providers.append(provider)
        if self._attachment is not None:
            hide_from_save(self._attachment.model)

    def prompt_ids(self, slot_index: int) -> range:
        """The ids of a slot's virtual tokens."""
        start = self._prompt_starts[slot_index]
        return range(start, start + self.slots[slot_index].num_rows)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed ids [..., sequence] of tokens, markers and virtual tokens as [..., sequence, width].

        Raises:
            MarkerCountError: a sequence has another number of markers than the prompt has virtual tokens.
            TokenIdError: an id is in neither table.
        """
        if self._markers[0] and self._call_rows() is None:
            input_ids = resolve_markers(input_ids, *self._markers)
        rows = self.prompt_rows()
        if self._is_plain_lookup():
            return splice(input_ids, self.weight, rows, self.first_prompt_id)
        return _overlay(self.original, input_ids, rows, self.first_prompt_id)

    def prompt_rows(self) -> Tensor:
        """All rows, [num_rows, width], in the embedding's dtype; kept between calls while nothing trains.

        Without the cache every decoding step would run an LSTM provider again. A changed parameter is noticed by its
        version, which operations in place raise, except those on its ``.data``.
        """
        if (given := self._call_rows()) is not None:
            return given
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._compute_rows()
        key = self._rows_key()
        if key is None:
            return self._compute_rows()
        if self._rows_cache is None or self._rows_cache[0] != key:
            self._rows_cache = (key, self._compute_rows())
        return self._rows_cache[1]

    @contextmanager
    def rows_for_call(self, rows: Tensor) -> Iterator[None]:
        """Within the block, on this thread, ids from ``first_prompt_id`` on name these rows [rows, width].

        They replace the slots' rows. Other threads that run the model keep their own.
        """
        token = _CALL_ROWS.set((self, rows))
        try:
            yield
        finally:
            _CALL_ROWS.reset(token)

    def _call_rows(self) -> Tensor | None:
        # A compiled call never brings rows: the engine and generate run the module as it is.
        given = None if torch.compiler.is_compiling() else _CALL_ROWS.get()
        return given[1] if given is not None and given[0] is self else None

    def _compute_rows(self) -> Tensor:
        if not self.slots:
            return self.weight.new_empty((0, self.row_width))
        with without_autocast(self.weight.device):
            parts = [provider().to(self.weight.dtype) for provider in self.prompt_providers]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _rows_key(self) -> tuple[Any, ...] | None:
        tensors = [*self.prompt_providers.parameters(), *self.prompt_providers.buffers()]
        if self.training or not tensors or any(tensor.is_inference() for tensor in tensors):
            return None
        versions = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        return (self.weight.dtype, self.weight.device, versions)

    def _is_plain_lookup(self) -> bool:
        original: Any = self._original[0]
        if type(original).forward is not nn.Embedding.forward or original.max_norm is not None:
            return False
        # F.embedding gives the padding row no gradient, and scales by frequency on request; the op does neither.
        trains = self.weight.requires_grad and torch.is_grad_enabled()
        return not trains or (original.padding_idx is None and not original.scale_grad_by_freq)

    @property
    def row_width(self) -> int:
        """Width of the embedding's output, and so of a virtual token."""
        return cast(int, getattr(self._original[0], "embedding_dim", self.weight.shape[1]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SplicedEmbedding:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        original: Any = self.original
        original._apply(fn)  # its buffers (Gemma's scale) move too; the shared weight is converted already
        self.weight = original.weight
        self._rows_cache = None
        return self

    def extra_repr(self) -> str:
        """Sizes, for ``print(model)``."""
        rows = sum(slot.num_rows for slot in self.slots)
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, prompt_rows={rows}, first_prompt_id={self.first_prompt_id}"
        )


def note_update(parameters: Iterable[nn.Parameter]) -> None:
    """Note that an optimizer has changed these parameters.

    Rows are kept between calls as long as no parameter's version changes. Torch's fused optimizers, transformers'
    default, change parameters without changing the version.
    """
    for parameter in parameters:
        torch.autograd.graph.increment_version(parameter)


def _overlay(original: nn.Module, input_ids: Tensor, rows: Tensor, first_prompt_id: int) -> Tensor:
    """The lookup through the original's own forward, for embeddings that do more than read a row."""
    weight = cast(Tensor, original.weight)
    # The op checks every id; one column of either table is enough for that.
    splice(input_ids, weight[:, :1].detach(), rows[:, :1].detach(), first_prompt_id)
    is_prompt = input_ids >= first_prompt_id
    token_ids = torch.where(is_prompt, 0, input_ids).clamp(0, weight.shape[0] - 1)
    tokens = cast(Tensor, original(token_ids))
    if rows.shape[0] == 0:
        return tokens
    prompt_rows = (input_ids - first_prompt_id).clamp(0, rows.shape[0] - 1)
    return torch.where(is_prompt.unsqueeze(-1), nn.functional.embedding(prompt_rows, rows), tokens)
