"""The packed way: every prompt's prefix runs once per batch, and all examples follow each other without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ruprompt_fast.integration import (
    AttentionCall,
    AttentionSwitch,
    FrozenLayers,
    OutputLayer,
    refuse_position_bias,
)
from ruprompt_fast.ops import NO_PREFIX, PackedSequences, shared_prefix_attention
from ruprompt_fast.prompts.format.preprocessing import IGNORED_LABEL
from ruprompt_fast.training.examples import Example
from ruprompt_fast.training.losses import BatchLoss, batch_loss, choices_of, target_logprobs

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from ruprompt_fast.ops.shared_prefix_attention import KeysValues


# oneDNN keeps what it compiles for every shape, up to 1,024 of them: with every batch of another size that was 800 MB
# after 200 steps of a model of 28 MB. Half of this many tokens are wasted on average. Tensor cores want 8.
_TOKENS_MULTIPLE = {"cpu": 32}
_TOKENS_MULTIPLE_ELSEWHERE = 8
_PADDING = 0  # any id that the model has


class PackedRunner:
    """Runs packed batches through a model whose attention can be routed; see :class:`~.runners.Runner`.

    A batch is one row of tokens: the prefixes that its examples begin with, each once, then every example's other
    tokens. Keys and values of a prefix are shared by its examples, so gradients of all of them flow through them into
    its rows, and the sum is what the examples with a copy of the prompt each give.

    Args:
        model: the model.
        deep_providers: for each prompt of the run its provider of keys and values, or None; may be empty.
    """

    name = "packed"
    reason: str | None = None

    def __init__(self, model: PreTrainedModel, deep_providers: Sequence[nn.Module | None] = ()) -> None:
        self._switch = AttentionSwitch(model)
        self._layers = FrozenLayers(model)
        self._output = OutputLayer(model)
        self._config = model.config.get_text_config()
        self._tokens_multiple = _TOKENS_MULTIPLE.get(model.device.type, _TOKENS_MULTIPLE_ELSEWHERE)
        self._deep_providers = list(deep_providers)

    @contextmanager
    def routing(self) -> Iterator[None]:
        """See :meth:`Runner.routing`."""
        with self._switch.ours(), self._layers.fast(), self._output.left_out(), _without_padding(self._config):
            yield

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Pack examples; those of one prompt are put next to each other.

        Returns:
            ``input_ids`` and ``position_ids`` [1, tokens]; ``logits_at`` and ``targets`` [generated tokens], where to
            compute logits and what is to be generated there; ``sequences``; ``deep_prompts``, whose providers make the
            prefixes that are not computed; ``choices``; ``num_items``.
        """
        pack = _Pack({i: self._num_deep_rows(i) for i in {example["prompt"] for example in examples}})
        ordered = sorted(examples, key=lambda example: example["prompt"])
        for example in ordered:
            pack.add_prefix(example)
        for example in ordered:
            pack.add(example)
        pack.pad(self._tokens_multiple)
        choices = choices_of(ordered)
        return {
            "input_ids": torch.tensor([pack.input_ids]),
            "position_ids": torch.tensor([pack.position_ids]),
            "logits_at": torch.tensor(pack.logits_at),
            "targets": torch.tensor(pack.targets),
            "sequences": pack.sequences(),
            "deep_prompts": pack.deep_prompts(),
            "choices": choices,
            "num_items": len(pack.targets) if choices is None else len(ordered),
        }

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> BatchLoss:
        """See :meth:`Runner.loss`; :meth:`routing` must be active."""
        providers: Any = self._deep_providers
        deep = [providers[prompt].keys_values() for prompt in batch["deep_prompts"]]
        attending = _SharedPrefixAttending(batch["sequences"], deep)
        output = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            use_cache=False,
            logits_to_keep=batch["logits_at"],
            attending=attending,
        )
        weight, bias = self._output_weights(attending.dtype)
        logprobs = target_logprobs(output.logits.squeeze(0), batch["targets"], weight, bias)
        return batch_loss(logprobs, batch["choices"])

    def _output_weights(self, dtype: torch.dtype | None) -> tuple[Tensor | None, Tensor | None]:
        """The output layer's weight and bias; on a GPU in the dtype of the layers before it.

        Under autocast that is half precision, of which the loss, computed outside of it, would know nothing.
        """
        linear = self._output.linear
        if linear is None:
            return None, None
        if dtype is None or not linear.weight.is_cuda:
            return linear.weight, linear.bias
        return linear.weight.to(dtype), None if linear.bias is None else linear.bias.to(dtype)

    def _num_deep_rows(self, prompt: int) -> int | None:
        provider = self._deep_providers[prompt] if self._deep_providers else None
        return None if provider is None else int(provider.num_rows)  # type: ignore[arg-type]


