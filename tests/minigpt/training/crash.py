"""A process that trains and dies, for test_train_crash.py.

python crash.py begin FOLDER     begins a run, and dies before each of the file operations that
python crash.py go-on FOLDER     takes, in turn; goes on with one, and dies so. Each time it is
                                 seen that, tried again, it comes to the same end
python crash.py train FOLDER     goes on with the run in the folder, until it is killed
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tiny_run import CONFIG, create, resume

from minigpt.training.run_folder import newest_checkpoint, open_run
from minigpt.training.train import Limits

OPERATIONS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
SHORT = replace(CONFIG, steps=8, eval_every=4)


def die_beginning(folder: Path) -> int:
    """How many operations there were."""
    create(folder / "whole", SHORT)
    run = folder / "run"
    for point in range(1, 1000):
        if not in_child(lambda point=point: die_at(point, lambda: create(run, SHORT))):
            return point - 1
        if not run.exists():
            create(run, SHORT)
        assert sorted(path.name for path in folder.iterdir()) == ["run", "tokenizer", "whole"]
        assert files(run) == files(folder / "whole"), point
        shutil.rmtree(run)
    raise AssertionError("it never ends")


def die_going_on(folder: Path) -> int:
    """How many operations there were."""
    create(folder / "begun", SHORT)
    resume(folder / "begun", limits=Limits(steps=4))
    whole = shutil.copytree(folder / "begun", folder / "whole")
    resume(whole)
    for point in range(1, 1000):
        run = shutil.copytree(folder / "begun", folder / f"run-{point}")
        if not in_child(lambda run=run, point=point: die_at(point, lambda: resume(run))):
            return point - 1
        assert newest_checkpoint(run).name in ("step-00000004", "step-00000008"), point
        assert open_run(run).state.step in (4, 8), point
        resume(run)
        assert files(run) == files(whole), point
    raise AssertionError("it never ends")


def die_at(point: int, work: Callable[[], object]) -> None:
    """Does it, but is killed before file operation number `point`."""
    left = point

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in OPERATIONS:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    work()


def in_child(work: Callable[[], None]) -> bool:
    """Does it in a child of this process; whether that was killed."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def files(run: Path) -> dict[str, bytes]:
    """All files by their paths; but what holds times as if it were empty."""
    paths = sorted(path for path in run.rglob("*") if path.is_file())
    timed = ("metrics.jsonl", "state.json")
    return {
        str(path.relative_to(run)): b"" if path.name in timed else path.read_bytes()
        for path in paths
    }


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "train":
        resume(where)
    else:
        os.fsync = lambda descriptor: None  # a process that dies loses nothing it has written
        print(die_beginning(where) if what == "begin" else die_going_on(where))
