"""Content keys: what was computed from equal content is shared, whatever name it was loaded under."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.embedding import PROVIDERS_KEY

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Numbers read of every weight; training a model changes all of its weights.
_SAMPLES_PER_WEIGHT = 256

# Fields of a config that do not change what the model computes.
_NOT_CONTENT = ("_name_or_path", "transformers_version")

# Page hashes are compared, the ids are not. Under a key that nobody outside the process knows, no input can be made to
# collide with another one's pages.
_PROCESS_KEY = os.urandom(64)

_ID_BYTES = 8


def model_identity(model: PreTrainedModel) -> bytes:
    """A digest of a model's configuration and weights, 32 bytes.

    Of every weight its name, dtype, shape and up to 256 numbers spread over it are read, so models that were trained
    apart differ, and so does one model in two dtypes. Prompts attached to the model do not count. Take it before
    a backend prepares the weights.

    Args:
        model: a transformers model; its weights may be on any device.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_CONTENT}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in _weights(model):
        flat = weight.detach().reshape(-1)
        digest.update(f"\n{name} {weight.dtype} {list(weight.shape)} ".encode())
        digest.update(_content(flat[_spread(len(flat))]))
    return digest.digest()


def prefix_key(
    identity: bytes,
    dtype: torch.dtype,
    rows: Tensor | None,
    ids: Sequence[int],
    first_row_id: int,
    *,
    is_deep: bool = False,
) -> bytes:
    """The key of a prefix's content, 32 bytes; also the seed of :func:`page_hashes` for requests with this prefix.

    Args:
        identity: the model's, see :func:`model_identity`.
        dtype: the dtype of keys and values.
        rows: all virtual tokens of the prompt [rows, width], also those after the prefix: later pages may hold them.
            For a deep prompt, its keys and values. None without a prompt.
        ids: ids of the prefix, ``first_row_id + k`` for virtual token k; may be empty.
        first_row_id: the id of the prompt's first virtual token. The key does not depend on it.
        is_deep: whether the rows are keys and values, so that equal numbers mean something else.
    """
    digest = hashlib.sha256(b"%d:%b %b %d " % (len(identity), identity, str(dtype).encode(), is_deep))
    relative = np.asarray(ids, dtype=np.int64)
    # Row k becomes -1 - k, which no token has.
    digest.update(b"%d:" % len(relative))
    digest.update(np.where(relative >= first_row_id, first_row_id - 1 - relative, relative).tobytes())
    if rows is not None:
        digest.update(f"{rows.dtype} {list(rows.shape)} ".encode())
        digest.update(_content(rows))
    return digest.digest()


def page_hashes(seed: bytes, ids: Sequence[int], page_size: int) -> npt.NDArray[np.uint64]:
    """A hash for every full page of a sequence, of the seed and all ids up to the page's end.

    Equal hashes mean equal keys and values, in this process only: the hash is BLAKE2b with a random key of the process,
    of 64 bits. Two different pages out of n share one with a probability of ``n * n / 2**65``.

    Args:
        seed: what else the pages depend on: :func:`prefix_key` of the prompt, or :func:`model_identity` without one.
        ids: ids of the whole sequence, its prefix included, ``first_row_id + k`` for virtual token k.
        page_size: tokens of a page.

    Returns:
        uint64 [len(ids) // page_size].
    """
    count = len(ids) // page_size
    data = memoryview(np.asarray(ids[: count * page_size], dtype=np.int64).tobytes())
    chain = hashlib.blake2b(b"%d:%b" % (len(seed), seed), digest_size=8, key=_PROCESS_KEY)
    digests = []
    for start in range(0, len(data), page_size * _ID_BYTES):
        chain.update(data[start : start + page_size * _ID_BYTES])
        digests.append(chain.digest())
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The model's own weights by name, without those of attached prompts."""
    for name, weight in model.state_dict().items():
        if PROVIDERS_KEY not in name and isinstance(weight, Tensor):
            yield name, weight


def _spread(length: int) -> Tensor:
    """Indices int64 of up to 256 elements of ``length``, the first and the last among them."""
    count = min(length, _SAMPLES_PER_WEIGHT)
    return torch.linspace(0, length - 1, count, dtype=torch.float64).round().long() if count else torch.arange(0)


def _content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's elements in order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
