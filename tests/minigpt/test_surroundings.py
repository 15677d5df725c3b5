"""Models in forked children, signal handlers and threads with small stacks, and where NumPy's
floating-point errors are exceptions: they work, or say what is wrong; none waits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

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

GENERATE_IN_A_HANDLER = """
outcomes = set()
def handle(*_):
    try:
        outcomes.add(model.generate(ids, max_new_tokens=3).tolist() == expected)
    except MinigptError as error:
        outcomes.add(str(error).split(";")[0])
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.003)
end = time.monotonic() + 1.5
while time.monotonic() < end:
    assert model.generate(ids, max_new_tokens=3).tolist() == expected
signal.setitimer(signal.ITIMER_REAL, 0)
print(outcomes <= {True, "model: is in use by the code that this signal handler interrupted"})
print(len(outcomes) > 0)
"""

POOL = """
import multiprocessing
def work(_):
    return model.generate(ids, max_new_tokens=3).tolist(), model.loss_and_grad(ids, ids)[0]
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(work, range(6), chunksize=1) == [(expected, loss)] * 6)
"""

SMALL_STACK = """
results = []
def work():
    model = GPTModel.from_pretrained("tests/golden/gelu-new", threads=2)
    results.append(model.generate(ids, max_new_tokens=3).tolist() == expected)
    results.append(model.loss_and_grad(ids, ids)[0] == loss)
threading.stack_size(64 << 10)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(results, threading.stack_size() == 64 << 10)
"""

FLOATING_POINT_ERRORS = """
import sys
from pathlib import Path
import numpy as np
from minigpt import GPTModel, GPTTokenizer, compare, convert, perplexity, train
from minigpt.training.presets import PRESETS, Preset
np.seterr(all="raise")
folder = Path(sys.argv[1])
tokenizer, text = GPTTokenizer.from_pretrained(), "Once upon a time there was a little dog. " * 60
tokens = tokenizer.encode(text)
models = [GPTModel.from_pretrained(dtype=dtype, threads=2) for dtype in ("f32", "int4")]
for model in models:
    model.generate(tokens[:20], max_new_tokens=3)
    for temperature in (1e-30, 0.8, 1e30):
        model.generate(
            tokens[:20], max_new_tokens=3, temperature=temperature, top_k=9, top_p=0.9, min_p=0.01
        )
    perplexity(model, tokens[:100], len(text), words=500)
compare(*models, tokens[:50])
models[0].loss_and_grad([tokens[:40]], [tokens[1:41]])
convert(models[0].source, folder / "int4", "int4", calibration=text)
(folder / "text").write_text(text)
preset = Preset(1, 1, 16, PRESETS["tiny"].training)
train(folder / "run", [folder / "text"], tokenizer=tokenizer, preset=preset, steps=2, threads=2)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("program", "output"),
    [
        (FORK, ["0"] * 5),
        (HANDLER, ["True"]),
        (GENERATE_IN_A_HANDLER, ["True", "True"]),
        (POOL, ["True"]),
        (SMALL_STACK, ["[True,", "True]", "True"]),
    ],
    ids=["fork", "handler", "generate in a handler", "pool", "small stack"],
)
def test_forks_and_handlers(program: str, output: list[str]) -> None:
    assert _output(BEGIN + program).split() == output


def test_where_floating_point_errors_of_numpy_are_exceptions(tmp_path: Path) -> None:
    """And warnings, too: underflow and overflow are part of exp, softmax and AdamW."""
    assert _output(FLOATING_POINT_ERRORS, str(tmp_path)).split()[-1] == "done"


def _output(program: str, *arguments: str) -> str:
    """What a program prints; with warnings as errors, but that of Python about forks."""
    warnings = ["-W", "error", "-W", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
