"""Models in forked children and in signal handlers: they work, or say what is wrong; none waits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

BEGIN = """
import os, signal, threading, time
from minigpt import GPTModel, MinigptError
model = GPTModel.from_pretrained("tests/golden/gelu-new", threads=2)
ids = [1, 2, 3, 4]
expected = model.generate(ids, max_new_tokens=3).tolist()
loss = model.loss_and_grad(ids, ids)[0]
"""

FORK = """
def learn():
    while True:
        model.loss_and_grad(ids * 8, ids * 8)
threading.Thread(target=learn, daemon=True).start()
for _ in range(5):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        right = []
        def work():
            same = model.generate(ids, max_new_tokens=3).tolist() == expected
            right.append(same and model.loss_and_grad(ids, ids)[0] == loss)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        os._exit(0 if right == [True] * 3 else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), end=" ")
print(flush=True)
os._exit(0)
"""

HANDLER = """
outcomes = set()
def handle(*_):
    try:
        model.loss_and_grad(ids, ids)
        outcomes.add("worked")
    except MinigptError as error:
        outcomes.add(str(error).split(";")[0])
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.003)
end = time.monotonic() + 1.5
while time.monotonic() < end:
    assert model.loss_and_grad(ids, ids)[0] == loss
signal.setitimer(signal.ITIMER_REAL, 0)
print("model: is in use by the code that this signal handler interrupted" in outcomes)
"""


@pytest.mark.parametrize(
    ("program", "output"), [(FORK, ["0"] * 5), (HANDLER, ["True"])], ids=["fork", "handler"]
)
def test_forks_and_handlers(program: str, output: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, output), done.stderr
