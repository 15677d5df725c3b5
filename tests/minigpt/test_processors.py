"""Processors for the default number of threads: CPU quotas of cgroup v1 and v2, and none."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from minigpt import processors
from minigpt.arguments import MAX_THREADS, checked_threads
from minigpt.processors import available_processors, cpu_quota

V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "32 31 0:29 {root} /sys/fs/cgroup/{at} rw,relatime - cgroup cgroup rw,{controllers}\n"
OTHER_MOUNTS = "22 1 8:1 / / rw - ext4 /dev/root rw,cpu\n25 22 0:22 / /proc rw - proc proc rw\n"


def make_root(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A file system with /proc/self/cgroup, /proc/self/mountinfo and control groups."""
    contents = {
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": OTHER_MOUNTS + mounts,
        **{f"sys/fs/cgroup/{name}": content for name, content in files.items()},
    }
    for name, content in contents.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),  # a container's view: it is the root
        ({"a/cpu.max": "50000 100000\n"}, 0.5),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ({"a/b/cpu.max": "100000 50000\n", "a/cpu.max": "300000 100000\n"}, 2),
        ({"a/b/cpu.max": "max 100000\n"}, math.inf),
        ({"a/b/cpu.max": "garbage\n", "a/cpu.max": "1 0\n"}, math.inf),
        ({"a/b/c/cpu.max": "100000 100000\n", "d/cpu.max": "100000 100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_cgroup_v2(tmp_path, files, quota):
    """The smallest quota of a group and all groups around it counts, and of no other group."""
    root = make_root(tmp_path, "0::/a/b\n", V2_MOUNT.format(root="/"), files)
    assert cpu_quota(root) == quota


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_cgroup_v1(tmp_path, controllers):
    cgroup = f"9:memory:/other\n4:{controllers}:/a/b\n3:cpuset:/c\n0::/\n"
    mounts = V1_MOUNT.format(root="/", at=controllers, controllers=controllers)
    mounts += V1_MOUNT.format(root="/", at="cpuset", controllers="cpuset")
    files = {
        f"{controllers}/a/b/cpu.cfs_quota_us": "-1\n",
        f"{controllers}/a/b/cpu.cfs_period_us": "100000\n",
        f"{controllers}/a/cpu.cfs_quota_us": "250000\n",
        f"{controllers}/a/cpu.cfs_period_us": "100000\n",
        "cpuset/c/cpu.cfs_quota_us": "100\n",
        "cpuset/c/cpu.cfs_period_us": "100\n",
    }
    assert cpu_quota(make_root(tmp_path, cgroup, mounts, files)) == 2.5


@pytest.mark.parametrize("path", ["/docker/1234", "/docker/1234/inner", "/../../elsewhere"])
def test_a_container_that_sees_the_path_of_its_host(tmp_path, path):
    """The group is mounted, and its path is that of the host, or outside of what is mounted."""
    mounts = V1_MOUNT.format(root="/docker/1234", at="cpu", controllers="cpu")
    files = {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert cpu_quota(make_root(tmp_path, f"4:cpu:{path}\n", mounts, files)) == 1


def test_no_control_groups(tmp_path):
    assert cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("affinity", "quota", "count"),
    [(8, math.inf, 8), (8, 2.9, 2), (8, 0.5, 1), (2, 4.0, 2), (1000, math.inf, 1000)],
)
def test_affinity_and_quota(monkeypatch, affinity, quota, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(processors, "cpu_quota", lambda: quota)
    assert available_processors() == count
    assert checked_threads(None) == min(count, MAX_THREADS)
