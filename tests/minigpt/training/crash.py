"""A process that trains and is killed, for test_train_crash.py.

python crash.py create FOLDER    creates a run again and again, killed before its first file
                                 operation, its second, and so on; checks that a second attempt
                                 gives the same files. Prints the number of operations
python crash.py resume FOLDER    the same for resuming a run
python crash.py train FOLDER     resumes the run in the folder, until it is killed
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

from minigpt.training.limits import Limits
from minigpt.training.run_folder import newest_checkpoint, open_run

OPERATIONS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
SHORT = replace(CONFIG, steps=8, eval_every=4)


def kill_creating(folder: Path) -> int:
    """Kill the creation of a run before each file operation; returns their number."""
    create(folder / "whole", SHORT)
    run = folder / "run"
    for point in range(1, 1000):
        if not in_child(lambda point=point: killed_at(point, lambda: create(run, SHORT))):
            return point - 1
        if not run.exists():
            create(run, SHORT)
        assert sorted(path.name for path in folder.iterdir()) == ["run", "tokenizer", "whole"]
        assert files(run) == files(folder / "whole"), point
        shutil.rmtree(run)
    raise AssertionError("it never ends")


def kill_resuming(folder: Path) -> int:
    """Kill the resumption of a run before each file operation; returns their number."""
    create(folder / "started", SHORT)
    resume(folder / "started", limits=Limits(steps=4))
    whole = shutil.copytree(folder / "started", folder / "whole")
    resume(whole)
    for point in range(1, 1000):
        run = shutil.copytree(folder / "started", folder / f"run-{point}")
        if not in_child(lambda run=run, point=point: killed_at(point, lambda: resume(run))):
            return point - 1
        assert newest_checkpoint(run).name in ("step-00000004", "step-00000008"), point
        assert open_run(run).state.step in (4, 8), point
        resume(run)
        assert files(run) == files(whole), point
    raise AssertionError("it never ends")


def killed_at(point: int, work: Callable[[], object]) -> None:
    """Call `work`, and kill this process before file operation number `point`."""
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
    """Call `work` in a child process; returns whether it was killed."""
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
    """{path: bytes} of all files; those that hold times count as empty."""
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
        os.fsync = lambda descriptor: None  # a killed process loses nothing it has written
        print(kill_creating(where) if what == "create" else kill_resuming(where))
