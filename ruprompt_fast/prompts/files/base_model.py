"""Which model a prompt was made for: what it is, not what it is called.

A model's name is a hub id on one machine and some folder on the next, so names say little. What says more is kept with
the prompt: kind, sizes, and a fingerprint of the token table, some of whose numbers are enough to tell models apart.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.errors import PromptFileError, PromptMismatchError, UnknownBaseModelWarning, shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ruprompt_fast.prompts.prompt import Prompt

Verdict = Literal["same", "unsure", "other"]

# Rows that every table with so many has: the table may have been padded or cut after them. The first few are left out:
# they are special tokens, and some of them never train.
_ROWS = [round(5 * 1.5**step) for step in range(28)]
_COLUMNS = 4
_LEAST = 2 * _COLUMNS
_MAX_CHARS = 4 * _COLUMNS * len(_ROWS)

# bfloat16 keeps 8 bits of a number; float16 none of one below 6e-8.
_TOLERANCE = 2.0**-7
_SMALLEST = 1e-6
# Of numbers that were trained further, or quantized to 4 bits, more than 0.95; of another model's, around 0.
_ALIKE = 0.9

_HEX = re.compile(r"([0-9a-f]{4})+")
_SNAPSHOT = re.compile(r"models--(?:.*--)?([^/]+?)/snapshots/[^/]+", re.IGNORECASE)


@dataclass(frozen=True)
class BaseModel:
    """What a model is, as far as prompts are concerned.

    Attributes:
        model_type: transformers' name of its architecture.
        width: the width of its token table.
        vocab_size: the number of the table's rows.
        fingerprint: numbers of the table as bfloat16, in hexadecimal; those of the first rows come first.
    """

    model_type: str
    width: int
    vocab_size: int
    fingerprint: str

    @classmethod
    def of(cls, config: PretrainedConfig, table: Tensor) -> BaseModel | None:
        """Describe a model; None for one whose table cannot be read.

        Args:
            config: its config.
            table: its token table, [tokens, width], in any dtype.
        """
        if table.ndim != 2 or table.is_meta or not table.is_floating_point():
            return None
        rows = [row for row in _ROWS if row < table.shape[0]]
        # Other columns in every row: a column's mean is large in some models, and says the same thing every time.
        width = table.shape[1]
        places = [
            (7 * step + part * width // _COLUMNS) % width for step in range(len(rows)) for part in range(_COLUMNS)
        ]
        numbers = table.detach()[torch.tensor(rows, dtype=torch.long).repeat_interleave(_COLUMNS), places]
        bits = numbers.float().cpu().to(torch.bfloat16).view(torch.int16).numpy().astype(">i2")
        return cls(str(getattr(config, "model_type", "")), width, table.shape[0], bits.tobytes().hex())

    def as_dict(self) -> dict[str, Any]:
        """The entries as stored."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Any) -> BaseModel:
        """Read the entries.

        Raises:
            PromptFileError: one is missing or has another form.
        """
        names = ("model_type", "width", "vocab_size", "fingerprint")
        values: list[Any] = [stored.get(name) for name in names] if isinstance(stored, Mapping) else []
        has_types = [type(value) for value in values] == [str, int, int, str]
        if not has_types or min(values[1:3]) < 1 or not _is_fingerprint(values[3]):
            raise PromptFileError(
                "expected base_model to have the strings model_type and fingerprint, in hexadecimal, and the sizes "
                f"width and vocab_size; found {shown(stored)}. The file was edited by hand: save the prompt again."
            )
        return cls(*values)

    def compare(self, other: BaseModel) -> Verdict:
        """Whether this is the model that the other is, whatever their dtypes and the ends of their tables."""
        if self.width != other.width:
            return "other"
        length = min(len(self.fingerprint), len(other.fingerprint))
        ours, theirs = (_numbers(one.fingerprint[:length]) for one in (self, other))
        finite = np.isfinite(ours) & np.isfinite(theirs)
        ours, theirs = ours[finite], theirs[finite]
        if len(ours) < _LEAST:
            return "unsure"
        if np.allclose(ours, theirs, rtol=_TOLERANCE, atol=_SMALLEST):
            return "same" if self.model_type == other.model_type else "unsure"
        scale = np.linalg.norm(ours) * np.linalg.norm(theirs)
        return "unsure" if scale == 0 or ours @ theirs > _ALIKE * scale else "other"

    def __str__(self) -> str:
        return f"{self.model_type} of width {self.width} with {self.vocab_size} tokens"


def check_base(prompt: Prompt, base: BaseModel | None, name: str | None, what: str = "the prompt") -> None:
    """Refuse a prompt of another model; warn, once for a prompt, of one of which that cannot be told.

    Args:
        prompt: the prompt.
        base: the model that it is to be used with; None if it cannot be described.
        name: that model's name.
        what: what the message calls the prompt.

    Raises:
        PromptMismatchError: the prompt was made for another model.
    """
    theirs, their_name = prompt.config.base_model, prompt.config.pretrained_model_name
    made_for = f"{what} was made for {_described(theirs, their_name)}"
    this = f"this model is {_described(base, name)}"
    if base is not None and theirs is not None:
        verdict = base.compare(theirs)
        if verdict == "other":
            raise PromptMismatchError(
                f"{made_for}; {this}, and its token table is another one. Load the model that the prompt was made for, "
                "or a prompt made for this one."
            )
        problem = "their token tables are alike, but not the same"
    else:
        verdict = "same" if not their_name or not name or _plain(their_name) == _plain(name) else "unsure"
        problem = "whether they are the same cannot be told from names"
    if verdict == "unsure" and not prompt.ctx.is_warned:
        prompt.ctx.is_warned = True
        warnings.warn(
            UnknownBaseModelWarning(
                f"{made_for}; {this}: {problem}. If they are the same, set prompt.config.base_model = None and "
                f"prompt.config.pretrained_model_name = {name!r}, and save it again; if not, its answers mean nothing."
            ),
            stacklevel=3,
        )


def _described(base: BaseModel | None, name: str | None) -> str:
    return " / ".join(filter(None, [shown(name) if name else "", str(base) if base else ""])) or "an unnamed model"


def _plain(name: str) -> str:
    """A name's last part, the same for a hub id, a folder of that name, and the hub's own cache."""
    path = name.replace("\\", "/").rstrip("/")
    snapshot = _SNAPSHOT.search(path)
    return (snapshot[1] if snapshot else path.rsplit("/", 1)[-1]).casefold()


def _is_fingerprint(text: str) -> bool:
    return len(text) <= _MAX_CHARS and (not text or _HEX.fullmatch(text) is not None)


def _numbers(fingerprint: str) -> npt.NDArray[np.float64]:
    bits = np.frombuffer(bytes.fromhex(fingerprint), dtype=">u2").astype(np.uint32)
    return (bits << 16).view(np.float32).astype(np.float64)