class _Pack:
    """A packed batch that grows.

    Args:
        deep_rows: for every prompt how many positions its keys and values take, or None if it has embedding rows.
    """

    def __init__(self, deep_rows: Mapping[int, int | None]) -> None:
        self._deep_rows = deep_rows
        self._prefix_starts: list[int] = []
        self._by_ids: dict[tuple[int, ...], int] = {}
        self._deep: dict[int, int] = {}
        self.input_ids: list[int] = []
        self.position_ids: list[int] = []
        self.lens: list[int] = []
        self.prefix_of: list[int] = []
        self.logits_at: list[int] = []
        self.targets: list[int] = []

    def add_prefix(self, example: Example) -> None:
        """Make sure that the example's prefix is there; all are, before the first example is added."""
        ids = tuple(example["input_ids"][: example["prefix_len"]])
        if self._deep_rows[example["prompt"]] is not None:
            self._deep.setdefault(example["prompt"], len(self._deep))
        elif ids and ids not in self._by_ids:
            self._by_ids[ids] = len(self._by_ids)
            self._prefix_starts.append(len(self.input_ids))
            self._add_sequence(list(ids), 0, NO_PREFIX)

    def add(self, example: Example) -> None:
        """Add the tokens after an example's prefix, once for every label word that cannot share them."""
        if example["candidates"]:
            self._add_candidates(example)
            return
        labels = example["labels"]
        generated = [position for position, label in enumerate(labels) if label != IGNORED_LABEL]
        # Nobody looks at the last token to generate.
        start = self._add_text(example, example["input_ids"][: generated[-1]])
        for position in generated:
            self._add_target(example, start, position - 1, labels[position])

    def pad(self, multiple: int) -> None:
        """Fill up to a multiple of so many tokens with a sequence that nobody looks at."""
        self._add_sequence([_PADDING] * (-len(self.input_ids) % multiple), 0, NO_PREFIX)

    def sequences(self) -> PackedSequences:
        """Who attends to whom; the prefixes with ids come first."""
        return PackedSequences(tuple(self.lens), tuple(self.prefix_of), len(self._by_ids))

    def deep_prompts(self) -> tuple[int, ...]:
        """The prompts whose keys and values are given, in the order of their prefixes."""
        return tuple(self._deep)

    def _add_candidates(self, example: Example) -> None:
        ids = example["input_ids"]
        starts: dict[tuple[int, ...], int] = {}
        for word in example["candidates"]:
            begun = tuple(word[:-1])
            if begun not in starts:
                starts[begun] = self._add_text(example, [*ids, *begun])
            for offset, token in enumerate(word):
                self._add_target(example, starts[begun], len(ids) - 1 + offset, token)

    def _add_text(self, example: Example, ids: list[int]) -> int:
        """Add what comes after the prefix; returns where position 0 of ``ids`` would be if all of it were there."""
        prefix_len = example["prefix_len"]
        start = len(self.input_ids)
        deep_rows = self._deep_rows[example["prompt"]]
        if deep_rows is not None:
            self._add_sequence(ids, deep_rows, len(self._by_ids) + self._deep[example["prompt"]])
        elif prefix_len:
            prefix = self._by_ids[tuple(example["input_ids"][:prefix_len])]
            self._add_sequence(ids[prefix_len:], prefix_len, prefix)
        else:
            self._add_sequence(ids, 0, NO_PREFIX)
        return start - prefix_len

    def _add_target(self, example: Example, start: int, position: int, token: int) -> None:
        """Have ``token`` generated after the example's token at ``position``."""
        prefix_len = example["prefix_len"]
        if position < prefix_len:
            start = self._prefix_starts[self._by_ids[tuple(example["input_ids"][:prefix_len])]]
        self.logits_at.append(start + position)
        self.targets.append(token)

    def _add_sequence(self, ids: list[int], first_position: int, prefix: int) -> None:
        if not ids:
            return
        self.input_ids += ids
        self.position_ids += range(first_position, first_position + len(ids))
        self.lens.append(len(ids))
        self.prefix_of.append(prefix)


class _SharedPrefixAttending:
    """Attention of one forward pass; see :class:`~ruprompt_fast.integration.Attending`.

    Args:
        sequences: how the tokens are packed.
        deep: keys and values of the prefixes that are not computed, by prefix and layer.

    Attributes:
        dtype: what the layers have computed their attention in; None before the first.
    """

    def __init__(self, sequences: PackedSequences, deep: Sequence[Sequence[KeysValues]]) -> None:
        self._sequences = sequences
        self._deep = deep
        self.dtype: torch.dtype | None = None

    def attend(self, call: AttentionCall) -> Tensor:
        refuse_position_bias(call)
        query, key, value = call.query, call.key, call.value
        device = query.device.type
        if torch.is_autocast_enabled(device):  # rotary positions leave queries and keys in float32, values are not
            query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
        self.dtype = query.dtype
        deep = [keys_values[call.layer] for keys_values in self._deep]
        return shared_prefix_attention(
            query,
            key,
            value,
            [(k.to(key.dtype), v.to(value.dtype)) for k, v in deep],
            self._sequences,
            scaling=call.scaling,
            sliding_window=call.sliding_window,
            softcap=call.softcap,
        )


@contextmanager
def _without_padding(config: PretrainedConfig) -> Iterator[None]:
    """Within the block transformers does not ask whether a packed batch has padding, which waits for the device."""
    before = getattr(config, "pad_token_id", None)
    if before is None:
        yield
        return
    config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = before
