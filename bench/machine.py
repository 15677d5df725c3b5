"""Description of a measurement: the machine, the versions, the date and the commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

# from the narrowest to the widest, of each family
FEATURES = ("avx2", "avx512f", "avx512vnni", "avx512bf16", "amx-bf16", "amx-int8", "neon", "bf16")
PACKAGES = (
    "numpy",
    "numba",
    "torch",
    "transformers",
    "openvino",
    "openvino-genai",
    "ctranslate2",
    "llama-cpp-python",
    "tiktoken",
    "gigatoken",
)
ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """Return the description as values for JSON."""
    return {
        "cpu": cpu_model(),
        "features": features(),
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version_of(name))},
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


def features() -> list[str]:
    """Return those of FEATURES that the processor has, from the narrowest to the widest."""
    found = llvm.get_host_cpu_features()
    return [name for name in FEATURES if found.get(name)]


def cpu_model() -> str:
    """Return the CPU's name from /proc/cpuinfo, or from Python's platform module."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory_bytes() -> int | None:
    """Return the physical memory; None on Windows, which has no sysconf."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Return the checked-out commit, with `-dirty` if files differ from it; "" outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
