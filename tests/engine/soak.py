"""Random work from many threads for as long as it is told: ``make soak``.

Requests of all kinds arrive at random and are cancelled at random, prompts are loaded, replaced and removed, and the
pool is so small that requests are preempted and prefixes evicted. All the while every greedy text must be the one that
the request gave alone at the start, the engine's parts must agree, and at the end the memory must be flat and every
page accounted for.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine.engine_cases import ENDLESS, assert_nothing_left, counts, serve
from patience import join_all

from ruprompt_fast import FastPromptModel, Prompt
from ruprompt_fast.errors import CapacityError, UnknownPromptError

NUM_PAGES = 14
NUM_THREADS = 6
ALPHABET = "абвгдежзиклмнопрстуф ,.!"
KINDS = ("greedy", "stream", "beams", "samples", "batch", "classify", "change_prompts")
EVENTS = ("preemptions", "prefix_evictions", "prefix_loads", "text_page_hits", "copies")
ALLOWED_GROWTH = 6 << 20
"""Bytes that the resident memory may grow by between the first third and the end: what allocators keep and arrange."""


@dataclass(frozen=True)
class Case:
    """A greedy request and what it gives alone."""

    fields: Any
    prompt: str | None
    num_new: int
    text: str


@dataclass
class Report:
    """What happened in a soak."""

    done: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1


def resident_bytes() -> int:
    """Resident memory of this process."""
    gc.collect()
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("the kernel does not say how much memory this process takes")


def make_cases(model: FastPromptModel, chance: random.Random, count: int) -> list[Case]:
    """Requests of random lengths, and their texts, one after another on the model."""
    cases = []
    for _ in range(count):
        name = chance.choice([None, *model.prompts])
        text = "".join(chance.choices(ALPHABET, k=chance.randrange(1, 50)))
        fields: Any = {"question": text[:20], "answer": text[20:] or "а"} if name == "fields" else text
        num_new = chance.randrange(1, 24)
        (output,) = model.generate(fields, name, max_new_tokens=num_new, **ENDLESS)
        cases.append(Case(fields, name, num_new, output.text))
    return cases


def seconds(duration: float) -> Callable[[Report], float]:
    """Progress by the clock."""
    start = time.monotonic()
    return lambda report: (time.monotonic() - start) / duration


def work(times: int) -> Callable[[Report], float]:
    """Progress by what was done: every kind of request so many times, and everything happened that is to happen."""

    def progress(report: Report) -> float:
        done = min(report.done.get(kind, 0) for kind in KINDS) / times
        return done if all(report.counts.get(event, 0) > 0 for event in EVENTS) else min(done, 0.9)

    return progress


class Soak:
    """One model under random work.

    Args:
        seed: of everything that is drawn; what the threads do to each other is the machine's.
    """

    def __init__(self, seed: int) -> None:
        self.model = serve(num_pages=NUM_PAGES, max_batch_size=8, max_step_tokens=48, host_cache_bytes=2 * 4096)
        self._seed = seed
        self.cases = make_cases(self.model, random.Random(seed), 60)
        self._prompts: dict[str, Prompt] = dict(self.model.prompts)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.report = Report()

    def run(self, progress: Callable[[Report], float]) -> Report:
        """Work until ``progress`` of what was done is 1, and compare everything; see :func:`seconds`, :func:`work`."""
        threads = [threading.Thread(target=self._work, args=(index,), daemon=True) for index in range(NUM_THREADS)]
        for thread in threads:
            thread.start()
        for third in range(1, 4):
            while not self.report.problems and progress(self.report) < third / 3:
                time.sleep(0.5)
                self._check()
            self.report.resident.append(resident_bytes())
        self._stop.set()
        join_all(threads)
        if not self.report.problems:
            self._finish()
        return self.report

    def _finish(self) -> None:
        assert_nothing_left(self.model)
        for case in self.cases:
            self._generate(case)
        assert_nothing_left(self.model)
        growth = self.report.resident[-1] - self.report.resident[0]
        if growth > ALLOWED_GROWTH:
            self._problem(f"the memory has grown by {growth / 2**20:.1f} MiB")

    def _check(self) -> None:
        try:
            self.model.check_integrity()
            self.report.counts = counts(self.model)
        except Exception as error:
            self._problem(repr(error))

    def _problem(self, what: str) -> None:
        with self._lock:
            self.report.problems.append(what)
        self._stop.set()

    def _work(self, index: int) -> None:
        chance = random.Random(self._seed * 1000 + index)
        kinds = [self._greedy] * 6 + [self._stream] * 4 + [self._beams, self._samples, self._batch, self._classify]
        if index == 0:
            kinds += [self._change_prompts] * 8
        while not self._stop.is_set():
            kind = chance.choice(kinds)
            try:
                kind(chance)
            except Exception as error:
                self._problem(f"{kind.__name__}: {error!r}")
                return
            with self._lock:
                self.report.count(kind.__name__.strip("_"))
            if chance.random() < 0.2:
                time.sleep(chance.expovariate(200))

    def _generate(self, case: Case) -> None:
        (output,) = self.model.generate(case.fields, case.prompt, max_new_tokens=case.num_new, **ENDLESS)
        self._compare(case, output.text)

    def _compare(self, case: Case, text: str) -> None:
        if text != case.text:
            self._problem(f"{case} gave {text!r}")

    def _greedy(self, chance: random.Random) -> None:
        self._generate(chance.choice(self.cases))

    def _batch(self, chance: random.Random) -> None:
        some = chance.choices(self.cases, k=chance.randrange(2, 8))
        num_new = min(case.num_new for case in some)
        fields, names = [case.fields for case in some], [case.prompt for case in some]
        for case, output in zip(
            some, self.model.generate(fields, names, max_new_tokens=num_new, **ENDLESS), strict=True
        ):
            if num_new == case.num_new:
                self._compare(case, output.text)

    def _stream(self, chance: random.Random) -> None:
        """Read a stream to its end, to some point, or not at all."""
        case = chance.choice(self.cases)
        pieces = self.model.stream(case.fields, case.prompt, max_new_tokens=case.num_new, **ENDLESS)
        how = chance.random()
        if how < 0.4:
            self._compare(case, "".join(pieces))
            return
        read = "".join(piece for _, piece in zip(range(chance.randrange(8)), pieces, strict=False))
        if not case.text.startswith(read):
            self._problem(f"{case} streamed {read!r}")
        if how < 0.7:
            pieces.close()  # type: ignore[attr-defined]

    def _beams(self, chance: random.Random) -> None:
        case = chance.choice(self.cases)
        self.model.generate(case.fields, case.prompt, num_beams=2, num_return_sequences=2, max_new_tokens=6)

    def _samples(self, chance: random.Random) -> None:
        """The same seed gives the same samples, whatever runs beside them."""
        case, seed = chance.choice(self.cases), chance.randrange(4)
        settings = {"do_sample": True, "seed": seed, "num_return_sequences": 2, "max_new_tokens": 6}
        found = [self.model.generate(case.fields, case.prompt, **settings) for _ in range(2)]
        if found[0] != found[1]:
            self._problem(f"samples of {case} with seed {seed} differ: {found}")

    def _classify(self, chance: random.Random) -> None:
        case = chance.choice(self.cases)
        self.model.classify(case.fields, case.prompt, labels=["да", "нет"])

    def _change_prompts(self, chance: random.Random) -> None:
        """Load, replace and remove prompts under names of their own, with the contents of others; warm some up."""
        name = f"extra {chance.randrange(3)}"
        source = chance.choice(["short", "around", "bare"])
        self.model.add_prompt(name, self._prompts[source])
        known = [case for case in self.cases if case.prompt == source]
        if known:
            case = chance.choice(known)
            stream = self.model.stream(case.fields, name, max_new_tokens=case.num_new, **ENDLESS)
            first = next(stream, "")
            if chance.random() < 0.5:
                self.model.remove_prompt(name)
            self._compare(case, "".join([first, *stream]))
        if chance.random() < 0.2:
            self.model.warm_up([chance.choice(["short", "around", "bare", "fields"])])
        if name in self.model.prompts and chance.random() < 0.3:
            self.model.remove_prompt(name)
        with suppress(UnknownPromptError, CapacityError, ValueError):
            self.model.generate("а" * 60, name, max_new_tokens=100 if chance.random() < 0.1 else 1, num_beams=8)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--requests", type=int, help="so many of every kind, instead of a time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    progress = seconds(60 * arguments.minutes) if arguments.requests is None else work(arguments.requests)
    report = Soak(arguments.seed).run(progress)
    print("done:", report.done)
    print("scheduler:", report.counts)
    print("resident MiB:", [round(size / 2**20, 1) for size in report.resident])
    if report.problems:
        sys.exit("\n".join(report.problems))


if __name__ == "__main__":
    main()
