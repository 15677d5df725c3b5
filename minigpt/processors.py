"""How many processors this process may use: by its affinity, and by the CPU quota of its container.

Linux limits the processor time of a control group, and of all groups that contain it, to a quota
per period: `docker --cpus`, Kubernetes' limits, systemd's CPUQuota. More threads than that would
use up the quota early in each period, and then stand still.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path


def available_processors() -> int:
    """The number of processors for threads that compute: at least 1."""
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    return max(1, int(min(processors, cpu_quota())))


def cpu_quota(root: Path = Path("/")) -> float:
    """Quota ÷ period of this process's control groups, the smallest; infinite where there is none.

    root  the folder with proc/ and sys/, for tests
    """
    quotas = [math.inf]
    for folder, mount in _cpu_groups(root):
        while folder != mount.parent:
            quotas += [_quota_v2(folder), _quota_v1(folder)]
            folder = folder.parent
    return min(quotas)


def _cpu_groups(root: Path) -> Iterator[tuple[Path, Path]]:
    """(folder, mount point) of each control group of this process that can limit its CPU time."""
    proc = root / "proc" / "self"
    try:
        groups = (proc / "cgroup").read_text(encoding="utf-8", errors="surrogateescape")
        mounts = (proc / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return
    paths = {}
    for line in groups.splitlines():  # hierarchy:controllers:path, of cgroup v2 0::path
        hierarchy, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            paths["cgroup"] = path
        elif hierarchy == "0":
            paths["cgroup2"] = path
    for line in mounts.splitlines():  # … root of the mount, mount point … - type source options
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in paths and (kind == "cgroup2" or "cpu" in options.split(",")):
            mount_root, point = map(_unescaped, before.split(" ")[3:5])
            mount = root / point.lstrip("/")
            # In a container the path may lie outside of what is mounted: the mount is the group.
            inside = os.path.relpath(paths[kind], mount_root)
            yield (mount if inside.startswith("..") else mount / inside), mount


def _unescaped(path: str) -> str:
    """A path of mountinfo, where a space is \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _quota_v2(folder: Path) -> float:
    """Quota ÷ period of a group of cgroup v2: the file says `quota period`, or `max period`."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            return int(quota) / int(period)
    return math.inf


def _quota_v1(folder: Path) -> float:
    """Quota ÷ period of a group of cgroup v1, where a quota of −1 is none."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii"))
            for name in ("quota", "period")
        )
        if quota > 0:
            return quota / period
    return math.inf
