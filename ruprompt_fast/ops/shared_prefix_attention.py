"""Attention of packed sequences, some of which follow a prefix that they share; with its backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops.cpu.shared_prefix_attention import shared_prefix_attention_cpu
from ruprompt_fast.ops.cuda.cards import card_of
from ruprompt_fast.ops.cuda.varlen_attention import varlen_kernel

NO_PREFIX = -1
"""In :attr:`PackedSequences.prefix_of`: the sequence has none."""

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one prefix, [prefix_len, kv_heads, D] each."""


@dataclass(frozen=True)
class PackedSequences:
    """Which of the packed tokens attend to which; one serves all layers of a forward pass.

    Attributes:
        lens: tokens of each sequence, in the order in which they are packed.
        prefix_of: for each sequence the index of the prefix that it follows, or ``NO_PREFIX``. Sequences of one
            prefix had better be next to each other: on a CPU each run of them costs one pass over the prefix.
        num_computed: the first so many sequences are prefixes, 0, 1, ...; further prefixes are given.
    """

    lens: tuple[int, ...]
    prefix_of: tuple[int, ...]
    num_computed: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self.lens)

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """For each sequence its first token, the token after its last, and its prefix."""
        stops = accumulate(self.lens)
        for length, stop, prefix in zip(self.lens, stops, self.prefix_of, strict=True):
            yield stop - length, stop, prefix

    def prefix_runs(self) -> list[tuple[int, int, int]]:
        """Neighbouring tokens after the same prefix: first token, token after the last, prefix."""
        runs: list[tuple[int, int, int]] = []
        for start, stop, prefix in self.spans():
            if prefix == NO_PREFIX or start == stop:
                continue
            if runs and runs[-1][1:] == (start, prefix):
                start = runs.pop()[0]
            runs.append((start, stop, prefix))
        return runs


def shared_prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: Sequence[KeysValues],
    sequences: PackedSequences,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention of every sequence over its prefix and itself.

    Semantics, for the tokens ``a .. b - 1`` of each sequence and its prefix ``p``::

        prefixes = [keys and values of the first num_computed sequences, *given]
        k, v = cat(prefixes[p][0], key[a:b]), cat(prefixes[p][1], value[a:b])
        scores = einsum("qhd,khd->hqk", query[a:b], k) * scaling     # kv heads repeated for their group of heads
        scores = softcap * tanh(scores / softcap)                    # if softcap is given
        token i of the sequence sees the keys up to position prefix_len + i, the last ``sliding_window`` of them
        out[a:b] = einsum("hqk,khd->qhd", softmax(scores), v)

    On a CPU the sequences' own part and the part over the prefix are computed apart and joined by their log-sum-exp, so
    the prefix is read once for all its sequences and no keys are copied; the backward hands the joint log-sum-exp to
    both parts, as in ring attention (Liu et al. 2023). On CUDA keys and values are gathered for a varlen kernel: flash
    attention from sm_80 on, torch's memory-efficient one before and in float32; tables are made once for all layers,
    nothing waits for the device, and a prefix's gradient is a sum in one order. Windows that hide part of a sequence,
    where the kernel has none, and soft caps take :func:`torch.nn.functional.scaled_dot_product_attention` on padded
    copies.

    Args:
        query: [tokens, heads, D].
        key: [tokens, kv_heads, D].
        value: [tokens, kv_heads, D].
        given: keys and values of each prefix that is not computed with the batch, in the dtype of ``key``.
        sequences: how the tokens are packed.
        scaling: of the scores.
        sliding_window: how many keys a token sees at most, itself included; None for all.
        softcap: bound of the scores (Gemma 2); None for none.

    Returns:
        [tokens, heads, D], differentiable with respect to all tensors.

    Raises:
        TensorArgumentError: the tensors do not have these shapes, or a sequence's prefix does not exist.
    """
    _check(query, key, value, given, sequences)
    if sliding_window is not None and sliding_window >= _longest(given, sequences):
        sliding_window = None
    if query.is_cuda and softcap is None:
        from ruprompt_fast.ops.cuda.shared_prefix_attention import shared_prefix_attention_cuda

        kernel = varlen_kernel(query, value, sliding_window, card_of(query.device))
        if kernel is not None:
            return shared_prefix_attention_cuda(kernel, query, key, value, given, sequences, scaling, sliding_window)
    prefixes = _prefixes(key, value, given, sequences)
    if query.device.type != "cpu" or sliding_window is not None or softcap is not None or value.shape != key.shape:
        return _padded_attention(query, key, value, prefixes, sequences, scaling, sliding_window, softcap)
    return shared_prefix_attention_cpu(query, key, value, prefixes, sequences, scaling)


def shared_prefix_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: Sequence[KeysValues],
    sequences: PackedSequences,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """:func:`shared_prefix_attention`, one sequence after the other, as its semantics say."""
    prefixes = _prefixes(key, value, given, sequences)
    outputs = []
    for start, stop, prefix in sequences.spans():
        k, v = _with_prefix(key[start:stop], value[start:stop], prefixes, prefix)
        k, v = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (k, v))
        scores = torch.einsum("qhd,khd->hqk", query[start:stop], k) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        visible = _visible(stop - start, len(k), len(k) - (stop - start), sliding_window, scores.device)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def _padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefixes: Sequence[KeysValues],
    sequences: PackedSequences,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """Every sequence with its own copy of its prefix, padded to the longest."""
    lens = list(sequences.lens)
    pairs = [
        _with_prefix(k, v, prefixes, prefix)
        for k, v, prefix in zip(key.split(lens), value.split(lens), sequences.prefix_of, strict=True)
    ]
    q = _stack(query.split(lens))
    k, v = (_stack([pair[i] for pair in pairs]) for i in (0, 1))
    prefix_lens = [len(pair[0]) - length for pair, length in zip(pairs, lens, strict=True)]
    # Padding comes after every sequence, where only padding looks.
    visible = torch.stack(
        [_visible(q.shape[2], k.shape[2], length, sliding_window, q.device) for length in prefix_lens]
    ).unsqueeze(1)
    if softcap is None:
        out = F.scaled_dot_product_attention(q, k, v, visible, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    else:
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        scores = q @ k.transpose(-1, -2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        scores = softcap * torch.tanh(scores * (scaling / softcap))
        out = scores.masked_fill(~visible, -torch.inf).softmax(-1).to(v.dtype) @ v
    return torch.cat([row[:, :length].transpose(0, 1) for row, length in zip(out.unbind(), lens, strict=True)])


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Sequences [tokens, heads, D] as [sequences, heads, longest, D]."""
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True).transpose(1, 2)


