"""How many CPUs this process may use: its affinity, and the quotas of its cgroups.

A container with a quota sees all CPUs of its machine; as many crawl processes would
take turns in the time of a few. Quotas are those of cgroup v2 (``cpu.max``) and v1
(``cpu.cfs_quota_us``), of the process's own group and of all above that it can see.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_PROC = Path("/proc/self")


def usable_cpus(proc: Path = _PROC) -> int:
    """Return the CPUs that this process may use, part of one counted as one.

    ``proc`` is the process's folder in ``/proc``.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(proc)]
    return max(min([cpus, *quotas]), 1)


def _quotas(proc: Path) -> Iterator[float]:
    """Yield the quotas, in CPUs; none where there are no cgroups."""
    try:
        groups = (proc / "cgroup").read_text(errors="replace").splitlines()
        mounts = (proc / "mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    paths: dict[str, str] = {}
    for line in groups:
        _, _, tail = line.partition(":")
        controllers, _, path = tail.partition(":")
        for controller in controllers.split(","):
            # The group of v2 names no controllers.
            paths[controller] = path
    for line in mounts:
        fields, _, details = line.partition(" - ")
        root, point = fields.split(" ")[3:5]
        kind, _, options = details.split(" ", 2)
        if kind == "cgroup2" and "" in paths:
            yield from _quotas_of(root, point, paths[""], _quota_v2)
        elif kind == "cgroup" and "cpu" in options.split(",") and "cpu" in paths:
            yield from _quotas_of(root, point, paths["cpu"], _quota_v1)


def _quotas_of(
    root: str, point: str, path: str, read: Callable[[Path], float | None]
) -> Iterator[float]:
    """Yield the quotas of a group and those above it, as far as they are mounted.

    In a container the path may be the machine's, of which only the end is mounted, or
    nothing: then the mount is the group.
    """
    inside = path.removeprefix(root) if root != "/" else path
    folder = Path(point)
    group = folder / inside.lstrip("/")
    if not group.is_dir() or ".." in group.parts:
        group = folder
    while True:
        quota = read(group)
        if quota is not None:
            yield quota
        if group == folder:
            return
        group = group.parent


def _quota_v2(group: Path) -> float | None:
    return _ratio(_read(group / "cpu.max").split())


def _quota_v1(group: Path) -> float | None:
    return _ratio(
        [_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")]
    )


def _ratio(words: list[str]) -> float | None:
    """Return quota by period; None for no limit, which is ``max`` or -1."""
    try:
        quota, period = (int(word) for word in words)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
