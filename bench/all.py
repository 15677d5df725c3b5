"""Measures everything on this machine and writes docs/benchmarks.md anew.

    python bench/all.py [--sizes 111M 590M 1.3B] [--rounds 5]
                        [--without "transformers bf16"]

runs kernels.py, models.py and page.py, each in a process of its own. The results are kept in
bench/results, in a file named after the processor, from which page.py makes the page and its
charts; results of other machines stay. The sizes named above take three quarters of an hour,
24 GiB of memory and, in the folder for temporary files, 22 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from machine import ROOT, cpu_model

BENCH = ROOT / "bench"


def run(program: str, *options: str) -> str:
    """Runs one of the programs beside this one; shows and returns what it prints."""
    command = [sys.executable, str(BENCH / program), *options]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(finished.stdout, flush=True)
    if finished.returncode:
        sys.exit(f"{program} failed with exit code {finished.returncode}")
    return finished.stdout


def results_file() -> Path:
    """bench/results/amd-epyc.json, say."""
    name = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return BENCH / "results" / f"{name or 'machine'}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="measures everything, and writes the page")
    parser.add_argument("--sizes", nargs="+", default=["111M", "590M", "1.3B"])
    parser.add_argument("--threads", default=str(os.cpu_count()))
    parser.add_argument("--rounds", default="5")
    parser.add_argument("--without", nargs="+", default=[], help="engines, as models.py takes them")
    options = parser.parse_args()
    if not find_spec("matplotlib"):
        sys.exit('matplotlib is not installed: pip install -e ".[bench]"')
    path = results_file()
    path.parent.mkdir(exist_ok=True)

    kernels = run("kernels.py", "--threads", options.threads)
    shared = ["--threads", options.threads, "--rounds", options.rounds]
    if options.without:
        shared += ["--without", *options.without]
    run("models.py", "--sizes", *options.sizes, *shared, "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    report["kernels"] = kernels
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    run("page.py")


if __name__ == "__main__":
    main()
