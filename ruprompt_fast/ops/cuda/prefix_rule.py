"""When it pays to read a shared prefix once for all its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast.ops.cuda.cards import Card

if TYPE_CHECKING:
    from ruprompt_fast.ops.prefix_decode import SharedPrefixes

# By compute capability, newest first: the bytes of a layer that must be saved at least. None of them is measured. They
# are what the card reads in ten microseconds at 0.9, 0.3, 2.0 and 3.3 TB/s: a kernel's launch and ramp, twice, since
# rows of one prefix find much of it in the L2 cache anyway. bench_prefix_decode.py shows where the two ways meet: the
# figure for a card is the least that is saved from where prefix_decode is faster.
LEAST_SAVED_BYTES = (
    ((9, 0), 33 << 20),
    ((8, 0), 20 << 20),
    ((7, 5), 3 << 20),
    ((7, 0), 9 << 20),
)


def prefix_decode_pays(shared: SharedPrefixes, token_bytes: int, row_bytes: int, card: Card) -> bool:
    """Whether :func:`ruprompt_fast.ops.prefix_decode` is to be taken for a step, by the bytes that it reads less.

    Args:
        shared: the step's rows.
        token_bytes: of a token's keys and values in one layer.
        row_bytes: of a row's result in float32, of which there is a part more to write and to read.
        card: that decodes.
    """
    least = next((least for capability, least in LEAST_SAVED_BYTES if card.capability >= capability), None)
    if least is None:
        return False
    num_sharing = int((shared.prefix_lens > 0).sum())
    # A row that had one part has three: of its prefix, of its rest, and their sum.
    return shared.saved_tokens * token_bytes >= least + 4 * row_bytes * num_sharing
