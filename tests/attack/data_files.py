"""Damaged files of rows: every line is read or counted as broken, or the file is refused by name."""

from __future__ import annotations

import csv
import io
import json
import logging
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from attack.tally import Tally

from ruprompt_fast.errors import RupromptError
from ruprompt_fast.runs.data.rows import load_rows
from ruprompt_fast.runs.data.sources import records

COLUMNS = ("text", "target", "more")
WORDS = (
    "да",
    "нет",
    "море, лес",
    'он "тут"',
    "a\tb",
    "строка\nещё строка",
    "",
    " ",
    "5",
    "ё",
    "😀",
    "\u2028",
    "x" * 300,
)
SLOW_SECONDS = 20.0
"""Processor time of reading a file; what else runs on the machine does not count."""
LONGEST_MESSAGE = 2000
ENCODINGS = ("utf-16", "utf-32", "cp1251", "utf-8-sig", "koi8-r", "utf-16-le")

_LINE_END = re.compile("\r\n|\r|\n")


def attack(seconds: float, seed: int) -> Tally:
    """Write, damage and read small files for about so long."""
    tally = Tally("data files")
    rng = random.Random(seed)
    deadline = time.monotonic() + seconds
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as folder:
            while time.monotonic() < deadline:
                suffix = rng.choice((".csv", ".tsv", ".jsonl"))
                content = damaged(whole_file(suffix, rng), rng)
                path = Path(folder) / f"rows{suffix}"
                path.write_bytes(content)
                judge(tally, path, content)
    finally:
        logging.disable(logging.NOTSET)
    return tally


def judge(tally: Tally, path: Path, content: bytes) -> None:
    """Read a file; count how that ends."""
    what = f"{path.suffix} {content[:300]!r}"
    started = time.process_time()
    try:
        problem = lost_line(path, content)
        found = len(list(records(str(path))))
        loaded = load_rows(str(path), COLUMNS, on_bad_row="skip")
        if len(loaded.rows) + len(loaded.bad) != found:
            problem = f"{len(loaded.rows)} rows and {len(loaded.bad)} broken ones of {found}"
    except RupromptError as error:
        tally.record("refused" if len(str(error)) <= LONGEST_MESSAGE else "wrong", what)
        return
    except Exception as error:
        tally.record("raw", f"{type(error).__name__}: {error}: {what}")
        return
    if time.process_time() - started > SLOW_SECONDS:
        tally.record("hung", what)
    else:
        tally.record("answered" if problem is None else "wrong", f"{problem}: {what}")


def lost_line(path: Path, content: bytes) -> str | None:
    """The first line that no record covers and that is not empty, in words; None if there is none."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return None  # other encodings are compared by their own tests
    is_table = path.suffix != ".jsonl"
    text = content.decode("utf-8-sig", "surrogateescape")
    lines = _LINE_END.split(text) if is_table else text.split("\n")
    covered: set[int] = set()
    for number, record in records(str(path)):
        size = 1
        if is_table and not isinstance(record, str):
            size += sum(len(_LINE_END.findall(value)) for value in record.values())
        own = set(range(number, number + size))
        if own & covered:
            return f"line {number} is read twice"
        covered |= own
    filled = [number for number, line in enumerate(lines, start=1) if line.strip(None if not is_table else "\r\n")]
    header = set()
    if is_table and filled:
        # The names of the columns may run over lines too: as many as come before the first row.
        header = set(range(1, min(covered, default=filled[0] + 1)))
        if not covered:
            header = set(range(1, filled[-1] + 1)) if len(filled) == 1 else {filled[0]}
    lost = [number for number in filled if number not in covered and number not in header]
    return f"line {lost[0]} is neither read nor counted" if lost else None


def whole_file(suffix: str, rng: random.Random) -> bytes:
    """A file of a few rows, or some hundred."""
    rows = [[rng.choice(WORDS) for _ in COLUMNS] for _ in range(rng.choice((0, 1, 3, 10, 300)))]
    if suffix == ".jsonl":
        return "".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows).encode()
    text = io.StringIO()
    if suffix == ".csv":
        csv.writer(text, lineterminator=rng.choice(("\n", "\r\n"))).writerows([COLUMNS, *rows])
        return text.getvalue().encode()
    lines = ["\t".join(COLUMNS), *("\t".join(re.sub(r"[\t\n]", " ", value) for value in row) for row in rows)]
    return ("\n".join(lines) + "\n").encode()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with up to five things done to it."""
    for _ in range(rng.randint(0, 5)):
        content = rng.choice(DAMAGES)(content, rng)
    return content


def _inserted(piece: bytes) -> Callable[[bytes, random.Random], bytes]:
    def insert(content: bytes, rng: random.Random) -> bytes:
        place = rng.randint(0, len(content))
        return content[:place] + piece + content[place:]

    return insert


def _flipped(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.randint(0, len(content)) for _ in range(2))
    return content[:first] + content[last:]


def _recoded(content: bytes, rng: random.Random) -> bytes:
    try:
        return content.decode().encode(rng.choice(ENCODINGS))
    except UnicodeError:
        return content


PIECES = (
    b'"', b'"', b'""', b'\n"', b'",', b'\t"', b"\0", b"\xff", b"\r", b"\n", b"\n\n", b",", b"\t", b";", b"{",
    b"[" * 5000, b"9" * 5000, b"1e999", b"NaN", b"\\ud800", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"null",
    b"x" * 200_000,
    b'"\n' * 300, b"\n,,", b'{"text": 1, "target": [], "more": {}}\n', b"\n\n\n\x0c\x0b\x1c\n",
)  # fmt: skip
DAMAGES = (*(_inserted(piece) for piece in PIECES), _flipped, _flipped, _cut, _recoded)
