"""Attack with prompt files: made to do harm, or good ones that were changed.

Whatever a file holds, a load gives finite rows of the template's shape or a named error, within a second and 100 MB,
and runs nothing; a save removes nothing that it did not write.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from attack.prompt_mutations import changed_bytes, changed_json, replace_file
from attack.prompt_requests import Loader
from attack.tally import Outcome, Tally
from prompts.hostile_cases import HOSTILE
from prompts.hostile_files import ROWS, WIDTH, Content, adapter_json, bombs, prompt_json, torch_bytes, write_files
from safetensors.torch import save

_KV_SIZES = {"num_layers": 1, "num_attention_heads": 2, "token_dim": 5 * 2}


@dataclass(frozen=True)
class Good:
    """A folder that loads.

    Attributes:
        kind: what as, see :mod:`attack.prompt_worker`.
        files: what it holds.
    """

    kind: str
    files: dict[str, Content]


def attack(seconds: float, seed: int) -> Tally:
    """Load hostile and changed files in another process for about so long."""
    tally = Tally("prompt files")
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as root, Loader() as loader:
        attacker = _Attacker(tally, loader, Path(root))
        attacker.check_good()
        for attempt in (attacker.hostile, attacker.bombs, attacker.saves, attacker.rewritten):
            for _ in attempt():
                if time.monotonic() > end:
                    return tally
        while time.monotonic() < end:
            attacker.changed(rng)
    return tally


class _Attacker:
    def __init__(self, tally: Tally, loader: Loader, root: Path) -> None:
        self.tally = tally
        self.loader = loader
        self.root = root
        self.mark = root / "owned"
        self.good = _good_folders()
        self.tried = 0

    def load(self, what: str, kind: str, files: dict[str, Content], expected: tuple[str, ...] = ()) -> None:
        """Load a folder and count the outcome, which is wrong if it is not as expected."""
        with self._folder(files) as folder:
            self._count(what, self.loader.ask(kind=kind, path=str(folder)), expected)

    def check_good(self) -> None:
        """The folders that are changed later load as they are."""
        for number, good in enumerate(self.good):
            self.load(f"good folder {number}", good.kind, good.files, ("answered",))

    def hostile(self) -> Iterator[None]:
        """The folders that were made to do harm."""
        for hostile in HOSTILE:
            for kind in ("ensemble",) if hostile.kind == "ensemble" else ("prompt", "multi"):
                self.load(hostile.name, kind, hostile.files, ("refused",))
                yield

    def bombs(self) -> Iterator[None]:
        """Pickles that run something."""
        for name, content in bombs(self.mark):
            for files in (
                {"prompt.json": prompt_json(), "prompt_provider.bin": content},
                {"adapter_config.json": adapter_json(), "adapter_model.bin": content},
            ):
                self.load(name, "prompt", cast("dict[str, Content]", files), ("refused",))
                yield

    def saves(self) -> Iterator[None]:
        """Saving over a folder whose index names what is somebody's own."""
        source = next(good for good in self.good if good.kind == "ensemble")
        for own in (".git/0", "photos/0", "members/0", "members-2/7", "./0", "../other/0", "members/.git"):
            files = {own.removeprefix("../") + "/photo.jpg": b"dear", "ensemble.json": _index([own]), **_kept(own)}
            with self._folder(source.files) as good, self._folder(cast("dict[str, Content]", files)) as folder:
                before = {path for path in folder.rglob("*") if path.is_file()}
                outcome = self.loader.ask(kind="save", path=str(folder), source=str(good))
                lost = before - set(folder.rglob("*"))
                self._count(f"saving over {own}", ("wrong", f"lost {lost}") if lost else outcome, ("answered",))
            yield

    def rewritten(self) -> Iterator[None]:
        """A file that changes while it is read."""
        for name, data in (
            ("prompt_provider.bin", torch_bytes(torch.zeros(3, 300_000))),
            ("prompt_provider.safetensors", save({"prompt_embeddings": torch.zeros(3, 300_000)})),
        ):
            with self._folder({"prompt.json": prompt_json(), name: data}) as folder:
                stop = threading.Event()
                thread = threading.Thread(target=_rewrite, args=(folder / name, data, stop))
                thread.start()
                for _ in range(40):
                    self._count(f"{name} rewritten", self.loader.ask(kind="prompt", path=str(folder)), ())
                stop.set()
                thread.join()
            yield

    def changed(self, rng: random.Random) -> None:
        """A good folder with changes in one or two files."""
        self.tried += 1
        good, other = rng.choice(self.good), rng.choice(self.good)
        with self._folder(good.files) as folder:
            for name in rng.sample(sorted(good.files), min(len(good.files), rng.choice((1, 1, 1, 2)))):
                path = folder / name
                if rng.random() < 0.03:
                    replace_file(path, rng)
                elif name.endswith(".json") and rng.random() < 0.7:
                    path.write_bytes(changed_json(path.read_bytes(), rng))
                else:
                    path.write_bytes(changed_bytes(path.read_bytes(), _some_file(other, rng), rng))
            self._count(f"change {self.tried}", self.loader.ask(kind=good.kind, path=str(folder)), ())

    def _count(self, what: str, answer: tuple[str, str], expected: tuple[str, ...]) -> None:
        outcome, said = answer
        if self.mark.exists():
            self.mark.unlink()
            outcome, said = "wrong", "code of the file was run"
        elif expected and outcome in ("answered", "refused") and outcome not in expected:
            outcome, said = "wrong", f"{outcome}: {said}"
        self.tally.record(cast(Outcome, outcome), f"{what}: {said}")

    def _folder(self, files: dict[str, Content]) -> _Folder:
        return _Folder(self.root, files)


