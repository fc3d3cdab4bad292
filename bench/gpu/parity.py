"""Stage ``parity``: the CUDA engine says what transformers and the CPU's engine say."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gpu.engines import WAYS, Way, record_steps, served
from gpu.measurement import Measurement, Record, Setting, need
from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends.cuda.sampler import DeviceSampler
from ruprompt_fast.sampling.sampler import Sampler

FAMILIES = ("gpt2", "llama", "qwen2", "gemma3")
NEAR_TIE = 1e-3
"""In logits of order 1, float32: two tokens so close may change places when a sum has another order."""

INPUTS = [("Без труда", "proverb"), ("Я помню", "verse"), ("Чуден Днепр", "gogol"), ("На берегу пустынных волн", None)]
SAMPLED = [
    {"temperature": 0.8},
    {"top_k": 20},
    {"top_p": 0.9},
    {"min_p": 0.05, "repetition_penalty": 1.2},
]


def measurements(setting: Setting) -> list[Measurement]:
    """The stage."""
    exact_matrices()
    bundled = "bundled model, {} text of CPU and CUDA"
    return [
        *(
            Measurement(f"{family} as transformers", functools.partial(family_parity, family, setting))
            for family in FAMILIES
        ),
        Measurement("sampler of CPU and CUDA", functools.partial(sampler_parity, setting)),
        Measurement(bundled.format("greedy"), functools.partial(bundled_parity, setting)),
        Measurement(bundled.format("sampled"), functools.partial(sampled_parity, setting)),
    ]


def exact_matrices() -> None:
    """Float32 means float32: no TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def family_parity(family: str, setting: Setting, record: Record) -> None:
    """Greedy ids of requests with and without prompts, a tiny model, float32."""
    need("pytest")  # the tests' reference imports it
    from engine.reference import END, NAMES, TEXTS, Reference, make_prompts
    from tiny_models import sharp_model, tiny_tokenizer

    base, tokenizer = sharp_model(family), tiny_tokenizer()
    prompts = make_prompts(tokenizer, base.get_input_embeddings().embedding_dim)
    reference = Reference(base, tokenizer, prompts)
    num_new = 6 if setting.toy else 16
    expected = [
        reference.generate(text, name, max_new_tokens=num_new)[0] for text, name in zip(TEXTS, NAMES, strict=True)
    ]
    for way in WAYS:
        model = served(
            copy.deepcopy(base),
            way,
            setting,
            dtype="float32",
            prompts=prompts,
            tokenizer=tokenizer,
            max_batch_size=16,
            kv_cache_bytes=1 << 21,
        )
        outputs = model.generate(TEXTS, NAMES, max_new_tokens=num_new, do_sample=False, eos_token_id=END)
        ties = 0
        for text, name, output, theirs in zip(TEXTS, NAMES, outputs, expected, strict=True):
            if output.token_ids != theirs:
                assert_near_tie(reference, (text, name), output.token_ids, theirs)
                ties += 1
        record({f"{way}, texts as transformers'": f"{len(outputs) - ties} of {len(outputs)}"})
        finish(model, way, record)


def finish(model: FastPromptModel, way: Way, record: Record) -> None:
    """Check and detach a model, and that its steps ran in the way that they were to run.

    Raises:
        RuntimeError: something is left in the engine.
        AssertionError: no step was a replay of a graph where graphs were expected, or one was where none were.
    """
    model.check_integrity()
    record_steps(model, record, f"{way}, ")
    engine = model.stats().engine
    model.detach()
    runner = engine and engine.runner
    if runner and (way == "graphs") != bool(runner.num_replayed_steps):
        raise AssertionError(f"{way}: {runner.num_replayed_steps} steps were replays; {dict(runner.eager_reasons)}")


