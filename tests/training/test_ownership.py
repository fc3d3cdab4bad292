"""One run at a time for each output, whatever happens to the one that owns it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from training.trainer_cases import make_prompt, make_trainer

from ruprompt_fast.errors import FileWriteError, OutputExistsError, OutputInUseError
from ruprompt_fast.training.ownership import LOCK_FILE, owning_file, owning_folder

OWNER = """
import sys
from pathlib import Path
from ruprompt_fast.training.ownership import owning_folder
with owning_folder(Path(sys.argv[1])):
    print("owned", flush=True)
    sys.stdin.read()
"""

Owning = Callable[[Path], AbstractContextManager[None]]


@pytest.mark.parametrize("owning", [owning_folder, owning_file])
def test_the_second_owner_is_refused_and_told_of_the_first(owning: Owning, tmp_path: Path) -> None:
    output = tmp_path / "some" / "output"
    with owning(output):
        with pytest.raises(OutputInUseError) as caught, owning(output):
            pass
        assert isinstance(caught.value, OutputExistsError)
        said = str(caught.value)
        assert f"process {os.getpid()} on {socket.gethostname()}, since 20" in said
        assert str(output) in said
        with owning(tmp_path / "other"):
            pass
    with owning(output):
        pass
    assert not list(tmp_path.iterdir())  # nothing was written, so nothing stays


def test_what_was_written_stays_and_the_lock_goes(tmp_path: Path) -> None:
    with owning_folder(tmp_path / "run"):
        (tmp_path / "run" / "result").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["result"]


def test_an_owner_that_is_killed_owns_nothing(tmp_path: Path) -> None:
    start = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
    owner = subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "owned\n"
    with pytest.raises(OutputInUseError, match=f"process {owner.pid} "), owning_folder(tmp_path / "run"):
        pass
    owner.kill()
    owner.communicate()
    assert (tmp_path / "run" / LOCK_FILE).is_file()
    with owning_folder(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not list((tmp_path / "run").iterdir())


def test_a_forked_child_neither_owns_nor_gives_back(tmp_path: Path) -> None:
    with owning_folder(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            try:
                with owning_folder(tmp_path / "run"):
                    os._exit(1)
            except OutputInUseError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (tmp_path / "run" / LOCK_FILE).is_file()
    assert not (tmp_path / "run").exists()


def test_many_at_once(tmp_path: Path) -> None:
    inside, most, refused, entered = 0, 0, 0, 0
    guard = threading.Lock()

    def enter() -> None:
        nonlocal inside, most, refused, entered
        try:
            with owning_folder(tmp_path / "deep" / "run"):
                with guard:
                    inside, entered = inside + 1, entered + 1
                    most = max(most, inside)
                with guard:
                    inside -= 1
        except OutputInUseError:
            with guard:
                refused += 1

    def compete() -> None:
        for _ in range(50):
            enter()

    threads = [threading.Thread(target=compete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert entered + refused == 300


@pytest.mark.parametrize("owning", [owning_folder, owning_file])
def test_what_cannot_be_made_is_named(owning: Owning, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileWriteError, match=re.escape(str(tmp_path / "file"))), owning(tmp_path / "file" / "x" / "y"):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(FileWriteError), owning_folder(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_two_trainers_do_not_share_a_folder(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    with owning_folder(tmp_path / "run"):
        for resume in (None, True):
            with pytest.raises(OutputInUseError, match=f"process {os.getpid()}"):
                make_trainer(tmp_path / "run", make_prompt(), **saving).train(resume_from_checkpoint=resume)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
        make_trainer(tmp_path / "run", make_prompt()).train()  # without checkpoints it writes nothing there
    make_trainer(tmp_path / "run", make_prompt(), **saving).train()
    assert not (tmp_path / "run" / LOCK_FILE).exists()
