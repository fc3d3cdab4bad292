"""The interface between the engine and a device.

The scheduler plans in pages and slots, the engine keeps requests and prefixes, and neither names a device. A
:class:`Backend` says how the KV cache lies in memory, prepares a model's layers, and makes the :class:`Runner` that
computes the model's steps. To add a device, write the two and name the backend in ``BACKENDS`` of
:mod:`ruprompt_fast.backends`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ruprompt_fast.cache import PagePool
from ruprompt_fast.sampling.sampling_rows import Chosen, SamplingRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.embedding import SplicedEmbedding
    from ruprompt_fast.prompts import KVShape

Quantization: TypeAlias = Literal["int8"]
"""How the frozen weights of a model may be quantized: ``"int8"`` keeps them as 8-bit integers."""


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """The tokens of one step on the host, sequence after sequence.

    Made by :class:`~ruprompt_fast.engine.batch.BatchBuilder`. The arrays are views of the scheduler's plan where
    possible. The scheduler's next step overwrites it, so a runner that reads them later must copy them. Nobody may
    write to them: the scheduler only updates the entries of block tables that have changed.

    Attributes:
        input_ids: int64 [num_tokens]; virtual tokens have ids from the embedding's ``first_prompt_id`` on; ``-1 - row``
            is the token that the step before, which runs ahead, chooses for that row of its logits.
        position_ids: int64 [num_tokens]; each token's position in its sequence.
        rows: [num_rows, width], the virtual tokens that ``input_ids`` name, on the model's device.
        query_starts: int32 [num_sequences + 1]; where each sequence's tokens begin.
        context_lens: int32 [num_sequences]; each sequence's tokens in the KV cache, with this step's.
        block_tables: int32 [num_sequences, blocks]; each sequence's pages in order.
        write_slots: int64 [num_tokens]; where the tokens' keys and values go.
        logits_at: int64 [num_logits]; indices of the tokens whose logits are wanted.
    """

    input_ids: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    rows: Tensor
    query_starts: npt.NDArray[np.int32]
    context_lens: npt.NDArray[np.int32]
    block_tables: npt.NDArray[np.int32]
    write_slots: npt.NDArray[np.int64]
    logits_at: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """How large anything becomes that a runner is given: enough to allocate all of its memory once.

    Attributes:
        num_pages: pages of every layer.
        max_step_tokens: tokens of one step.
        max_sequences: maximum number of concurrent sequences.
        max_model_len: tokens of one sequence.
    """

    num_pages: int
    max_step_tokens: int
    max_sequences: int
    max_model_len: int


@dataclass(frozen=True)
class RunnerStats:
    """What a runner that replays graphs has done.

    Attributes:
        num_graphs: captured graphs.
        num_replayed_steps: steps that were replays of one.
        num_eager_steps: steps that were not.
        num_ahead_steps: steps that were launched before the tokens of the one before were read.
        num_host_rows: tokens that were chosen on the host, because the device could not or was not sure.
        eager_reasons: for sizes of steps without a graph that could have one, the reason.
    """

    num_graphs: int
    num_replayed_steps: int
    num_eager_steps: int
    num_ahead_steps: int
    num_host_rows: int
    eager_reasons: Mapping[str, str]


class PreparedModel(Protocol):
    """A model whose frozen layers compute in the backend's own form."""

    @property
    def watched(self) -> Sequence[Tensor]:
        """Tensors that no longer belong to the model, but that other code may hold and write to."""
        ...

    def is_outdated(self) -> bool:
        """Whether a weight of the model was written to since it was prepared."""
        ...

    def prepare_again(self, *, thorough: bool) -> PreparedModel:
        """Prepare the model as it is now, reusing what has not changed; this object cannot be used afterwards.

        Args:
            thorough: reuse only what is known to be unchanged.

        Raises:
            FrozenWeightsError: something has written to a weight whose memory was released.
        """
        ...

    def undo(self) -> None:
        """Give the model its own layers back. A second call does nothing."""


class LaunchedStep(Protocol):
    """A step that was started, and may still be running on the device."""

    @property
    def logits(self) -> Tensor:
        """[num_logits, vocabulary], on the model's device; unless :attr:`runs_ahead`, valid until the next launch."""
        ...

    @property
    def runs_ahead(self) -> bool:
        """Whether the next step may, and had better, be launched before :meth:`chosen` is called.

        Every token is chosen on the device then, and the next step's batch may name it by its row; see
        :class:`StepBatch`.
        """
        ...

    @property
    def overruled(self) -> Sequence[int]:
        """Rows whose token in :meth:`chosen` is not the one that the next step has found on the device."""
        ...

    def chosen(self) -> list[Chosen | None]:
        """Wait for the step, and return what was chosen for every row of the logits.

        Returns:
            For every row the chosen tokens, or the error that prevented it; None where nothing was asked for. Other
            rows are not affected.
        """
        ...


class Runner(Protocol):
    """Computes the steps of one model."""

    @property
    def pages(self) -> PagePool:
        """The KV cache, with the model's layers."""
        ...

    def launch(
        self, batch: StepBatch, rows: Sequence[SamplingRow | None], in_flight: Sequence[int] | None = None, /
    ) -> LaunchedStep:
        """Start a step: write its keys and values, compute the wanted logits, choose a token for each.

        Args:
            batch: the step's tokens.
            rows: what is wanted for each row of the logits; None where a request reads the logits itself.
            in_flight: for each of them, how many tokens the step before has chosen that are not among its ``new_ids``
                yet, 0 or 1; None for none.
        """
        ...

    def stats(self) -> RunnerStats | None:
        """Counts so far; None where every step runs in the same way."""
        ...

    def close(self) -> None:
        """Give back the device's memory, whoever still holds this object; no step is asked of it afterwards."""


class Backend(Protocol):
    """One kind of device, computing in one dtype. Holds nothing of a model."""

    @property
    def page_size(self) -> int:
        """Tokens of a page of the KV cache."""
        ...

    @property
    def shares_memory(self) -> bool:
        """Whether the memory of its pages is that of the whole machine, which must not be filled."""
        ...

    def page_bytes(self, shapes: Sequence[KVShape], /) -> int:
        """Bytes of one page in all layers.

        Raises:
            SettingError: there are no layers.
        """
        ...

    def available_bytes(self) -> int:
        """Bytes of memory that are free for the KV cache now."""
        ...

    def prepare(self, model: PreTrainedModel, quantization: Quantization | None, /) -> PreparedModel:
        """Have the model's frozen layers compute in the fastest form; they are changed in place.

        Raises:
            UnsupportedModelError: the backend cannot quantize weights like that; the model is unchanged.
        """
        ...

    def runner(
        self,
        model: PreTrainedModel,
        embedding: SplicedEmbedding,
        shapes: Sequence[KVShape],
        limits: RunnerLimits,
        banned_ids: Sequence[int],
        /,
    ) -> Runner:
        """A runner that computes the model's steps, with its own pages.

        Args:
            model: a decoder that passed :func:`~ruprompt_fast.integration.check_compatibility`.
            embedding: its input embedding.
            shapes: the shapes of each layer's key and value of a token.
            limits: the sizes of what it is given.
            banned_ids: token ids that are never generated.
        """
        ...
