"""Pretrain the bundled model: a GPT-2 of 7 million parameters on public-domain Russian literature.

The recipe is plain language modelling on packed rows. Works are cut at line ends into pieces of 200 to 6,000
characters, each framed by ``<s>`` and ``</s>`` so that the model knows how a text begins; verse, 4% of the corpus, is
read :data:`VERSE_REPEATS` times as often. Hidden matrices are trained with Muon, everything else with AdamW.

The run is as long as ``--minutes`` says: the learning rate warms up, stays, and falls linearly to zero at the end of
the time. Rows are 256 tokens, half of them at positions 256..511, and 512 tokens for the last part: on two CPU cores
256-token rows pass 1.3 times as many tokens per second.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import random
import time
from pathlib import Path

import torch
from corpus import Work, pieces, read_works
from torch.nn import functional as F
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

CONTEXT = 512
SHORT_CONTEXT = 256
FULL_CONTEXT_FROM = 0.85
VERSE_REPEATS = 3
WARMUP = 0.02
DECAY = 0.45
MUON_LR = 0.02
ADAMW_LR = 3e-3


def model_config(tokenizer: PreTrainedTokenizerBase) -> GPT2Config:
    """GPT-2 (ruGPT-3's architecture), sized so that its fp16 file stays under 16 MB."""
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=256,
        n_layer=6,
        n_head=4,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def token_stream(works: list[Work], tokenizer: PreTrainedTokenizerBase, seed: int) -> torch.Tensor:
    """Tokenize shuffled pieces of the works into one int32 tensor of ids."""
    rng = random.Random(seed)
    repeated = [work for work in works for _ in range(VERSE_REPEATS if work.kind == "poems" else 1)]
    texts = list(pieces(repeated, rng, min_chars=200, max_chars=6000))
    rng.shuffle(texts)
    stream: list[int] = []
    for start in range(0, len(texts), 512):
        for ids in tokenizer(texts[start : start + 512])["input_ids"]:
            stream += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return torch.tensor(stream, dtype=torch.int32)


class Batches:
    """Endless batches of about ``batch_tokens`` tokens; every epoch cuts and shuffles the works again."""

    def __init__(self, works: list[Work], tokenizer: PreTrainedTokenizerBase, batch_tokens: int) -> None:
        self._streams = (token_stream(works, tokenizer, seed=epoch) for epoch in itertools.count())
        self._stream = next(self._streams)
        self._batch_tokens = batch_tokens
        self._next = 0

    def take(self, context: int) -> torch.Tensor:
        """The next int64 rows of [batch_tokens // context, context + 1] ids."""
        rows = self._batch_tokens // context
        size = rows * (context + 1)
        if self._next + size > len(self._stream):
            self._stream, self._next = next(self._streams), 0
        batch = self._stream[self._next : self._next + size]
        self._next += size
        return batch.view(rows, context + 1).long()


def positions(rows: int, context: int) -> torch.Tensor:
    """Position ids [rows, context]: every other short row is in the second half of the model's context."""
    shift = torch.arange(rows).remainder(2).mul(CONTEXT - context)
    return shift[:, None] + torch.arange(context)


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up, constant, linear decay to zero; ``progress`` runs from 0 to 1."""
    return max(0.0, min(1.0, progress / WARMUP, (1.0 - progress) / DECAY))


def build_optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings, norms and biases."""
    hidden = [p for name, p in model.transformer.h.named_parameters() if p.ndim == 2]
    hidden_ids = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in hidden_ids]
    muon = torch.optim.Muon(hidden, lr=MUON_LR, weight_decay=0.01, momentum=0.95)
    adamw = torch.optim.AdamW(rest, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.01)
    return [muon, adamw]


def loss_of(model: GPT2LMHeadModel, rows: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats per token of [batch, context + 1] rows."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], position_ids=position_ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def held_out_bits_per_byte(model: GPT2LMHeadModel, works: list[Work], tokenizer: PreTrainedTokenizerBase) -> float:
    """Bits per UTF-8 byte of the held-out works, each cut into framed pieces that fit the context."""
    device = next(model.parameters()).device
    texts = list(pieces(works, random.Random(0), min_chars=1200, max_chars=1201))
    nats, num_bytes = 0.0, 0
    for text in texts:
        content = tokenizer(text)["input_ids"][: CONTEXT - 2]
        ids = torch.tensor([[tokenizer.bos_token_id, *content, tokenizer.eos_token_id]], device=device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        nats += F.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
        num_bytes += len(tokenizer.decode(content).encode("utf-8"))
    return nats / math.log(2) / num_bytes


def train(model: GPT2LMHeadModel, data: Batches, minutes: float) -> dict[str, int]:
    """Train for ``minutes``; returns the steps, tokens and seconds spent."""
    device = next(model.parameters()).device
    # Compiled together with the model, the loss over 8,192 logits costs a fifth less than on its own.
    compiled_loss = torch.compile(loss_of)
    optimizers = build_optimizers(model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    base_rates = [group["lr"] for group in groups]
    steps, tokens, average = 0, 0, 0.0
    started = time.monotonic()
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group, rate in zip(groups, base_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(progress)
        rows = data.take(SHORT_CONTEXT if progress < FULL_CONTEXT_FROM else CONTEXT)
        position_ids = positions(rows.shape[0], rows.shape[1] - 1)
        loss = compiled_loss(model, rows.to(device), position_ids.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        steps, tokens = steps + 1, tokens + position_ids.numel()
        average += (loss.item() - average) / min(steps, 50)
        if steps % 50 == 0:
            print(f"{progress:.1%} step {steps} loss {average:.3f} nats, {tokens:,} tokens", flush=True)
    return {"steps": steps, "tokens": tokens, "seconds": round(time.monotonic() - started)}


def pretrain(archive: Path, folder: Path, minutes: float, batch_tokens: int, device: str) -> None:
    """Train and write the fp16 weights, the configuration and the figures to ``folder``."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    works = read_works(archive)
    model = GPT2LMHeadModel(model_config(tokenizer)).to(device).train()
    figures = train(model, Batches([w for w in works if not w.held_out], tokenizer, batch_tokens), minutes)
    save(model, folder)
    bits = held_out_bits_per_byte(model.eval(), [work for work in works if work.held_out], tokenizer)
    figures |= {"parameters": sum(p.numel() for p in model.parameters()), "held_out_bits_per_byte": round(bits, 4)}
    (folder / "pretraining.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(figures)


def save(model: GPT2LMHeadModel, folder: Path) -> None:
    """Write fp16 safetensors, leaving the fp32 training weights as they are."""
    copy.deepcopy(model).half().save_pretrained(folder)


def main() -> None:
    """Command line: ``pretrain.py --literature ruslit.tar.xz --output FOLDER --minutes N``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--literature", type=Path, required=True, help="the archive of Russian literature")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model; holds the tokenizer")
    parser.add_argument("--minutes", type=float, default=85)
    parser.add_argument("--batch-tokens", type=int, default=5120)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    pretrain(arguments.literature, arguments.output, arguments.minutes, arguments.batch_tokens, arguments.device)


if __name__ == "__main__":
    main()