def assert_near_tie(
    reference: Any, request: tuple[str, str | None], ours: Sequence[int], theirs: Sequence[int]
) -> None:
    """Raises unless two texts part where the reference's logits of both tokens are equal but for rounding."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    step = next((step for step, (one, other) in pairs if one != other), None)
    if step is None:
        raise AssertionError(f"one text is the beginning of the other: {ours} and {theirs}")
    logits = reference.logits(*request, theirs[:step])[-1]
    gap = float((logits[theirs[step]] - logits[ours[step]]).abs())
    if gap > NEAR_TIE:
        raise AssertionError(f"{request}: {ours}, where transformers has {theirs}; token {step} is {gap:.3g} away")


def sampler_parity(setting: Setting, record: Record) -> None:
    """The same logits and seeds: the tokens of the NumPy sampler, rows of every kind of settings."""
    need("pytest")
    from backends.cuda.sampler_cases import DEVICE_KINDS, make_row, random_logits

    vocab_size = 1003 if setting.toy else 50257
    kinds = DEVICE_KINDS.values()
    rows = [make_row(kind, seed=seed, vocab_size=vocab_size) for seed in range(4) for kind in kinds]
    logits = random_logits(len(rows), vocab_size=vocab_size)
    sampler = DeviceSampler(vocab_size, (), torch.device(setting.device))
    words = np.zeros((len(rows), sampler.words_per_row), dtype=np.int32)
    seen = np.zeros((len(rows), sampler.seen_words), dtype=np.int32)
    sampler.stage(rows, words, seen)
    last_ids = np.array([[*row.input_ids, *row.new_ids][-1] for row in rows], dtype=np.int32)
    there = [logits, *(torch.from_numpy(array) for array in (words, seen, last_ids))]
    there = [tensor.to(setting.device) for tensor in there]
    result = sampler.launch(*there).cpu().numpy()
    record(rows=len(rows), left_to_the_host=int((result[:, 1] != 0).sum()))
    found = sampler.finish(rows, result, there[0], lambda tensor: tensor.cpu())
    expected = Sampler(vocab_size).sample(logits, rows)
    different = [
        (row.params, ours, theirs)
        for row, ours, theirs in zip(rows, found, expected, strict=True)
        if ours.token_ids != theirs.token_ids
    ]
    if different:
        raise AssertionError(f"{len(different)} rows have other tokens: {different[:3]}")


def bundled_parity(setting: Setting, record: Record) -> None:
    """The bundled model in float32."""
    same_texts(setting, record, [{"do_sample": False}], least=1.0)


def sampled_parity(setting: Setting, record: Record) -> None:
    """The same seeds draw the same tokens; logits that differ in the last bit may change one in a thousand."""
    same_texts(setting, record, [{"do_sample": True, **settings} for settings in SAMPLED], least=0.9)


def same_texts(setting: Setting, record: Record, all_settings: Sequence[dict[str, object]], least: float) -> None:
    """Raises unless so large a share of the CPU's texts are the CUDA engine's, to the token."""
    from ruprompt_fast import bundled

    num_new = 8 if setting.toy else 40
    found: dict[str, list[list[int]]] = {}
    ways: tuple[Way, ...] = ("cpu", "graphs")
    for way in ways:
        model = served(bundled.MODEL, way, setting, dtype="float32", prompts=bundled.PROMPTS)
        found[way] = [
            output.token_ids
            for seed, settings in enumerate(all_settings)
            for output in model.generate(
                [text for text, _ in INPUTS],
                [name for _, name in INPUTS],
                max_new_tokens=num_new,
                seed=[seed * len(INPUTS) + index for index in range(len(INPUTS))],
                **settings,
            )
        ]
        finish(model, way, record)
    same = sum(ours == theirs for ours, theirs in zip(found["graphs"], found["cpu"], strict=True))
    record(same_texts=same, texts=len(found["cpu"]))
    if same < least * len(found["cpu"]):
        raise AssertionError(f"only {same} of {len(found['cpu'])} texts are the CPU's: {found}")
