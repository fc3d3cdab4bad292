"""Read the public-domain Russian literature and the proverbs that the bundled model and its prompts are made from.

The archive holds one folder per author under ``prose/``, ``poems/`` and ``publicism/``; every text is public domain
(its README says so). Works named in :data:`HELD_OUT` are never trained on, neither by the tokenizer, the model nor a
prompt: every figure of the model card is measured on them.
"""

from __future__ import annotations

import random
import re
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = frozenset(
    {
        "poems/Blok/Скифы.txt",
        "poems/Blok/Соловьиный сад.txt",
        "poems/Lermontov/Мцыри.txt",
        "poems/Nekrasov/Русские женщины.txt",
        "poems/Pushkin/Медный всадник.txt",
        "poems/Pushkin/Сказка о рыбаке и рыбке.txt",
        "prose/Bryusov/Республика Южного Креста.txt",
        "prose/Chekhov/Палата №6.txt",
        "prose/Chekhov/Дуэль.txt",
        "prose/Dostoevsky/Белые ночи.txt",
        "prose/Dostoevsky/Бедные люди.txt",
        "prose/Gogol/Шинель.txt",
        "prose/Gogol/Невский проспект.txt",
        "prose/Gorky/Старуха Изергиль.txt",
        "prose/Herzen/Сорока-воровка.txt",
        "prose/Lermontov/Штосс.txt",
        "prose/Pushkin/Пиковая дама.txt",
        "prose/Tolstoy/Смерть Ивана Ильича.txt",
        "prose/Turgenev/Ася.txt",
    }
)
"""Works kept for evaluation, by their path in the archive."""

PROVERB_HELD_OUT_EVERY = 12
"""Every twelfth proverb is kept for evaluation."""

_HARD_WRAP_WIDTH = 90
_DASHES = re.compile(r"(?<=\s)(--?|–)(?=\s)")
_SPACES = re.compile(r"[ \t\u00a0]+")


@dataclass(frozen=True)
class Work:
    """One work: ``path`` in the archive, ``text`` cleaned, one paragraph (or line of verse) per line."""

    path: str
    text: str

    @property
    def kind(self) -> str:
        """``prose``, ``poems`` or ``publicism``."""
        return self.path.split("/")[0]

    @property
    def author(self) -> str:
        """The author's folder name, such as ``Gogol``."""
        return self.path.split("/")[1]

    @property
    def held_out(self) -> bool:
        """Whether the work is kept for evaluation."""
        return self.path in HELD_OUT


def read_works(archive: Path) -> list[Work]:
    """Read every text of the ``tar.xz`` archive, sorted by path."""
    works = []
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            stream = tar.extractfile(member) if member.name.endswith(".txt") else None
            if stream is None:
                continue
            path = unicodedata.normalize("NFC", member.name.removeprefix("./"))
            works.append(Work(path, clean(_decode(stream.read()), verse=path.startswith("poems/"))))
    return sorted(works, key=lambda work: work.path)


def read_proverbs(path: Path) -> tuple[list[str], list[str]]:
    """Read one proverb per line; returns (training, held-out)."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    proverbs = list(dict.fromkeys(_DASHES.sub("—", line) for line in lines if line))
    random.Random(0).shuffle(proverbs)
    train = [line for index, line in enumerate(proverbs) if index % PROVERB_HELD_OUT_EVERY]
    return train, proverbs[::PROVERB_HELD_OUT_EVERY]


def clean(text: str, *, verse: bool) -> str:
    """Unify spaces, dashes and line ends; join hard-wrapped prose; keep one blank line between stanzas."""
    raw = unicodedata.normalize("NFC", text).replace("\ufeff", "").splitlines()
    lines = _stanzas(raw) if verse else _paragraphs(raw)
    return "\n".join(lines).strip()


def pieces(works: Iterable[Work], rng: random.Random, *, min_chars: int, max_chars: int) -> Iterator[str]:
    """Cut works at line ends into pieces whose lengths are log-uniform between the two bounds, in characters."""
    for work in works:
        lines, size = [], 0
        target = _log_uniform(rng, min_chars, max_chars)
        for line in work.text.split("\n"):
            lines.append(line)
            size += len(line) + 1
            if size >= target:
                yield "\n".join(lines).strip()
                lines, size = [], 0
                target = _log_uniform(rng, min_chars, max_chars)
        if size >= min_chars:
            yield "\n".join(lines).strip()


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return int(low * (high / low) ** rng.random())


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1251")  # one poem of the archive


def _tidy(line: str) -> str:
    return _SPACES.sub(" ", _DASHES.sub("—", f" {line.replace('...', '…')} ")).strip()


def _stanzas(raw: list[str]) -> list[str]:
    lines: list[str] = []
    for line in map(_tidy, raw):
        if line or (lines and lines[-1]):
            lines.append(line)
    return lines


def _paragraphs(raw: list[str]) -> list[str]:
    lengths = sorted(len(line.strip()) for line in raw if line.strip())
    wrapped = bool(lengths) and lengths[int(len(lengths) * 0.95)] <= _HARD_WRAP_WIDTH
    if not wrapped:
        return [line for line in map(_tidy, raw) if line]
    paragraphs: list[str] = []
    after_blank = True
    for line in raw:
        tidy = _tidy(line)
        if tidy:
            if after_blank or line[:2].isspace() or not paragraphs:
                paragraphs.append(tidy)
            else:
                paragraphs[-1] += " " + tidy
        after_blank = not tidy
    return paragraphs
