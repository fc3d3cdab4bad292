"""Decode steps as CUDA graphs, one for each bucket, captured when or before they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ruprompt_fast.backends.cuda.buckets import Bucket
from ruprompt_fast.backends.cuda.device import Device, Graph, Launches
from ruprompt_fast.errors import GraphError, described

# A replay runs the same kernels on the same numbers; only an atomic sum or another algorithm of a library may round
# otherwise. Wrong numbers are off by tenths.
_RELATIVE_ERROR = 1e-2


class DecodeGraphs:
    """The graphs of the buckets; a bucket that cannot be captured runs eagerly.

    Args:
        device: captures them.
        launches_of: for a bucket, its decode step over static buffers; the first of the outputs are the logits.
        rehearse: puts inputs into the buffers of a bucket that every kernel of the step can run on.
    """

    def __init__(
        self, device: Device, launches_of: Callable[[Bucket], Launches], rehearse: Callable[[Bucket], None]
    ) -> None:
        self._device = device
        self._launches_of = launches_of
        self._rehearse = rehearse
        self._graphs: dict[Bucket, Graph] = {}
        self._refusals: dict[Bucket, str] = {}
        self._refusal_of_all: str | None = None
        self._logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def __contains__(self, bucket: Bucket) -> bool:
        """Whether it is known how the bucket runs."""
        return bucket in self._graphs or bucket in self._refusals or self._refusal_of_all is not None

    def of(self, bucket: Bucket) -> Graph | None:
        """The bucket's graph, captured if there is none yet; None if it has to run eagerly."""
        if bucket not in self:
            self._capture(bucket)
        return self._graphs.get(bucket)

    def clear(self) -> None:
        """Forget the graphs, and give back their memory."""
        self._graphs.clear()
        self._logits = None

    def refuse_all(self, reason: str) -> None:
        """Capture nothing."""
        self._refusal_of_all = reason

    def reasons(self) -> dict[str, str]:
        """For what runs eagerly and might not, the reason."""
        if self._refusal_of_all is not None:
            return {"all sizes": self._refusal_of_all}
        return {str(bucket): reason for bucket, reason in self._refusals.items()}

    def _capture(self, bucket: Bucket) -> None:
        launches = self._launches_of(bucket)
        self._rehearse(bucket)
        try:
            expected = launches()[0].clone()
            graph = self._device.capture(partial(_copying_logits, launches, self._room_for(expected)))
            graph.replay()
            _check_replay(graph.outputs[0], expected)
        except Exception as error:  # whatever a model does that a graph cannot hold: eager steps can
            self._refusals[bucket] = described(error)
        else:
            self._graphs[bucket] = graph

    def _room_for(self, logits: Tensor) -> Tensor:
        """Memory that all graphs write their logits to.

        What a graph returns keeps its memory for as long as the graph lives, and logits are large.
        """
        if self._logits is None or len(self._logits) < len(logits):
            self._logits = torch.empty_like(logits)
        return self._logits[: len(logits)]


def _copying_logits(launches: Launches, room: Tensor) -> Sequence[Tensor]:
    logits, *others = launches()
    return room.copy_(logits), *others


def _check_replay(found: Tensor, expected: Tensor) -> None:
    distance = (found.float() - expected.float()).norm() / expected.float().norm()
    if not bool(distance <= _RELATIVE_ERROR) and not torch.equal(found, expected):
        raise GraphError(f"a replay gives other logits than the model (relative error {float(distance):.2g}).")
