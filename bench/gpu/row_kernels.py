"""The kernels over rows: the lookup, norms, int8 products and the sampler; and a plain copy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gpu.case import Case, randn
from gpu.measurement import Setting
from ruprompt_fast import ops

FIRST_PROMPT_ID = 1 << 20


def copy(setting: Setting) -> Case:
    """A large copy of torch's: the bandwidth that all others are compared with."""
    size = (1 << 16) if setting.toy else (1 << 29)
    source = torch.ones(size, dtype=torch.float16, device=setting.device)
    target = torch.empty_like(source)
    return Case(lambda: target.copy_(source), lambda: source, 2 * source.nbytes)


def _splice_ids(setting: Setting, num_prompts: int, rows_per_sequence: int, batch: int, length: int) -> Tensor:
    ids = torch.randint(0, 50 if setting.toy else 50257, (batch, length), device=setting.device)
    prompt = torch.arange(batch, device=setting.device) % num_prompts * rows_per_sequence
    ids[:, :rows_per_sequence] = FIRST_PROMPT_ID + prompt[:, None] + torch.arange(rows_per_sequence, device=ids.device)
    return ids


def _splice_shape(setting: Setting) -> tuple[int, int, int]:
    return (4, 16, 32) if setting.toy else (64, 1024, 1536)


def splice_forward(setting: Setting) -> Case:
    """Rows of a batch with a 100-row prompt of its own in every sequence."""
    batch, length, width = _splice_shape(setting)
    rows = min(100, length // 2)
    ids = _splice_ids(setting, batch, rows, batch, length)
    tokens, prompts = randn(setting, 50 if setting.toy else 50257, width), randn(setting, batch * rows, width)
    return Case(
        lambda: ops.splice(ids, tokens, prompts, FIRST_PROMPT_ID),
        lambda: ops.splice_reference(ids, tokens, prompts, FIRST_PROMPT_ID),
        2 * ids.numel() * width * tokens.element_size() + ids.nbytes,
    )


def splice_backward(setting: Setting) -> Case:
    """The gradient of 8 prompts that fill all positions, so that all of the gradient is read."""
    batch, length, width = _splice_shape(setting)
    ids = _splice_ids(setting, 8, length, batch, length)
    grad, num_rows = randn(setting, batch, length, width), 8 * length

    def reference() -> Tensor:
        rows = torch.zeros(num_rows, width, dtype=torch.float64, device=grad.device)
        return rows.index_add_(0, (ids - FIRST_PROMPT_ID).flatten(), grad.flatten(0, 1).double()).to(grad.dtype)

    return Case(
        lambda: torch.ops.ruprompt_fast.splice_prompt_grad(grad, ids, num_rows, FIRST_PROMPT_ID),
        reference,
        grad.nbytes + ids.nbytes + num_rows * width * grad.element_size(),
    )


def step_ids(setting: Setting) -> Case:
    """A decode step's ids, every other of which the step before has chosen."""
    count = 64
    ids = torch.arange(count, dtype=torch.int32, device=setting.device)
    ids = torch.where(ids % 2 == 0, ids, -1 - ids)
    positions, carried = ids.abs(), 100 + ids.abs()
    return Case(
        lambda: ops.step_ids(ids, positions, carried),
        lambda: ops.step_ids_reference(ids, positions, carried),
        3 * ids.nbytes + 4 * ids.nbytes,
        comparable=lambda result: torch.cat(result).double(),
    )


def add_norm(setting: Setting) -> Case:
    """A residual and the layer norm after it, in a prefill step."""
    from ruprompt_fast.ops.add_norm import add_norm, add_norm_reference

    rows, width = (8, 32) if setting.toy else (512, 1536)
    x, residual = randn(setting, rows, width), randn(setting, rows, width).flip(0)
    weight, bias = randn(setting, width), randn(setting, width).flip(0)
    arguments = (x, residual, weight, bias, 1e-5, "layer_norm")
    return Case(lambda: add_norm(*arguments), lambda: add_norm_reference(*arguments), 4 * x.nbytes + 2 * weight.nbytes)


def _int8_linear(num_rows: int) -> Callable[[Setting], Case]:
    """A feed-forward layer's first matrix, weights of 8 bits."""

    def case(setting: Setting) -> Case:
        from ruprompt_fast.ops.cuda.int8_linear import Int8Weight
        from ruprompt_fast.ops.int8_linear import int8_linear_reference

        rows, inputs, outputs = (2, 32, 48) if setting.toy else (num_rows, 1536, 6144)
        weight = Int8Weight(randn(setting, outputs, inputs))
        x, bias = randn(setting, rows, inputs), randn(setting, outputs)
        return Case(
            lambda: weight.linear(x, bias),
            lambda: int8_linear_reference(x, *weight.quantized(), bias, None),
            weight.num_bytes + x.nbytes + rows * outputs * x.element_size(),
        )

    return case


def _sample(**settings: float) -> Callable[[Setting], Case]:
    """The choice for 64 rows over ruGPT-3's vocabulary."""

    def case(setting: Setting) -> Case:
        from ruprompt_fast.backends.cuda.sampler import DeviceSampler
        from ruprompt_fast.requests.sampling_params import SamplingParams
        from ruprompt_fast.sampling.sampling_rows import SamplingRow

        count, vocab_size = (4, 503) if setting.toy else (64, 50257)
        logits = 3 * randn(setting, count, vocab_size + -vocab_size % 8)
        device = logits.device
        sampler = DeviceSampler(vocab_size, (), device)
        rows = [
            SamplingRow(SamplingParams(max_new_tokens=9, seed=seed, **settings), [1, 2], []) for seed in range(count)
        ]
        words = np.zeros((count, sampler.words_per_row), dtype=np.int32)
        seen = np.zeros((count, sampler.seen_words), dtype=np.int32)
        sampler.stage(rows, words, seen)
        staged = [torch.from_numpy(array).to(device) for array in (words, seen)]
        last_ids = torch.full((count,), 2, dtype=torch.int32, device=device)

        expected = ops.sample_reference(logits, *staged, last_ids, vocab_size=vocab_size)

        def decided(result: Tensor) -> Tensor:
            """The tokens of rows that both have decided; where rounding might, either may leave a row to the host."""
            return torch.where((result[:, 1] == 0) & (expected[:, 1] == 0), result[:, 0], -1).double()

        return Case(
            lambda: sampler.launch(logits, *staged, last_ids), lambda: expected, logits.nbytes, comparable=decided
        )

    return case


CASES: dict[str, Callable[[Setting], Case]] = {
    "splice, forward": splice_forward,
    "splice, backward": splice_backward,
    "step_ids, 64 rows": step_ids,
    "add_norm, 512 rows": add_norm,
    "int8_linear, 1 row": _int8_linear(1),
    "int8_linear, 16 rows": _int8_linear(16),
    "sample, greedy, 64 rows": _sample(),
    "sample, top-p, 64 rows": _sample(do_sample=True, top_p=0.9),
}
