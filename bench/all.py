"""Measure everything on this machine and rewrite docs/benchmarks.md.

    python bench/all.py [--sizes 111M 590M 1.3B] [--rounds 5] [--pairs 7]
                        [--without "transformers bf16"] [--tasks prefill decode]
                        [--training f32 bf16] [--encoding FOLDER TEXT...]

runs kernels.py, models.py, training.py, encoding.py if texts are given, and page.py, each in its
own process. The results go to bench/results, to a file named after the processor; page.py makes the
page and its charts from all files there. The sizes named above take an hour,
24 GiB of memory and, in the folder for temporary files, 40 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from machine import ROOT, cpu_model, features

BENCH = ROOT / "bench"


def run(program: str, *options: str) -> str:
    """Run a program of this folder; print and return its output."""
    command = [sys.executable, str(BENCH / program), *options]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(finished.stdout, flush=True)
    if finished.returncode:
        sys.exit(f"{program} failed with exit code {finished.returncode}")
    return finished.stdout


def run_for_json(program: str, *options: str) -> dict[str, Any]:
    """Run a program with --json and return what it writes, without the machine's description."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        run(program, *options, "--json", str(path))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    del found["machine"]
    return found


def results_file() -> Path:
    """Return the path of this machine's results, such as bench/results/amd-epyc-avx2.json.

    Processors of one name differ in their instructions: the widest are part of the file's name.
    """
    name = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    widest = "".join(f"-{feature}" for feature in features()[-1:])
    return BENCH / "results" / f"{name or 'machine'}{widest}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="measure everything and write the page")
    parser.add_argument("--sizes", nargs="+", default=["111M", "590M", "1.3B"])
    parser.add_argument("--threads", default=str(os.cpu_count()))
    parser.add_argument("--rounds", default="5")
    parser.add_argument("--pairs", default="7", help="of kernels.py")
    parser.add_argument("--without", nargs="+", default=[], help="engines, as models.py takes them")
    parser.add_argument("--tasks", nargs="+", default=[], help="as models.py takes them")
    parser.add_argument("--training", nargs="*", default=["f32", "bf16"], help="in which dtypes")
    parser.add_argument("--encoding", nargs="+", metavar=("FOLDER", "TEXT"), help="see encoding.py")
    options = parser.parse_args()
    if not find_spec("matplotlib"):
        sys.exit('matplotlib is not installed: pip install -e ".[bench]"')
    path = results_file()
    path.parent.mkdir(exist_ok=True)

    kernels = run("kernels.py", "--threads", options.threads, "--pairs", options.pairs)
    shared = ["--threads", options.threads, "--rounds", options.rounds]
    if options.without:
        shared += ["--without", *options.without]
    if options.tasks:
        shared += ["--tasks", *options.tasks]
    run("models.py", "--sizes", *options.sizes, *shared, "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    report["kernels"] = kernels
    if options.training:
        threads = ["--threads", options.threads]
        report["training"] = run_for_json("training.py", "--dtypes", *options.training, *threads)
    if options.encoding:
        report["encoding"] = run_for_json("encoding.py", *options.encoding)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    run("page.py")


if __name__ == "__main__":
    main()
