"""How many CPUs a process may use, by its cgroups; those of this machine bound it."""

import os
from pathlib import Path

import pytest

from dscrapy.net.cpus import usable_cpus

MANY = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def here(folder: Path, groups: str, mounts: list[tuple[str, str, str]]) -> Path:
    """Write what ``/proc/self`` says; ``mounts`` are root, file system, options."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(
        "31 23 0:28 / /proc rw - proc proc rw\n"
        + "".join(
            f"32 31 0:29 {root} {folder}/fs{number} rw,relatime shared:9 "
            f"- {kind} cgroup {options}\n"
            for number, (root, kind, options) in enumerate(mounts)
        )
    )
    return proc


def put(path: Path, text: str) -> None:
    """Write a file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen CPUs, whatever machine this is."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), False)


@pytest.mark.usefixtures("affinity")
@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("20000 100000\n", 1),
        ("9900000 100000\n", 16),
        ("max 100000\n", 16),
        ("rubbish", 16),
        ("", 16),
    ],
)
def test_the_quota_of_cgroup_v2(tmp_path: Path, quota: str, cpus: int) -> None:
    """Part of a CPU is one; none and what cannot be read is no limit."""
    proc = here(tmp_path, "0::/a/b\n", [("/", "cgroup2", "rw")])
    put(tmp_path / "fs0/a/b/cpu.max", quota)
    assert usable_cpus(proc) == cpus


@pytest.mark.usefixtures("affinity")
def test_a_group_above_has_a_quota_too(tmp_path: Path) -> None:
    """The smallest of them counts."""
    proc = here(tmp_path, "0::/a/b\n", [("/", "cgroup2", "rw")])
    put(tmp_path / "fs0/a/b/cpu.max", "800000 100000")
    put(tmp_path / "fs0/a/cpu.max", "300000 100000")
    assert usable_cpus(proc) == 3


@pytest.mark.usefixtures("affinity")
@pytest.mark.parametrize(("quota", "cpus"), [("250000", 3), ("-1", 16)])
def test_the_quota_of_cgroup_v1(tmp_path: Path, quota: str, cpus: int) -> None:
    """Of the hierarchy that has the controller ``cpu``, whatever else is mounted."""
    proc = here(
        tmp_path,
        "4:memory:/m\n2:cpu,cpuacct:/c\n0::/\n",
        [
            ("/", "cgroup", "rw,memory"),
            ("/", "cgroup", "rw,cpu,cpuacct"),
            ("/", "cgroup", "rw,cpuset"),
        ],
    )
    put(tmp_path / "fs0/m/cpu.cfs_quota_us", "100000")
    put(tmp_path / "fs1/c/cpu.cfs_quota_us", quota)
    put(tmp_path / "fs1/c/cpu.cfs_period_us", "100000")
    assert usable_cpus(proc) == cpus


@pytest.mark.usefixtures("affinity")
@pytest.mark.parametrize("root", ["/docker/abc", "/elsewhere"])
def test_in_a_container_the_mount_is_the_group(tmp_path: Path, root: str) -> None:
    """Whose path is the machine's, of which it sees nothing else."""
    proc = here(tmp_path, "1:cpu:/docker/abc\n", [(root, "cgroup", "rw,cpu")])
    put(tmp_path / "fs0/cpu.cfs_quota_us", "400000")
    put(tmp_path / "fs0/cpu.cfs_period_us", "100000")
    assert usable_cpus(proc) == 4


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    """Other systems have no ``/proc``; more than the affinity is never told."""
    assert usable_cpus(tmp_path) == max(MANY, 1)
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
