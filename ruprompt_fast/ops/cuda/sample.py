"""The choice of tokens on CUDA: memory for the scores and one launch, with no wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.kernels import sample as kernels

_PIECE = 8  # logits that are read at once: 128 bits of half-precision numbers


def sample_cuda(
    logits: Tensor,
    settings: Tensor,
    seen: Tensor,
    last_ids: Tensor,
    vocab_size: int,
    banned: Tensor | None,
    bands: tuple[float, float, float, float],
) -> Tensor:
    """:func:`ruprompt_fast.ops.sample` of checked arguments.

    Args:
        logits: as there, and the next ones.
        settings: likewise.
        seen: likewise.
        last_ids: likewise.
        vocab_size: likewise.
        banned: likewise.
        bands: how near shares of the mass, finishes of the draw, depths and log-probabilities may be before rounding
            decides.
    """
    rows = len(logits)
    out = torch.empty((rows, 4), dtype=torch.int32, device=logits.device)
    if rows == 0:
        return out
    scores = torch.empty((rows, kernels.score_columns(vocab_size)), dtype=torch.float32, device=logits.device)
    ids = torch.empty_like(scores, dtype=torch.int32)
    padded = -(-vocab_size // _PIECE) * _PIECE
    in_pieces = reads_pieces(logits, padded) and (banned is None or len(banned) >= padded)
    with torch.cuda.device(logits.get_device()):
        kernels.launch_sample(
            logits,
            settings,
            seen,
            last_ids,
            None if banned is None else banned.view(torch.uint8),
            scores,
            ids,
            out,
            vocab_size,
            padded if in_pieces else vocab_size,
            _PIECE if in_pieces else 1,
            bands,
        )
    return out


def reads_pieces(logits: Tensor, columns: int) -> bool:
    """Whether every row begins where a piece may, and has memory for so many columns, used or not."""
    rows, stride = len(logits), logits.stride()[0]
    if logits.data_ptr() % (_PIECE * 2) or (rows > 1 and stride % _PIECE):
        return False
    elements = logits.untyped_storage().nbytes() // logits.element_size()
    return logits.storage_offset() + (rows - 1) * stride + columns <= elements