def _prefixes(key: Tensor, value: Tensor, given: Sequence[KeysValues], sequences: PackedSequences) -> list[KeysValues]:
    """All prefixes; splitting once makes one node of the graph, slicing would make many."""
    lens = sequences.lens[: sequences.num_computed]
    parts = [*lens, sequences.num_tokens - sum(lens)]
    return [*zip(key.split(parts)[:-1], value.split(parts)[:-1], strict=True), *given]


def _with_prefix(key: Tensor, value: Tensor, prefixes: Sequence[KeysValues], prefix: int) -> KeysValues:
    if prefix == NO_PREFIX:
        return key, value
    return torch.cat([prefixes[prefix][0], key]), torch.cat([prefixes[prefix][1], value])


def _visible(num_queries: int, num_keys: int, prefix_len: int, window: int | None, device: torch.device) -> Tensor:
    """Which query sees which key: bool [queries, keys]; query i is at position ``prefix_len + i``."""
    distance = torch.arange(num_queries, device=device)[:, None] + prefix_len - torch.arange(num_keys, device=device)
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def _longest(given: Sequence[KeysValues], sequences: PackedSequences) -> int:
    computed = sequences.lens[: sequences.num_computed]
    prefix_lens = [*computed, *(len(key) for key, _ in given), 0]  # the last for NO_PREFIX
    return max(length + prefix_lens[prefix] for length, prefix in zip(sequences.lens, sequences.prefix_of, strict=True))


def _check(query: Tensor, key: Tensor, value: Tensor, given: Sequence[KeysValues], sequences: PackedSequences) -> None:
    shapes = [list(part.shape) for part in (query, key, value)]
    if any(len(shape) != 3 or shape[0] != sequences.num_tokens for shape in shapes):
        raise TensorArgumentError(
            f"query, key and value must be [tokens, heads, D] with {sequences.num_tokens} tokens; found {shapes}."
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] or key.shape[1] != value.shape[1]:
        raise TensorArgumentError(
            f"the heads of the queries must be a multiple of those of keys and values; found {shapes}."
        )
    for prefix_key, prefix_value in given:
        if prefix_key.shape[1:] != key.shape[1:] or prefix_value.shape[1:] != value.shape[1:]:
            raise TensorArgumentError(
                f"a prefix must have the heads of key and value, {shapes[1:]}; found {list(prefix_key.shape)}, "
                f"{list(prefix_value.shape)}."
            )
    num_prefixes = sequences.num_computed + len(given)
    unknown = [prefix for prefix in sequences.prefix_of if not NO_PREFIX <= prefix < num_prefixes]
    if unknown or len(sequences.lens) != len(sequences.prefix_of) or not sequences.lens:
        raise TensorArgumentError(
            f"every sequence needs one of {num_prefixes} prefixes or NO_PREFIX; found {list(sequences.prefix_of)} for "
            f"{len(sequences.lens)} sequences."
        )
    if not 0 <= sequences.num_computed <= len(sequences.lens):
        raise TensorArgumentError(
            f"the first num_computed sequences are prefixes; found num_computed={sequences.num_computed} for "
            f"{len(sequences.lens)} sequences."
        )