class _Folder:
    """A folder with files, for as long as a block runs."""

    def __init__(self, root: Path, files: dict[str, Content]) -> None:
        self.path = Path(tempfile.mkdtemp(dir=root))
        write_files(self.path, files)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


def _good_folders() -> list[Good]:
    generator = torch.Generator().manual_seed(0)
    deep = torch.rand(3, 20, generator=generator)
    safe = save({"prompt_embeddings": ROWS})
    factors = {
        "prompt_embeddings": ROWS,
        "prefix_task_cols": torch.rand(1, 3, 2, generator=generator),
        "prefix_task_rows": torch.rand(1, 2, WIDTH, generator=generator),
    }
    deep_config = {"kind": "prefix_tuning", "num_layers": 1, "num_key_value_heads": 2, "head_dim": 5}
    deep_json = prompt_json("<|P|>" * 3 + "{text}", **deep_config)
    members = {f"members/{i}/{name}": data for i in range(3) for name, data in _prompt(safe).items()}
    peft_bin = torch_bytes({"prompt_embeddings": ROWS})
    prompts: list[dict[str, Content]] = [
        {"prompt.json": prompt_json(), "prompt_provider.bin": torch_bytes(ROWS)},
        {"prompt.json": prompt_json(), "prompt_provider.bin": torch_bytes(torch.nn.Parameter(ROWS))},
        {"prompt.json": prompt_json(), "prompt_provider.bin": torch_bytes(ROWS, _use_new_zipfile_serialization=False)},
        {"prompt.json": prompt_json(), "prompt_provider.bin": torch_bytes(ROWS.t().contiguous().t())},
        _prompt(safe),
        _prompt(save({"prompt_embeddings": ROWS.half()})),
        {"prompt.json": prompt_json("<|[k]P|>{text}<|[k]P|><|[k]P|>"), "prompt_provider.safetensors": safe},
        {"prompt.json": deep_json, "prompt_provider.safetensors": save({"prompt_embeddings": deep})},
        {"adapter_config.json": adapter_json(), "adapter_model.safetensors": safe},
        {
            "adapter_config.json": adapter_json("P_TUNING"),
            "adapter_model.bin": peft_bin,
        },
        {
            "adapter_config.json": adapter_json("MULTITASK_PROMPT_TUNING"),
            "adapter_model.safetensors": save({name: value.half() for name, value in factors.items()}),
        },
        {"adapter_config.json": adapter_json("MULTITASK_PROMPT_TUNING"), "adapter_model.bin": torch_bytes(factors)},
        {
            "adapter_config.json": adapter_json("PREFIX_TUNING", **_KV_SIZES),
            "adapter_model.safetensors": save({"prompt_embeddings": deep}),
        },
    ]
    ensemble: dict[str, Content] = {"ensemble.json": _index([f"members/{i}" for i in range(3)]), **members}
    return [*(Good("prompt", files) for files in prompts), Good("ensemble", ensemble)]


def _prompt(safe: bytes) -> dict[str, Content]:
    return {"prompt.json": prompt_json(embedding_dim=WIDTH, prompt_length=3), "prompt_provider.safetensors": safe}


def _index(members: list[str]) -> bytes:
    return json.dumps({"members": members}).encode()


def _kept(own: str) -> dict[str, Any]:
    """Files of the user's beside what an index names."""
    return {f"{own.removeprefix('../').split('/', maxsplit=1)[0]}/notes.txt": b"dear", "README.md": b"dear"}


def _some_file(good: Good, rng: random.Random) -> bytes:
    return cast(bytes, good.files[rng.choice(sorted(good.files))])


def _rewrite(path: Path, data: bytes, stop: threading.Event) -> None:
    while not stop.is_set():
        path.write_bytes(data[: len(data) // 3])
        path.write_bytes(data)
